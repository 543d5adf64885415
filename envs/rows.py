"""Rows of Python environments in lock step, and the check on everything that comes out of one.

A row is one environment with a task written into it. What it returns is read in one place
(:class:`Chunk`), in this process or in a worker of ``envs/workers.py``, so both give the same data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from envs.task import TaskError

_log = logging.getLogger("engram.rows")
# A longer message of an environment is cut: it has to fit into a pipe at once.
_MOST_CHARACTERS = 8_000


class Outcome(NamedTuple):
    """What one step of one environment gave."""

    obs: np.ndarray
    """``[O]``."""
    reward: float
    terminated: bool
    truncated: bool
    diverged: bool
    """The simulation blew up: ``obs`` and ``reward`` are void and become zeros."""
    success: bool


class RowEnv(Protocol):
    """What a row needs of its environment."""

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode; equal seeds, equal starts. Obs ``[O]``."""
        ...

    def step(self, action: np.ndarray) -> Outcome:
        """Apply ``action [A]``, which is the environment's to keep."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class RowError(TaskError):
    """A row that failed; names its task, index, step and seed, what happened and the likely cause.

    ``traceback`` is the original one as text, empty where there is none.
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


@dataclasses.dataclass
class Board:
    """The arrays through which rows are commanded and read; shared memory where there are workers.

    ``at [W]`` is the row that each process has in hand, -1 for none: it outlives the process.
    """

    obs: np.ndarray
    reward: np.ndarray
    flags: np.ndarray
    """``[4, n]``: terminated, truncated, diverged, success."""
    actions: np.ndarray
    running: np.ndarray
    seeds: np.ndarray
    at: np.ndarray


class Fault(Exception):
    """What went wrong in a row (None: before any row), in words that can cross to a process."""

    def __init__(self, row: int | None, what: str, cause: str, traceback: str = "") -> None:
        super().__init__(row, what[:_MOST_CHARACTERS], cause, traceback[-_MOST_CHARACTERS:])
        self.row, self.what, self.cause, self.traceback = self.args

    @classmethod
    def of(cls, error: BaseException, row: int | None, cause: str) -> Fault:
        """An exception as text: not every exception can be sent to another process."""
        what = "".join(traceback.format_exception_only(error)).strip()
        return cls(row, what, cause, "".join(traceback.format_exception(error)))


class _RefusedError(Exception):
    """A result that is not used: (what it is, likely cause)."""


class Chunk:
    """Environments of consecutive rows, stepped one after the other in this process."""

    def __init__(self, board: Board, first: int, place: int) -> None:
        self.envs: list[RowEnv] = []
        self._board, self._first, self._at = board, first, board.at[place : place + 1]

    def make(self, makers: Sequence[Callable[[], RowEnv]]) -> None:
        """Build the environments."""
        cause = (
            "a wrong argument or a package that is missing; a worker process knows only what the "
            "environment's own module imports and registers"
        )
        for i, maker in enumerate(makers):
            with self._faults(self._first + i, cause):
                self.envs.append(maker())

    def reset(self) -> None:
        """Start an episode in every row."""
        for row, env in enumerate(self.envs, self._first):
            with self._faults(row):
                obs = env.reset(int(self._board.seeds[row]))
                self._board.obs[row] = _numbers("the observation", obs, self._board.obs.shape[1:])

    def step(self) -> None:
        """Step the rows that run; those that do not are left as they are."""
        board = self._board
        for row, env in enumerate(self.envs, self._first):
            if board.running[row]:
                with self._faults(row):
                    outcome = env.step(board.actions[row].copy())
                    obs, reward, flags = _checked(outcome, board.obs.shape[1])
                    board.obs[row], board.reward[row], board.flags[:, row] = obs, reward, flags

    def close(self) -> None:
        """Close every environment; one that fails at it is logged, for its data is not affected."""
        while self.envs:
            row = self._first + len(self.envs) - 1
            try:
                self.envs.pop().close()
            except (Exception, SystemExit) as error:  # whatever a user's code may raise
                _log.warning("row %d: close() failed: %r", row, error)

    @contextlib.contextmanager
    def _faults(self, row: int, cause: str = "an error in the environment's own code") -> Iterator:
        self._at[0] = row
        try:
            yield
        except _RefusedError as error:
            raise Fault(row, *error.args) from error
        except (Exception, SystemExit) as error:  # whatever a user's code may raise
            raise Fault.of(error, row, cause) from error
        self._at[0] = -1


