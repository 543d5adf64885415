"""The memory on disk: what is written is read, to the bit; damage, limits, locks, compaction."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agent.files import BadFileError
from agent.memory import folder_writer
from agent.memory.codec import Codec
from agent.memory.files import MemoryFolder
from agent.memory.folder_writer import MemoryFullError
from agent.memory.manifest import MemoryFolderError, spans
from agent.memory.segment import DamagedRowError
from tests.rows_on_disk import P, row_of, same


@pytest.fixture
def folder(tmp_path: Path) -> MemoryFolder:
    """A memory that does not exist yet."""
    return MemoryFolder(tmp_path / "memory")


def filled(folder: MemoryFolder, values: range) -> MemoryFolder:
    """The folder, with a row for each value in a commit of its own."""
    with folder.writer() as writer:
        for value in values:
            writer.append(row_of(value))
    return folder


def data_files(folder: MemoryFolder) -> list[Path]:
    return sorted((folder.path / "data").iterdir())


def values(folder: MemoryFolder) -> dict[int, int]:
    """By uid; every row is checked to the bit."""
    found = dict(folder.read())
    for row in found.values():
        assert same(row.with_(info={}), row_of(row.info["value"]).with_(info={}))
    return {uid: row.info["value"] for uid, row in found.items()}


def test_rows_come_back_to_the_bit(folder: MemoryFolder):
    rows = [row_of(value) for value in range(5)]
    rows[1] = rows[1].with_(key=torch.full_like(rows[1].key, torch.nan), baseline=float("nan"))
    rows[2] = rows[2].with_(record=replace(rows[2].record, mean=-0.1 - 0.2, sd=float("inf")))
    rows[3] = rows[3].with_(params=torch.randn(7), lineage="another", time=2**60)
    with folder.writer() as writer:
        assert [writer.append(row) for row in rows] == [0, 1, 2, 3, 4]
    assert len(folder.contents()) == 5
    for (uid, found), (value, row) in zip(folder.read(), enumerate(rows), strict=True):
        assert uid == value and same(found, row)


def test_replacing_and_removing_do_not_touch_what_a_reader_holds(folder: MemoryFolder):
    filled(folder, range(4))
    before = folder.contents()
    with folder.writer() as writer:
        writer.replace(1, row_of(11))
        writer.remove(2)
        assert writer.append(row_of(9)) == 4
        writer.compact()
        assert writer.uids == [0, 1, 3, 4] and len(writer) == 4
        with pytest.raises(KeyError, match="no rows \\[2\\]"):
            writer.remove(2)
        with pytest.raises(KeyError):
            writer.replace(7, row_of(7))
    assert values(folder) == {0: 0, 1: 11, 3: 3, 4: 9}
    assert [same(before.row(uid), row_of(uid)) for uid in before.uids] == [True] * 4
    with pytest.raises(KeyError, match="no row 2"):
        folder.contents().row(2)


def test_names_of_rows_are_never_given_twice(folder: MemoryFolder):
    filled(folder, range(2))
    with folder.writer() as writer:
        writer.remove(1)
        writer.compact()
    with folder.writer() as writer:
        assert writer.append(row_of(5)) == 2
        writer.commit(put={40: row_of(6)})
        assert writer.append(row_of(7)) == 41
        with pytest.raises(ValueError, match="both written and removed"):
            writer.commit(put={0: row_of(0)}, remove=[0])


def test_a_full_memory_is_exactly_full(folder: MemoryFolder):
    with folder.writer(capacity=3) as writer:
        for value in range(3):
            writer.append(row_of(value))
        generation = folder.contents().manifest.generation
        full = "4 rows do not fit, the capacity is 3"
        with pytest.raises(MemoryFullError, match=full):
            writer.append(row_of(9))
        with pytest.raises(MemoryFullError, match=full):
            writer.commit(put={0: row_of(1), 9: row_of(9)})
        with pytest.raises(MemoryFullError):
            writer.mirror({uid: row_of(uid) for uid in range(4)})
        assert folder.contents().manifest.generation == generation
        assert writer.commit(add=[row_of(9)], remove=[1]) == [3]
    assert values(folder) == {0: 0, 2: 2, 3: 9}
    with pytest.raises(MemoryFullError, match="holds 3 rows"), folder.writer(capacity=2):
        pass
    with folder.writer() as writer:
        assert writer.capacity == 3


def test_what_is_not_finite_or_of_another_size_is_not_written(folder: MemoryFolder):
    with folder.writer() as writer:
        writer.set_lineage("lineage-1", torch.zeros(P))
        with pytest.raises(ValueError, match="not finite"):
            writer.append(row_of(0, params=torch.full((P,), torch.inf)))
        with pytest.raises(ValueError, match="policies of 300 parameters, got one of 7"):
            writer.append(row_of(0, params=torch.zeros(7)))
        assert len(writer) == 0


def test_mirror_writes_what_changed_and_nothing_else(folder: MemoryFolder):
    rows = {uid: row_of(uid) for uid in (0, 3, 8)}
    with folder.writer() as writer:
        assert writer.mirror(rows) == 3
        assert writer.mirror(rows) == 0
        generation = folder.contents().manifest.generation
        assert writer.mirror(rows) == 0
        assert folder.contents().manifest.generation == generation
        assert writer.mirror({3: row_of(3), 8: row_of(88), 9: row_of(9)}) == 2
    assert values(folder) == {3: 3, 8: 88, 9: 9}


@pytest.mark.parametrize("kind", ["int4", "int8", "bfloat16"])
def test_a_policy_out_of_a_codec_takes_no_more_bytes_than_its_code(folder: MemoryFolder, kind: str):
    anchor, codec = torch.randn(P), Codec(kind, (200, 100))  # pyright: ignore[reportArgumentType]
    coded = anchor + codec.decode(codec.encode(0.1 * torch.randn(P)))
    exact = row_of(1)
    with folder.writer() as writer:
        writer.set_lineage("lineage-1", anchor, settings={"segments": (200, 100)})
        writer.append(exact.with_(params=coded))
        writer.append(exact)
    contents = folder.contents()
    assert torch.equal(contents.row(0).params, coded) and same(contents.row(1), exact)
    saved = contents.facts(1)["bytes"] - contents.facts(0)["bytes"]
    words = len(f'"params.code": "{kind}", ')
    assert saved == 4 * P - codec.record_bytes - words


def test_lineages_and_encoders_travel_with_the_rows(folder: MemoryFolder, tmp_path: Path):
    anchor, mean = torch.randn(P), torch.randn(4)
    with folder.writer() as writer:
        writer.set_lineage("lineage-1", anchor, {"normalizer.mean": mean}, {"hidden": [8, 8]})
        writer.set_encoder("encoder-1", {"weight": torch.arange(3)}, {"kind": "likelihood"})
        writer.set_encoder("encoder-2", {"weight": torch.arange(4)})
        writer.append(row_of(1))
        with pytest.raises(MemoryFolderError, match="relative to another"):
            writer.set_lineage("lineage-1", anchor + 1)
        writer.set_lineage("lineage-2", anchor + 1)
        writer.set_lineage("lineage-2", anchor + 2)  # nothing is relative to it yet
    folder.path.rename(tmp_path / "elsewhere")
    contents = MemoryFolder(tmp_path / "elsewhere").contents()
    lineage = contents.lineage("lineage-1")
    assert torch.equal(lineage.anchor, anchor) and lineage.settings == {"hidden": [8, 8]}
    assert torch.equal(lineage.state["normalizer.mean"], mean)
    assert torch.equal(contents.lineage().anchor, anchor + 2)
    assert contents.encoder("encoder-1").settings == {"kind": "likelihood"}
    assert contents.encoder().version == "encoder-2"
    assert torch.equal(contents.encoder().state["weight"], torch.arange(4))
    with pytest.raises(MemoryFolderError, match="no lineage 'x'; there is lineage-1, lineage-2"):
        contents.lineage("x")


def test_facts_and_keys_need_no_policy(folder: MemoryFolder):
    contents = filled(folder, range(3)).contents()
    facts, row = contents.facts(2), row_of(2)
    assert facts["record.mean"] == row.record.mean and facts["visits"] == row.visits
    assert facts["info"] == row.info and facts["lineage"] == "lineage-1"
    assert torch.equal(contents.key(2), row.key)
    held = row.params.nbytes + row.key.nbytes + row.probe.obs.nbytes
    assert contents.facts(1)["bytes"] < contents.facts(2)["bytes"]  # a longer probe
    assert held < facts["bytes"] < held + 1500


def test_there_is_one_writer(folder: MemoryFolder):
    with (
        folder.writer(),
        pytest.raises(MemoryFolderError, match="another process is writing"),
        MemoryFolder(folder.path).writer(wait_s=0.05),
    ):
        pass
    with folder.writer() as writer:
        writer.append(row_of(0))
    assert values(folder) == {0: 0}


def test_no_memory_is_said_so(folder: MemoryFolder):
    assert not folder.exists
    with pytest.raises(MemoryFolderError, match="no memory here"):
        folder.read()
    with folder.writer():
        assert folder.exists and folder.read() == []


def test_many_small_files_become_few(folder: MemoryFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder_writer, "MOST_SEGMENTS", 8)
    with folder.writer() as writer:
        for value in range(60):
            writer.append(row_of(value))
            assert len(folder.contents().manifest.segments) <= 8
            assert len(data_files(folder)) <= 8 + 8  # those that the manifest before names
        for uid in range(0, 60, 2):
            writer.remove(uid)
        size = sum(path.stat().st_size for path in data_files(folder))
        writer.compact()
        assert len(data_files(folder)) == 1
        assert sum(path.stat().st_size for path in data_files(folder)) < 0.65 * size
    assert values(folder) == {uid: uid for uid in range(1, 60, 2)}
    assert folder.verify() == []


def test_files_of_rows_have_a_size_limit(folder: MemoryFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder_writer, "SEGMENT_BYTES", 6000)  # three rows
    with folder.writer() as writer:
        writer.commit(add=[row_of(value) for value in range(7)])
        assert len(folder.contents().manifest.segments) == 3
        writer.compact()
        assert [entry.alive for entry in folder.contents().manifest.segments]
    assert values(folder) == {uid: uid for uid in range(7)}


def test_every_flipped_bit_is_found_and_costs_no_other_row(folder: MemoryFolder):
    with folder.writer() as writer:
        writer.commit(add=[row_of(value) for value in range(3)])
    (path,) = data_files(folder)
    whole = path.read_bytes()
    rng = torch.Generator().manual_seed(0)
    header = int.from_bytes(whole[:8], "little") + 8
    places = [*torch.randint(0, len(whole), (150,), generator=rng).tolist(), 0, 9, header, -1]
    kept = []
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        path.write_bytes(data)
        fresh = MemoryFolder(folder.path)
        assert any("checksum does not match" in fault for fault in fresh.verify())
        found = fresh.read()
        assert all(fresh.contents().facts(uid)["bytes"] >= 0 for uid in fresh.contents().uids)
        assert all(same(row, row_of(uid)) for uid, row in found)
        if place > header + 400:  # behind the header and the small columns that all rows need
            kept.append(len(found))
    assert len(kept) > 80 and set(kept) == {2}


def test_damaged_rows_are_named_and_can_be_dropped(
    folder: MemoryFolder, capsys: pytest.CaptureFixture[str]
):
    with folder.writer() as writer:
        writer.commit(add=[row_of(value) for value in range(3)])
    (path,) = data_files(folder)
    data = path.read_bytes()
    path.write_bytes(data.replace(row_of(1).params.numpy().tobytes(), bytes(4 * P)))
    contents = folder.contents()
    with pytest.raises(DamagedRowError, match="row 1 does not match its checksum"):
        contents.row(1)
    assert [uid for uid, _ in contents.rows()] == [0, 2]
    assert "row 1 does not match" in capsys.readouterr().err
    with folder.writer() as writer:
        writer.compact()  # leaves the file alone
        assert len(folder.read()) == 2
        writer.remove(1)
        writer.compact()
    assert folder.verify() == [] and values(folder) == {0: 0, 2: 2}


def test_a_missing_or_cut_file_costs_its_own_rows(
    folder: MemoryFolder, capsys: pytest.CaptureFixture[str]
):
    filled(folder, range(3))
    first, second, _ = data_files(folder)
    second.unlink()
    first.write_bytes(first.read_bytes()[:-1])
    assert [uid for uid, _ in MemoryFolder(folder.path).read()] == [2]
    assert "No such file" in capsys.readouterr().err
    faults = " ".join(MemoryFolder(folder.path).verify())
    assert f"{second}: missing" in faults and "row 0" in faults and "row 1" in faults


def test_a_damaged_manifest_falls_back_to_the_commit_before(
    folder: MemoryFolder, capsys: pytest.CaptureFixture[str]
):
    filled(folder, range(3))
    path = folder.path / "manifest.json"
    for damaged in (b"", b"{", path.read_bytes().replace(b'"next_uid": 3', b'"next_uid": 4')):
        path.write_bytes(damaged)
        assert values(MemoryFolder(folder.path)) == {0: 0, 1: 1}
        assert "using the commit before it" in capsys.readouterr().err
        assert any("manifest.json" in fault for fault in folder.verify())
    with folder.writer() as writer:
        assert writer.append(row_of(7)) == 2
    assert values(folder) == {0: 0, 1: 1, 2: 7} and folder.verify() == []
    assert (folder.path / "manifest.json.damaged").is_file()
    assert list((folder.path / "data").glob("*.orphan"))  # row 2 as it was, for who looks
    (folder.path / "manifest.previous.json").write_bytes(b"{")
    path.write_bytes(b"{")
    with pytest.raises(BadFileError, match="not a manifest"):
        folder.read()


def test_the_commit_before_has_all_its_files(folder: MemoryFolder):
    filled(folder, range(3))
    with folder.writer() as writer:
        writer.replace(0, row_of(9))  # nothing names the file of the old row now
    (folder.path / "manifest.json").write_bytes(b"{")
    assert values(MemoryFolder(folder.path)) == {0: 0, 1: 1, 2: 2}


def test_hostile_manifests_are_refused(folder: MemoryFolder):
    import hashlib

    filled(folder, range(2))
    path = folder.path / "manifest.json"
    (folder.path / "manifest.previous.json").unlink()
    good = json.loads(path.read_text())["manifest"]

    def with_segment(**changes: object) -> dict[str, object]:
        return good | {"segments": [good["segments"][0] | changes]}

    bad = {
        "should match pattern": with_segment(name="../../etc/passwd"),
        "more of them than fit": with_segment(alive=[[0, 2**40]]) | {"next_uid": 2**41},
        "claimed twice": with_segment(alive=[[0, 1], [0, 1]]),
        "never written": good | {"next_uid": 1},
        "a later one is needed": good | {"format": 3, "novelty": 1},
        "Unexpected keyword": good | {"code": "import os"},
    }
    for message, manifest in bad.items():
        text = json.dumps(manifest, sort_keys=True)
        sha = hashlib.sha256(text.encode()).hexdigest()
        path.write_text(json.dumps({"sha256": sha, "manifest": manifest}))
        with pytest.raises((BadFileError, MemoryFolderError), match=message):
            folder.read()
    path.write_text("[" * 100_000)
    with pytest.raises(BadFileError, match="not a manifest"):
        folder.read()


def test_a_full_disk_changes_nothing(folder: MemoryFolder, monkeypatch: pytest.MonkeyPatch):
    filled(folder, range(2))
    real, left = os.fsync, 0

    def failing(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(handle)

    with folder.writer() as writer:
        for allowed in range(3):  # the segment, its folder, the manifest
            left = allowed
            monkeypatch.setattr(os, "fsync", failing)
            with pytest.raises(OSError, match="No space"):
                writer.append(row_of(9))
            monkeypatch.setattr(os, "fsync", real)
            assert values(folder) == {0: 0, 1: 1} and len(writer) == 2
        assert writer.append(row_of(2)) == 2
        left = 3  # fails after the manifest has its name: what the disk says is what counts
        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="No space"):
            writer.append(row_of(3))
        monkeypatch.setattr(os, "fsync", real)
        assert writer.append(row_of(4)) == 4
    assert values(folder) == {uid: uid for uid in range(5)}
    assert len(data_files(folder)) == 5 and folder.verify() == []


def test_spans():
    assert spans([7, 1, 2, 3, 9]) == [(1, 3), (7, 1), (9, 1)]
    assert spans([]) == []
