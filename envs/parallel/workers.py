"""Rows of Python environments in worker processes: as many as there are cores, faults contained.

Each worker steps a chunk of consecutive rows, because a message between processes costs more than a
step of most environments. With a process per environment (gymnasium's AsyncVectorEnv) each step of
each environment pays for one, and for being scheduled; with chunks a step of all rows costs one
message per worker. Processor time per step of 16 HalfCheetah-v5 on 2 busy cores: 46 us in one
process, 75 us with 2 workers, 375 us with 16, 238 us in AsyncVectorEnv.

Observations, actions, rewards and flags are in shared memory, which has no name that could leak.
Messages only say what to do and what went wrong; each carries a number, and an answer with another
number than the question is never read. A worker that fails ends them all: what is left of a step is
nobody's data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from envs.parallel.chunk import Board, ChunkError, Outcome, RowEnv
from envs.parallel.rows import Outcomes, RowError, Rows, SerialRows
from envs.parallel.worker_process import GRACE_S, SPAWN, SharedArray, work
from envs.task import TaskError

__all__ = ["Outcome", "Outcomes", "RowEnv", "RowError", "SerialRows", "WorkerRows"]

_LOOK_S = 0.2
# How often the living are counted: a dead worker's pipe ends at once, unless its child lives on.
_THREADS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"]
_starting = threading.Lock()


@dataclasses.dataclass
class _Worker:
    place: int
    rows: range
    process: Any
    pipe: Connection
    makers: SharedArray
    """Held here, or the next worker's would be written over them before this one has read them."""


