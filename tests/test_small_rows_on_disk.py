"""Rows that hold only what adapts, on disk: small, exact, and said to need a later version."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from agent.memory.files import MemoryFolder
from tests.memory_rows import row

P, FREE = 2000, ((1900, 2000),)


def test_rows_on_disk_hold_only_what_adapts(tmp_path: Path):
    anchor = torch.randn(P, generator=torch.Generator().manual_seed(0))
    near = anchor.clone()
    near[1900:] += torch.randint(-127, 128, (100,)) / 128
    rows = {0: row(params=near), 1: row(params=-anchor), 2: row(params=anchor)}
    sizes = {}
    for name, settings in (("small", {"segments": [P], "free": FREE}), ("old", {"segments": [P]})):
        folder = MemoryFolder(tmp_path / name)
        with folder.writer() as writer:
            writer.set_lineage("a", anchor, {}, settings)
            writer.mirror(rows)
        contents = MemoryFolder(tmp_path / name).contents()
        for uid, each in rows.items():
            assert torch.equal(contents.row(uid).params, each.params), (name, uid)
        sizes[name] = contents.facts(0)["bytes"]
        assert contents.manifest.format == (2 if name == "small" else 1)
        assert not folder.verify()
    assert sizes["small"] < sizes["old"] - 1500
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    assert manifest["manifest"]["format"] == 1  # folders of other learners stay readable
