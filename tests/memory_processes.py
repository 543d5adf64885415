"""Writers that are killed and readers that watch, in processes of their own.

``python -m tests.memory_processes FOLDER KILLS SEED`` prints what happened as JSON. Two writers
take turns at a memory of fixed capacity; one of them, drawn by lot, is killed again and again, at
a random moment. Each notes what it is about to do, and then that it is done (acknowledged); the
next one to get the lock compares the memory with the notes. Every row holds a number of its own
and is checked to the bit against it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from agent.memory.files import MemoryFolder
from tests.rows_on_disk import row_of, same

CAPACITY = 12


def held(folder: MemoryFolder) -> set[int]:
    """The numbers of all rows, each checked; raises if anything is wrong with any of them."""
    contents = folder.contents()
    found = [contents.row(uid) for uid in contents.uids]
    if contents.faults or not all(same(row, row_of(row.info["value"])) for row in found):
        raise ValueError(f"torn: {contents.faults}")
    numbers = {row.info["value"] for row in found}
    if len(numbers) != len(found):
        raise ValueError("a row twice")
    return numbers


def replayed(notes: list[list]) -> tuple[set[int], set[int]]:
    """What the memory must hold by the notes: without and with what was begun last."""
    state: set[int] = set()
    begun: set[int] | None = None
    for kind, *values in notes:
        if kind == "begin":
            gone, come = values
            begun = (state - set(gone)) | set(come)
        elif kind == "done" and begun is not None:
            state, begun = begun, None
        elif kind == "found":  # settles whether what a killed writer had begun was done
            state, begun = set(values[0]), None
    return state, state if begun is None else begun


def read_notes(path: Path) -> list[list]:
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [json.loads(line) for line in lines if line]


def write(folder: MemoryFolder, notes: Path, seed: int) -> None:
    """Turns of a few commits each, for ever."""
    rng, log = random.Random(seed), os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(*words: object) -> None:
        os.write(log, json.dumps(words).encode() + b"\n")

    while True:
        with folder.writer(capacity=CAPACITY, wait_s=60.0) as writer:
            before, numbers = replayed(read_notes(notes)), held(folder)
            if numbers not in before:
                note("lost", sorted(numbers), [sorted(state) for state in before])
            note("found", sorted(numbers))
            uids = {folder.contents().row(uid).info["value"]: uid for uid in writer.uids}
            for _ in range(rng.randint(1, 6)):
                new, old = rng.getrandbits(40), rng.choice([*uids]) if uids else None
                if len(uids) < CAPACITY and rng.random() < 0.7:
                    old = None
                note("begin", [] if old is None else [old], [new])
                if old is None:
                    uids[new] = writer.append(row_of(new))
                elif rng.random() < 0.5:
                    uids[new] = uids.pop(old)
                    writer.replace(uids[new], row_of(new))
                else:
                    uids[new] = writer.commit(add=[row_of(new)], remove=[uids.pop(old)])[0]
                note("done")
            if rng.random() < 0.3:
                writer.compact()
        time.sleep(rng.random() * 0.002)


def watch(folder: MemoryFolder, out: Path) -> None:
    """Read for ever; how often, how many rows, and what was wrong. A full memory stays full."""
    reads = rows = most = 0
    faults: list[str] = []
    while True:
        try:
            numbers = len(held(folder))
            if numbers > CAPACITY or numbers < most:
                faults.append(f"{numbers} rows after {most}")
            reads, rows, most = reads + 1, rows + numbers, max(most, numbers)
        except Exception as error:  # whatever it is, it must not have happened
            faults.append(repr(error))
        temporary = out.with_suffix(".tmp")
        temporary.write_text(json.dumps({"reads": reads, "rows": rows, "faults": faults[:5]}))
        os.replace(temporary, out)


def forked(job: Callable[[], None]) -> int:
    """A process that does the job; it ends without cleaning up."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException as error:
            print(f"{error!r}", file=sys.stderr)
        os._exit(1)
    return pid


def main(path: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill writers; the figures."""
    torch.set_num_threads(1)
    folder, notes, rng = MemoryFolder(path / "memory"), path / "notes", random.Random(seed)
    started = time.monotonic()
    with folder.writer(capacity=CAPACITY):
        pass
    outs = [path / f"reader{i}" for i in range(2)]
    readers = [forked(lambda out=out: watch(folder, out)) for out in outs]
    writers = [forked(lambda s=s: write(folder, notes, s)) for s in (seed + 1, seed + 2)]

    def done() -> int:
        return notes.read_bytes().count(b'["done"]') if notes.exists() else 0

    for kill in range(kills):
        wanted, deadline = done() + 2, time.monotonic() + 20.0
        while done() < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.03 * rng.random())
        chosen = rng.randrange(2)
        os.kill(writers[chosen], signal.SIGKILL)
        os.waitpid(writers[chosen], 0)
        number = seed + 3 + kill
        writers[chosen] = forked(lambda s=number: write(folder, notes, s))
    for pid in (*writers, *readers):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with folder.writer(wait_s=1.0):
        said = read_notes(notes)
        lost = [n for n in said if n[0] == "lost"]
        if held(folder) not in replayed(said):
            lost.append(["lost", "at the end"])
    commits = [n[0] for n in said if n[0] in ("begin", "done")]
    interrupted = commits.count("begin") - commits.count("done")
    seen = [json.loads(out.read_text()) for out in outs]
    return {
        "kills": kills,
        "interrupted_commits": interrupted,
        "acknowledged": commits.count("done"),
        "lost": lost,
        "reads": sum(s["reads"] for s in seen),
        "rows_read": sum(s["rows"] for s in seen),
        "torn": [fault for s in seen for fault in s["faults"]],
        "rows": len(held(folder)),
        "faults": folder.verify(),
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
