"""Writers that die, at random and at every single step, while others read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.memory.files import MemoryFolder
from tests.memory_processes import CAPACITY
from tests.rows_on_disk import row_of

ROOT = Path(__file__).parent.parent


def test_twenty_killed_writers_lose_nothing_and_tear_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "tests.memory_processes", str(tmp_path), "20", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lost"] == [] and found["torn"] == [] and found["faults"] == []
    assert found["kills"] == 20 and found["acknowledged"] >= 40 and found["reads"] > 20
    assert found["rows"] == CAPACITY
    assert done.stderr == ""


class Died(BaseException):
    """Stands for the end of the process: nobody may handle it, nothing after it reaches disk."""


CHANGES = {
    "append": lambda writer: writer.append(row_of(9)),
    "replace": lambda writer: writer.replace(1, row_of(9)),
    "evict": lambda writer: writer.commit(add=[row_of(9)], remove=[0]),
    "compact": lambda writer: writer.compact(),
    "limit": lambda writer: writer.limit(4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_death_at_every_step_leaves_the_old_memory_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    def numbers(folder: MemoryFolder) -> list[int]:
        contents = folder.contents()
        assert contents.faults == []
        return [contents.row(uid).info["value"] for uid in contents.uids]

    steps = 0
    outcomes = set()
    for step in range(100):
        folder, dead = MemoryFolder(tmp_path / f"{step}"), False
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda handle: None)
            counter = _die_at(patch, step)
            with folder.writer() as writer:
                for value in range(3):
                    writer.append(row_of(value))
            before = numbers(folder)
            try:
                with folder.writer() as writer:
                    counter.running = True
                    CHANGES[change](writer)
            except Died:
                dead = True
        counter.running = False
        after = numbers(MemoryFolder(folder.path))
        if dead:
            steps += 1
            outcomes.add(after == before)
            with folder.writer() as writer:
                assert numbers(folder) == after
                writer.append(row_of(7))
            assert sorted(numbers(folder)) == sorted([*after, 7])
            assert folder.verify() == []
            left = {p.name for p in (folder.path / "data").iterdir()}
            assert not any(name.endswith(".tmp") for name in left)
        else:
            break
    assert steps >= 5
    assert change in ("compact", "limit") or outcomes == {True, False}


class _Counter:
    """Counts what reaches the disk and, when the number is reached, lets nothing more through."""

    def __init__(self, step: int) -> None:
        self.step, self.running = step, False

    def __call__(self) -> None:
        if not self.running:
            return
        if self.step <= 0:
            raise Died
        self.step -= 1


def _die_at(patch: pytest.MonkeyPatch, step: int) -> _Counter:
    """Die before the given step of all steps that change the disk."""
    counter = _Counter(step)

    def guarded(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: object, **named: object) -> object:
            counter()
            return real(*arguments, **named)

        patch.setattr(module, name, call)

    guarded(os, "replace")
    guarded(os, "fsync")
    guarded(Path, "unlink")
    return counter


def test_what_a_manifest_names_is_on_the_disk_before_the_manifest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A kill does not reveal a missing fsync; a power cut does. So the order is checked."""
    folder, said = MemoryFolder(tmp_path / "m"), []
    with folder.writer() as writer:
        writer.append(row_of(0))
        real_sync, real_replace = os.fsync, os.replace

        def sync(handle: int) -> None:
            said.append(f"sync {_plain(os.readlink(f'/proc/self/fd/{handle}'))}")
            real_sync(handle)

        def rename(source: Path, target: Path) -> None:
            said.append(f"name {_plain(str(target))}")
            real_replace(source, target)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "replace", rename)
        writer.append(row_of(1))
    assert said == [
        "sync rows-00000002.safetensors",
        "name rows-00000002.safetensors",
        "sync data",
        "name manifest.previous.json",
        "sync manifest.json",
        "name manifest.json",
        "sync m",
    ]


def _plain(path: str) -> str:
    """The file's name, without what marks it as temporary."""
    name = Path(path).name
    return name.removeprefix(".").rsplit(".", 2)[0] if name.endswith(".tmp") else name
