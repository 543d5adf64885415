"""The run folder: checkpoints survive a kill at any moment; damage is never loaded in silence."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from agent.files import BadFileError, read_json, write_atomic, write_json
from agent.run import (
    Checkpoints,
    CorruptCheckpointError,
    Run,
    RunError,
)


def tensors(value: float, size: int = 1000) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size,), value), "step": torch.tensor(value)}


def test_the_newest_generation_comes_back_and_two_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.load() is None
    for n in range(4):
        checkpoints.save(tensors(n), {"iteration": n, "loss": float("nan")})
    loaded = checkpoints.load()
    assert loaded is not None
    assert torch.equal(loaded[0]["a"], tensors(3)["a"])
    assert loaded[1] == {"iteration": 3, "loss": None}
    assert len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize("file", ["tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_noticed_and_the_generation_before_used(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(tensors(1), {"iteration": 1})
    spoil(checkpoints.save(tensors(2), {"iteration": 2}) / file, damage)
    loaded = checkpoints.load()
    assert loaded is not None and loaded[1] == {"iteration": 1}
    assert "using the generation before" in capsys.readouterr().err


def test_a_damaged_generation_is_never_kept_in_place_of_an_intact_one(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(tensors(1), {"iteration": 1})
    spoil(checkpoints.save(tensors(2), {"iteration": 2}) / "manifest.json", "cut")
    assert checkpoints.load() is not None
    spoil(checkpoints.save(tensors(3), {"iteration": 3}) / "manifest.json", "cut")
    loaded = checkpoints.load()  # two faults in a row, and the first generation still there
    assert loaded is not None and loaded[1] == {"iteration": 1}


@pytest.mark.parametrize("text", ["", "a: [", "- 1"])
def test_settings_that_are_none_are_named(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(BadFileError, match=r"config\.yaml"):
        Run(tmp_path).claim({"seed": 0})


def test_when_every_generation_is_damaged_it_says_so(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    for n in range(2):
        spoil(checkpoints.save(tensors(n), {}) / "tensors.safetensors", "cut")
    with pytest.raises(CorruptCheckpointError, match="00000002"):
        checkpoints.load()


def test_every_single_bit_flip_is_noticed(tmp_path: Path):
    generation = Checkpoints(tmp_path).save(tensors(1, size=4), {"iteration": 1})
    rng = random.Random(0)
    for file in ("tensors.safetensors", "manifest.json"):
        original = (generation / file).read_bytes()
        for _ in range(100):
            data = bytearray(original)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (generation / file).write_bytes(data)
            with pytest.raises(CorruptCheckpointError):
                Checkpoints(tmp_path).load()
        (generation / file).write_bytes(original)


def spoil(path: Path, damage: str) -> None:
    if damage == "gone":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data[: len(data) // 2] if damage == "cut" else data))


def test_a_writer_killed_at_any_moment_leaves_a_loadable_run(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(tensors(0), {"iteration": 0})
    rng, seen = random.Random(1), 0
    for _ in range(50):
        child = os.fork()
        if child == 0:  # the writer: saves until it is killed
            n = seen
            while True:
                n += 1
                checkpoints.save(tensors(n), {"iteration": n})
        time.sleep(rng.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = checkpoints.load()
        assert loaded is not None
        n = loaded[1]["iteration"]
        assert n >= seen  # never back behind what was once complete
        assert torch.equal(loaded[0]["a"], tensors(n)["a"])
        seen = n
    assert seen > 5  # the writers did get something done, even where others keep the machine busy
    checkpoints.save(tensors(0), {})
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.json"
    write_json(path, {"n": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"{}")
    assert read_json(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_writes_are_synced_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    sync, rename, replace = os.fsync, os.rename, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), sync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    Checkpoints(tmp_path / "c").save(tensors(1), {})
    assert events == [
        "sync",
        "sync",
        "sync",
        "rename",
        "sync",
    ]  # two files, their folder; then its parent
    events.clear()
    write_atomic(tmp_path / "f", b"x")
    assert events == ["sync", "rename", "sync"]


def test_json_has_no_nan_and_bad_json_is_named(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5], 3: None})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [None, 1.5], "3": None}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json: not valid JSON"):
        read_json(tmp_path / "b.json")


def test_a_run_folder_refuses_other_settings(tmp_path: Path):
    run = Run(tmp_path)
    settings = {"seed": 0, "learner": {"gamma": 0.9}, "budget": {"env_steps": 10}}
    run.claim(settings, {"budget"})
    run.claim(settings | {"budget": {"env_steps": 99}}, {"budget"})
    with pytest.raises(RunError, match=r"learner.gamma=0.9 \(now 0.5\)"):
        run.claim(settings | {"learner": {"gamma": 0.5}}, {"budget"})
    other = settings | {"learner": {"gamma": 0.5}}
    run.claim(other, {"budget"}, begun=False)  # what failed at its start is in nobody's way
    run.claim(other, {"budget"})
    assert set(json.loads((tmp_path / "versions.json").read_text())) >= {
        "python",
        "torch",
        "mujoco",
    }


def test_two_processes_cannot_work_in_one_folder(tmp_path: Path):
    with Run(tmp_path).lock():
        with pytest.raises(RunError, match="another process"), Run(tmp_path).lock():
            pass
    with Run(tmp_path).lock():  # free again
        pass


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path):
    run = Run(tmp_path)
    for n in (1, 3, 4, 5):  # a power cut lost line 2
        run.log({"iteration": n})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "tor')  # a line that a kill cut off
    run.truncate_log(3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 3]


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agent.run.FORMAT", 2)
    Checkpoints(tmp_path).save(tensors(1), {})
    monkeypatch.undo()
    with pytest.raises(CorruptCheckpointError, match="format 2, this version reads 1"):
        Checkpoints(tmp_path).load()


def test_settings_that_came_or_went_are_differences(tmp_path: Path):
    run = Run(tmp_path)
    run.claim({"seed": 0, "learner": {"gamma": 0.9}})
    for settings, named in (
        ({"seed": 0}, r"learner=\{'gamma': 0\.9\} \(now None\)"),
        ({"seed": 0, "learner": {"gamma": 0.9}, "policy": 3}, r"policy=None \(now 3\)"),
        ({"seed": 0, "learner": {"gamma": 0.9, "clip": 0.1}}, r"learner\.clip=None \(now 0\.1\)"),
        ({"seed": 0, "learner": {}}, r"learner\.gamma=0\.9 \(now None\)"),
    ):
        with pytest.raises(RunError, match=named):
            run.claim(settings)


def test_a_command_is_noted_once_and_with_its_last_figures(tmp_path: Path):
    run = Run(tmp_path)
    run.note_command("engram a", "training", 1.0, 10)
    run.note_command("engram b", "stream", 2.0, 20)
    run.note_command("engram a more", "training", 3.0, 30)
    noted = [(c["command"], c["env_steps"]) for c in read_json(tmp_path / "commands.json")]
    assert noted == [("engram b", 20), ("engram a more", 30)]
