"""What runs in a worker process: a chunk of rows that does what its pipe says.

Imports little, as each worker pays for it when it starts; what an environment needs comes with it.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np

from envs.parallel.chunk import Board, Chunk, ChunkError

SPAWN = multiprocessing.get_context("spawn")
"""A fresh interpreter: a fork would inherit the threads' locks of torch and MuJoCo, held."""
GRACE_S = 2.0
"""How long a worker may take to end when asked to, and then half of it after each signal."""


class SharedArray(NamedTuple):
    """Memory that can be handed to a worker when it starts; it has no name that could be left."""

    memory: Any
    shape: tuple[int, ...]
    kind: type

    @classmethod
    def zeros(cls, shape: tuple[int, ...], kind: type) -> SharedArray:
        """A new one."""
        size = math.prod(shape) * np.dtype(kind).itemsize
        return cls(SPAWN.RawArray("b", max(size, 1)), shape, kind)

    def array(self) -> np.ndarray:
        """A view of it."""
        return np.frombuffer(self.memory, self.kind, math.prod(self.shape)).reshape(self.shape)


def work(
    pipe: Connection, shared: dict[str, SharedArray], first: int, place: int, load: SharedArray
) -> None:
    """A worker's life: answer commands until told to close or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    board = Board(**{name: each.array() for name, each in shared.items()})
    loads: Any = ForkingPickler.loads  # pyright: ignore[reportAttributeAccessIssue]
    chunk = Chunk(board, first, place, lambda: loads(load.array().tobytes()))
    with contextlib.closing(chunk), contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            number, command = pipe.recv()
            if command == "close":
                return
            fault = None
            try:
                chunk.do(command)
            except ChunkError as error:
                fault = error
            pipe.send((number, fault))


def _end_with_parent() -> None:
    """End even if the pipe does not: a worker that hangs, or a fork of the parent that lives on."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive() and os.getppid() == parent.pid:
        parent.join(1.0)
    time.sleep(GRACE_S)  # for the environments to be closed
    os._exit(1)
