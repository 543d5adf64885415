"""Rows of Python environments in lock step: what all ways to run them share, and the simple one."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from envs.parallel.chunk import Board, Chunk, ChunkError, RowEnv
from envs.task import TaskError


class RowError(TaskError):
    """A row that failed: its task, index, step and seed, what happened and the likely cause.

    ``traceback`` is the original one as text (it ends the message too), empty where there is none.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(f"{message}\n\n{traceback}".rstrip())
        self.traceback = traceback


@dataclasses.dataclass
class Outcomes:
    """What one step of all n rows gave; the arrays are the caller's to keep."""

    obs: np.ndarray
    """``[n, O]``."""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    diverged: np.ndarray
    success: np.ndarray


class Rows(ABC):
    """n environments in lock step; after a failure they are closed and every call says so."""

    def __init__(self, labels: Sequence[str], n: int, board: Board) -> None:
        if not n or len(labels) != n:
            raise TaskError(f"{n} makers and {len(labels)} labels; give one of each per row")
        self._labels, self._board, self._closed = list(labels), board, ""
        self._steps = -1  # since the reset, of which there was none

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every row, each with its seed; a copy of obs ``[n, O]``."""
        self._must_be_open()
        if len(seeds) != len(self._labels):
            raise TaskError(f"{len(seeds)} seeds for {len(self._labels)} rows; give one for each")
        self._board.seeds[:] = seeds
        self._steps = 0
        with self._closing_on_failure():
            self._carry_out("reset")
        return self._board.obs.copy()

    def step(self, actions: np.ndarray, running: np.ndarray) -> Outcomes:
        """Apply ``actions [n, A]`` to the rows for which ``running [n]`` is True.

        The others keep their last observation, with reward 0 and no flags.
        """
        self._must_be_open()
        if self._steps < 0:
            raise TaskError("step() before reset(): start an episode first")
        board, running = self._board, np.asarray(running)
        if running.shape != board.running.shape or running.dtype != bool:
            raise TaskError(
                f"running is {running.dtype} {running.shape}, expected bool {board.running.shape}"
            )
        self._put(np.asarray(actions, dtype=np.float64))
        board.running[:], board.reward[:], board.flags[:] = running, 0.0, False
        self._steps += 1
        with self._closing_on_failure():
            self._carry_out("step")
        return Outcomes(board.obs.copy(), board.reward.copy(), *board.flags.copy())

    @abstractmethod
    def close(self) -> None:
        """Close the environments; a second call does nothing."""

    @abstractmethod
    def _carry_out(self, command: str) -> None:
        """Have every row do it; a :class:`RowError` if one fails."""

    def _put(self, actions: np.ndarray) -> None:
        expected = self._board.actions.shape
        if actions.shape != expected:
            raise TaskError(f"actions have the shape {actions.shape}, expected {expected}")
        self._board.actions[:] = actions

    @contextlib.contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # Ctrl-C too: half a step must not pass for a whole one
            first_line = str(error).partition("\n")[0]
            self._closed = f"closed after an earlier failure: {first_line or type(error).__name__}"
            self.close()
            raise

    def _must_be_open(self) -> None:
        if self._closed:
            raise TaskError(self._closed)

    def _error(self, fault: ChunkError, rows: Sequence[int]) -> RowError:
        """The error of one of these rows, or of all of them where it is not known which."""
        row = rows[0] if fault.row is None else fault.row
        who = f"row {row}" if fault.row is not None else f"rows {rows[0]} to {rows[-1]}, the first"
        when = "while being made"
        if self._steps >= 0:
            reset = "" if self._steps else " (reset)"
            when = f"step {self._steps}{reset}, seed {self._board.seeds[row]}"
        text = f"{who} (task {self._labels[row]!r}), {when}: {fault.what}"
        return RowError(f"{text}\nLikely cause: {fault.cause}.", fault.traceback)


class SerialRows(Rows):
    """The environments one after the other in this process: simple, and easy to debug.

    One that hangs or ends its process takes this one along; ``WorkerRows`` do not.
    """

    def __init__(
        self, makers: Sequence[Callable[[], RowEnv]], labels: Sequence[str], obs_size: int
    ) -> None:
        layout = Board.layout(len(makers), obs_size, action_size=0, processes=1)
        super().__init__(
            labels, len(makers), Board(**{name: np.zeros(*form) for name, form in layout.items()})
        )
        self._chunk = Chunk(self._board, 0, 0, lambda: makers)
        self.envs: list[RowEnv] = self._chunk.envs
        """The environments, row by row."""
        with self._closing_on_failure():
            self._carry_out("make")

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        self._closed = self._closed or "closed: open new ones to go on"
        self._chunk.close()

    def _put(self, actions: np.ndarray) -> None:
        if actions.ndim == 2 and not self._board.actions.size:  # the first ones tell A
            self._board.actions = np.zeros((len(self._labels), actions.shape[1]))
        super()._put(actions)

    def _carry_out(self, command: str) -> None:
        try:
            self._chunk.do(command)
        except ChunkError as fault:
            raise self._error(fault, range(len(self._labels))) from fault.__cause__
