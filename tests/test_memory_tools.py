"""``engram memory``: list, show, export, import, merge, prune, verify, map."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agent.cli import main
from agent.memory.files import Encoder, MemoryFolder
from agent.memory.key.given import Descriptor
from agent.memory.row import Row
from agent.memory_map import label_of, placed, principal, restored_key, scaled
from tests.rows_on_disk import P, row_of, same

ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a memory ``a`` of five rows, gains -2, -1, 0, 1, 2, in a run folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    make(Path("run/memory"), range(5))
    return tmp_path


def make(path: Path, values: range, anchor: float = 0.0) -> MemoryFolder:
    folder = MemoryFolder(path)
    with folder.writer() as writer:
        writer.set_lineage("lineage-1", torch.full((P,), anchor), {"obs.mean": torch.ones(3)})
        writer.set_encoder("encoder-1", {"weight": torch.arange(3)})
        for value in values:
            writer.append(graded(value))
    return folder


def graded(value: int) -> Row:
    row = row_of(value)
    return row.with_(baseline=row.record.mean + 2 - value)


def numbers(path: str | Path) -> list[int]:
    rows = [row for _, row in MemoryFolder(path).read()]
    assert all(same(row, graded(row.info["value"])) for row in rows)
    return [row.info["value"] for row in rows]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_list_is_ordered_by_gain_or_what_is_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["memory", "list", "run"]) == 0
    out = capsys.readouterr().out
    order = [int(x.split()[0]) for x in out.splitlines() if x.strip() and x.split()[0].isdigit()]
    assert order[:5] == [4, 3, 2, 1, 0]
    assert "task 1" in out and "+2.0" in out and "-2.0" in out and "5 rows (no limit)" in out
    assert main(["memory", "list", "run/memory", "by=visits"]) == 0
    assert main(["memory", "action=list", "folders=[run]"]) == 0


def test_show_tells_all_of_a_row_and_of_the_memory(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["memory", "show", "run", "uids=[3]"]) == 0
    out = said(capsys)
    assert "Row 3" in out and "record.mean" in out and "[300], norm" in out and "6 steps" in out
    assert main(["memory", "show", "run"]) == 0
    assert "lineage lineage-1: 5 rows" in (out := said(capsys)) and "written now" in out
    assert main(["memory", "show", "run", "uids=[9]"]) == 1
    assert "no rows [9]" in said(capsys)


def test_an_exported_memory_opens_elsewhere_as_it_was(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["memory", "export", "run", "out=out/mine.engram"]) == 0
    assert "Wrote 5 rows" in said(capsys) and [p.name for p in Path("out").iterdir()] == [
        "mine.engram"
    ]
    assert main(["memory", "verify", "out/mine.engram"]) == 0
    assert main(["memory", "list", "out/mine.engram"]) == 0
    assert main(["memory", "import", "b", "out/mine.engram", "capacity=9"]) == 0
    assert "5 rows added" in said(capsys) and numbers("b") == [0, 1, 2, 3, 4]
    contents = MemoryFolder("b").contents()
    assert torch.equal(contents.lineage().state["obs.mean"], torch.ones(3))
    assert contents.encoder().version == "encoder-1" and contents.manifest.capacity == 9
    assert main(["memory", "export", "run", "uids=[1,3]", "out=two.engram"]) == 0
    assert main(["memory", "import", "c", "two.engram"]) == 0
    assert numbers("c") == [1, 3]
    assert main(["memory", "import", "two.engram", "b"]) == 1
    assert "not to an exported file" in said(capsys)


def test_merging_twice_adds_nothing_and_foreign_anchors_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    make(Path("b"), range(3, 8))
    make(Path("c"), range(2), anchor=1.0)
    for expected in ("3 rows added, 2 there already", "0 rows added, 5 there already"):
        assert main(["memory", "merge", "run", "b"]) == 0
        assert expected in said(capsys)
    assert main(["memory", "merge", "run", "c"]) == 0
    assert "0 rows added, 0 there already, 2 refused" in (out := said(capsys))
    assert "another meta-initialisation here" in out
    assert numbers("run/memory") == list(range(8)) and numbers("b") == [3, 4, 5, 6, 7]
    assert main(["memory", "merge", "run", "b", "capacity=7"]) == 1
    assert "holds 8 rows" in said(capsys)
    assert main(["memory", "merge", "run"]) == 2
    assert "expected engram memory merge TARGET SOURCE" in said(capsys)


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("uids=[0,2]", [1, 3, 4]),
        ("rows=2", [3, 4]),
        ("min_gain=0.5", [3, 4]),
        ("rows=2 by=time", [3, 4]),
        ("rows=3 uids=[4]", [1, 2, 3]),
        ("damaged=true", [0, 1, 2, 3, 4]),
        ("rows=0", []),
    ],
)
def test_prune_drops_what_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], what: str, left: list[int]
):
    assert main(["memory", "prune", "run", *what.split()]) == 0
    assert f"{len(left)} kept" in said(capsys)
    assert numbers("run/memory") == left


def test_damage_is_reported_and_pruned(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["memory", "verify", "run"]) == 0
    assert "all is as it was written" in said(capsys)
    path = sorted(Path("run/memory/data").glob("rows-*"))[1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert main(["memory", "verify", "run"]) == 1
    assert f"{path.name}: checksum does not match" in (out := said(capsys)) and "row 1" in out
    for command in ("list run", "show run", "map run", "export run", "prune run damaged=true"):
        assert main(["memory", *command.split()]) in (0, 1), command
    assert main(["memory", "verify", "run"]) == 0 and numbers("run/memory") == [0, 2, 3, 4]


def test_the_map_is_a_picture_of_all_tasks(here: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("map.png", "map.svg"):
        assert main(["memory", "map", "run", f"out={name}"]) == 0
        assert f"{name}: 5 of 5 rows, 3 tasks" in said(capsys)
    with Image.open("map.png") as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=10**6)
    assert colours is not None and len(colours) > 20
    text = Path("map.svg").read_text()
    assert text.count("<path") > 5
    with MemoryFolder("run/memory").writer() as writer:
        writer.commit(remove=[0, 1, 2, 3])
    assert main(["memory", "map", "run"]) == 1
    assert "no two rows" in said(capsys)


def test_points_lie_where_they_must():
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [4.0, 3.0]])
    found = scaled(corners @ corners.T)
    wanted = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
    assert np.allclose(np.linalg.norm(found[:, None] - found[None], axis=-1), wanted)
    line = np.outer(np.arange(5.0), [1.0, -2.0, 0.0])
    found = principal(line)
    assert (
        np.allclose(np.diff(found[:, 0]), np.diff(found[:, 0])[0]) and abs(found[:, 1]).max() < 1e-9
    )
    assert np.allclose(principal(np.ones((3, 4))), 0.0)


def test_labels_are_for_readers():
    assert label_of({"task": {"label": "fast"}}) == label_of({"label": "fast"}) == "fast"
    assert label_of({"task": "slow"}) == "slow" and label_of({}) == label_of(None) == "-"


def test_only_our_own_keys_are_built_from_a_memory():
    for target in ("os.system", "agent.memory.key.likelihood.os.system", "subprocess.Popen", None):
        assert restored_key(Encoder("v", {}, {"_target_": target})) is None


def test_the_map_goes_by_the_key_that_made_the_rows(here: Path, capsys: pytest.CaptureFixture[str]):
    """Three tasks at known places; the descriptor key scores -d^2 / 2 in units of 2."""
    state, settings = (
        {"scale": torch.full((2,), 2.0).double()},
        {"_target_": "agent.memory.key.given.Descriptor"},
    )
    key = Descriptor()
    key.load_state_dict(state)
    with MemoryFolder("b").writer() as writer:
        writer.set_encoder(key.version, state, settings)
        for place in ((0.0, 0.0), (3.0, 0.0), (0.0, 4.0)):
            writer.append(row_of(0, key=torch.tensor(place), encoder=key.version))
    found = restored_key(MemoryFolder("b").contents().encoder())
    assert found.version == key.version
    assert restored_key(Encoder("another", state, settings)) is None
    points, how = placed(MemoryFolder("b").contents(), key.version)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert "classical" in how and np.allclose(apart[np.triu_indices(3, 1)], [1.5, 2.0, 2.5])


def test_archives_that_are_no_memory_are_refused(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["memory", "export", "run", "out=good.engram"]) == 0
    good = zipfile.ZipFile("good.engram")
    content = {name: good.read(name) for name in good.namelist()}

    def archive(extra: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile("bad.engram", "w", how) as file:
            for name, data in (content | extra).items():
                file.writestr(name, data)

    for extra in ({"../evil": b"x"}, {"data/code.pkl": b"x"}, {"/etc/passwd": b"x"}):
        archive(extra)
        assert main(["memory", "import", "b", "bad.engram"]) == 1
        assert "not an exported memory" in said(capsys)
    archive({}, zipfile.ZIP_DEFLATED)
    assert main(["memory", "list", "bad.engram"]) == 1
    Path("bad.engram").write_bytes(Path("good.engram").read_bytes()[:500])
    assert main(["memory", "list", "bad.engram"]) == 1
    assert "or damaged" in said(capsys)
    assert not (here.parent / "evil").exists()


def test_which_memory_is_meant(here: Path, capsys: pytest.CaptureFixture[str]):
    make(Path("run/other"), range(1))
    assert main(["memory", "list", "run"]) == 1
    assert "holds 2 memories; say which: run/memory, run/other" in said(capsys)
    Path("empty").mkdir()
    for folder, message in (("empty", "no memory here"), ("nowhere", "no such folder")):
        assert main(["memory", "list", folder]) == 1
        assert message in said(capsys)
    assert main(["memory", "list"]) == 2 and "engram memory list FOLDER" in said(capsys)
    assert main(["memory", "burn", "run"]) == 2 and "action='burn'" in said(capsys)
    make(Path("with space, and=sign [x]"), range(2))
    assert main(["memory", "list", "with space, and=sign [x]"]) == 0


def test_the_script_is_the_command(here: Path):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/memory.py", "list", "run"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "5 rows" in done.stdout