def _checked(outcome: Any, obs_size: int) -> tuple[Any, Any, list[bool]]:
    """Observation, reward and flags of a step; a wrong one is refused, never broadcast or kept."""
    if not isinstance(outcome, Outcome):
        cause = "a missing `return`" if outcome is None else "a tuple of another kind"
        what = "None" if outcome is None else f"a {type(outcome).__name__}"
        raise _RefusedError(f"step() returned {what}, expected an Outcome", cause)
    flags = [_flag(name, getattr(outcome, name)) for name in Outcome._fields[2:]]
    if flags[2]:  # diverged: the rest is void, whatever it is
        return 0.0, 0.0, flags
    obs = _numbers("the observation", outcome.obs, (obs_size,))
    return obs, _numbers("the reward", outcome.reward, ()), flags


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if value is None:
        raise _RefusedError(f"{name} is None", "a missing `return`")
    try:
        array = np.asarray(value)
    except ValueError:  # nested lists of unequal lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        cause = "text, objects or unequal lengths among the numbers"
        raise _RefusedError(f"{name} is not an array of real numbers: {value!r:.200}", cause)
    if array.shape != shape:
        cause = "it changes its size between tasks or steps, or the space that was declared is not"
        raise _RefusedError(
            f"{name} has the shape {array.shape}, expected {shape}", f"{cause} what it returns"
        )
    with np.errstate(over="ignore"):  # what overflows is refused here
        array = array.astype(np.float64, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        where = "".join(f"[{i}]" for i in np.argwhere(~finite)[0])
        cause = "a simulation that blew up or a division by zero; report it with diverged=True"
        raise _RefusedError(f"{name}{where} is {array[~finite][0]}", cause)
    return array


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biu" or array not in (0, 1):
        raise _RefusedError(f"{name} is {value!r:.200}, expected a bool", "a value in its place")
    return bool(array)


class Rows(ABC):
    """n environments in lock step; after a failure they are closed and every call says so."""

    def __init__(self, labels: Sequence[str], rows: int, board: Board) -> None:
        if not rows or len(labels) != rows:
            raise TaskError(f"{rows} makers with {len(labels)} labels; give both for each row")
        self._labels, self._board, self._closed = list(labels), board, ""
        self._steps = -1  # none before the first reset

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every row, each with its seed; a copy of obs ``[n, O]``."""
        self._must_be_open()
        if len(seeds) != len(self._labels):
            raise TaskError(f"{len(seeds)} seeds for {len(self._labels)} rows; give one for each")
        self._board.seeds[:] = seeds
        self._steps = 0
        self._do("reset")
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
        self._do("step")
        return Outcomes(board.obs.copy(), board.reward.copy(), *board.flags.copy())

    @abstractmethod
    def close(self) -> None:
        """Close the environments; a second call does nothing."""

    @abstractmethod
    def _carry_out(self, command: str) -> None:
        """Have all rows do it; a :class:`RowError` if one fails."""

    def _put(self, actions: np.ndarray) -> None:
        expected = self._board.actions.shape
        if actions.shape != expected:
            raise TaskError(f"actions have the shape {actions.shape}, expected {expected}")
        self._board.actions[:] = actions

    def _do(self, command: str) -> None:
        try:
            self._carry_out(command)
        except BaseException as error:  # Ctrl-C too: half a step must not pass for a whole one
            first_line = str(error).partition("\n")[0]
            self._closed = f"closed after an earlier failure: {first_line or type(error).__name__}"
            self.close()
            raise

    def _must_be_open(self) -> None:
        if self._closed:
            raise TaskError(self._closed)

    def _error(self, fault: Fault, rows: Sequence[int]) -> RowError:
        """The error of one of these rows, or of all of them where it is not known which."""
        if fault.row is None:
            who = f"rows {rows[0]} to {rows[-1]} (from {self._labels[rows[0]]!r})"
        else:
            who = f"row {fault.row} ({self._labels[fault.row]!r})"
        when = "while being made"
        if self._steps >= 0:
            seed = self._board.seeds[rows[0] if fault.row is None else fault.row]
            when = f"step {self._steps}{'' if self._steps else ' (reset)'}, seed {seed}"
        text = f"{who}, {when}: {fault.what}\nLikely cause: {fault.cause}."
        return RowError(text, fault.traceback)


class SerialRows(Rows):
    """The environments one after the other in this process.

    Simple and easy to debug, but an environment that hangs or ends its process takes this one along
    (see ``WorkerRows``).
    """

    def __init__(
        self, makers: Sequence[Callable[[], RowEnv]], labels: Sequence[str], obs_size: int
    ) -> None:
        n = len(makers)
        board = Board(
            obs=np.zeros((n, obs_size)),
            reward=np.zeros(n),
            flags=np.zeros((4, n), dtype=bool),
            actions=np.zeros((n, 0)),
            running=np.zeros(n, dtype=bool),
            seeds=np.zeros(n, dtype=np.int64),
            at=np.zeros(1, dtype=np.int64),
        )
        super().__init__(labels, n, board)
        self._makers, self._chunk = makers, Chunk(board, 0, 0)
        self.envs = self._chunk.envs
        """The environments, row by row."""
        self._do("make")

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        self._closed = self._closed or "closed: open new ones to go on"
        self._chunk.close()

    def _put(self, actions: np.ndarray) -> None:
        if actions.ndim == 2 and not self._board.actions.shape[1]:  # the first ones tell A
            self._board.actions = np.zeros((len(self._labels), actions.shape[1]))
        super()._put(actions)

    def _carry_out(self, command: str) -> None:
        try:
            if command == "make":
                self._chunk.make(self._makers)
            elif command == "reset":
                self._chunk.reset()
            else:
                self._chunk.step()
        except Fault as fault:
            raise self._error(fault, range(len(self._labels))) from fault.__cause__