class WorkerRows(Rows):
    """The environments in ``workers`` processes, each of which steps a chunk of consecutive rows.

    ``makers`` must be picklable. The script that opens these rows is not run again in the workers
    (it needs no ``if __name__ == "__main__":``), unless a maker is defined in it. A failure of any
    kind is one :class:`RowError`, about ``deadline_s`` after the call at the latest, and the end of
    all workers.
    """

    deadline_s: float
    """Longest time that making, resetting or stepping all rows may take, in seconds."""

    def __init__(
        self,
        makers: Sequence[Callable[[], RowEnv]],
        labels: Sequence[str],
        obs_size: int,
        *,
        workers: int,
        action_size: int,
        deadline_s: float,
    ) -> None:
        if workers < 1 or not deadline_s > 0:
            raise TaskError(f"workers={workers}, deadline_s={deadline_s}: both must be above 0")
        n = len(makers)
        bounds = [n * i // workers for i in range(workers + 1)]
        chunks = [range(*ends) for ends in itertools.pairwise(bounds) if ends[0] < ends[1]]
        layout = Board.layout(n, obs_size, action_size, processes=len(chunks))
        shared = {name: SharedArray.zeros(*form) for name, form in layout.items()}
        super().__init__(labels, n, Board(**{name: each.array() for name, each in shared.items()}))
        self.deadline_s = deadline_s
        self._sequence = 0
        self._workers: list[_Worker] = []
        # Runs too when these rows are dropped and when the interpreter ends.
        self._end = weakref.finalize(self, _end, self._workers, os.getpid())
        self._board.at[:] = -1
        with self._closing_on_failure():
            for place, rows in enumerate(chunks):
                self._start(place, rows, makers[rows.start : rows.stop], shared)
            self._carry_out("make")

    def close(self) -> None:
        """End the workers, by force where needed; a second call does nothing."""
        self._closed = self._closed or "closed: open new ones to go on"
        self._end()

    def _start(self, place: int, rows: range, makers: Any, shared: dict[str, SharedArray]) -> None:
        try:
            written = ForkingPickler.dumps(makers)
        except Exception as error:  # whatever a user's __reduce__ may raise
            cause = "a maker that holds a lambda, a local function or an open resource"
            raise self._error(ChunkError.of(error, None, cause), rows) from error
        # In shared memory, for a pipe would block here if the worker did not read it.
        load = SharedArray.zeros((len(written),), np.uint8)
        load.array()[:] = written
        pipe, theirs = SPAWN.Pipe()
        process = SPAWN.Process(
            target=work,
            args=(theirs, shared, rows.start, place, load),
            name=f"engram rows {rows[0]} to {rows[-1]}",
            daemon=True,
        )
        try:
            with _lean_start(runs_script=b"__main__" in bytes(written)):
                process.start()
        except OSError as error:
            pipe.close()
            raise self._error(
                ChunkError.of(error, None, "too many processes or files"), rows
            ) from error
        finally:
            theirs.close()
        self._workers.append(_Worker(place, rows, process, pipe, load))

    def _carry_out(self, command: str) -> None:
        until = time.monotonic() + self.deadline_s
        self._sequence += 1
        for worker in self._workers:
            try:
                worker.pipe.send((self._sequence, command))
            except OSError:
                raise self._death(worker) from None
        waiting = {worker.pipe: worker for worker in self._workers}
        while waiting:
            ready = wait(list(waiting), min(max(until - time.monotonic(), 0.0), _LOOK_S))
            for pipe in ready:
                self._read(waiting.pop(pipe))  # pyright: ignore[reportArgumentType]
            if not ready:
                self._look_after(waiting.values(), until)

    def _read(self, worker: _Worker) -> None:
        try:
            number, fault = worker.pipe.recv()
        except (EOFError, OSError):
            raise self._death(worker) from None
        if number != self._sequence:
            what = f"answer {number} came to question {self._sequence}; it is not used"
            raise self._error(ChunkError(None, what, "calls from several threads"), worker.rows)
        if fault is not None:
            raise self._error(fault, worker.rows)

    def _look_after(self, waiting: Iterable[_Worker], until: float) -> None:
        for worker in waiting:
            if not worker.process.is_alive():
                raise self._death(worker)
        if time.monotonic() >= until:
            late = list(waiting)
            fault = self._fault(
                late[0],
                f"no answer within {self.deadline_s:g} s",
                "an environment that hangs, or a deadline that is too short for the "
                f"{len(late[0].rows)} rows of its worker",
            )
            for worker in late:
                worker.process.terminate()
            raise self._error(fault, late[0].rows)

    def _death(self, worker: _Worker) -> RowError:
        worker.process.join(GRACE_S)  # its pipe ends a little before it does
        code = worker.process.exitcode
        if code is not None and code < 0:
            what = f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
            out_of_memory = "too little memory, or a kill from outside"
            crash = "a crash in native code, or a kill from outside"
            cause = out_of_memory if -code == signal.SIGKILL else crash
        else:
            what = f"its process ended with exit code {code}"
            what = what if code is not None else "its pipe broke, though the process is there"
            cause = "os._exit(), or an error that stopped it, which is then on stderr"
        return self._error(self._fault(worker, what, cause), worker.rows)

    def _fault(self, worker: _Worker, what: str, cause: str) -> ChunkError:
        row = int(self._board.at[worker.place])
        return ChunkError(None if row < 0 else row, what, cause)


def _end(workers: list[_Worker], owner: int) -> None:
    """End all workers: first asked, then by SIGTERM, then by SIGKILL."""
    if os.getpid() != owner:  # a fork of the process that they belong to
        return
    try:
        for worker in workers:
            with contextlib.suppress(OSError):  # it has ended already
                worker.pipe.send((0, "close"))
        _join(workers, GRACE_S)
        for worker in workers:
            worker.process.terminate()
        _join(workers, GRACE_S / 2)
    finally:  # a second Ctrl-C comes here at once
        for worker in workers:
            worker.process.kill()
        _join(workers, GRACE_S / 2)
        for worker in workers:
            worker.pipe.close()
        workers.clear()


def _join(workers: list[_Worker], seconds: float) -> None:
    until = time.monotonic() + seconds
    for worker in workers:
        worker.process.join(max(until - time.monotonic(), 0.0))


@contextlib.contextmanager
def _lean_start(runs_script: bool) -> Iterator[None]:
    """What a process inherits that starts inside: one BLAS thread, and no script to run again.

    A spawned process runs the parent's script once more under another name. This costs what it
    imports (torch, for one) in every worker, and repeats what it does if nothing guards it.
    """
    with _starting:
        before = {name: os.environ.get(name) for name in _THREADS}
        script = sys.modules["__main__"]
        try:
            os.environ.update(dict.fromkeys(_THREADS, "1"))
            if not runs_script:
                sys.modules["__main__"] = types.ModuleType("__main__")
            yield
        finally:
            sys.modules["__main__"] = script
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
