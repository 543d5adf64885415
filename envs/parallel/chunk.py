"""Environments of consecutive rows in one process, and the check on all that comes out of them.

A row is one environment with a task written into it. What it returns is read here and nowhere else,
in the parent (``parallel/rows.py``) as in a worker process (``parallel/workers.py``): both give
equal data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from envs.param import TaskError

_log = logging.getLogger("engram.rows")
# A longer message or traceback is cut: together they have to fit into a pipe at once.
_MOST_CHARACTERS = (1_000, 8_000)


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


@dataclasses.dataclass
class Board:
    """The arrays through which n rows are commanded and read; shared memory if there are workers.

    ``at [processes]`` is the row that each process has in hand, -1 for none: it outlives them.
    """

    obs: np.ndarray
    reward: np.ndarray
    flags: np.ndarray
    """``[4, n]``: terminated, truncated, diverged, success."""
    actions: np.ndarray
    running: np.ndarray
    seeds: np.ndarray
    at: np.ndarray

    @staticmethod
    def layout(
        n: int, obs_size: int, action_size: int, processes: int
    ) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and type of each array."""
        return {
            "obs": ((n, obs_size), np.float64),
            "reward": ((n,), np.float64),
            "flags": ((4, n), np.bool_),
            "actions": ((n, action_size), np.float64),
            "running": ((n,), np.bool_),
            "seeds": ((n,), np.int64),
            "at": ((processes,), np.int64),
        }


class ChunkError(Exception):
    """What went wrong in a row (None: in none of them), as text, which any process can be sent."""

    def __init__(self, row: int | None, what: str, cause: str, traceback: str = "") -> None:
        what, traceback = what[: _MOST_CHARACTERS[0]], traceback[-_MOST_CHARACTERS[1] :]
        super().__init__(row, what, cause, traceback)
        self.row, self.what, self.cause, self.traceback = self.args

    @classmethod
    def of(cls, error: BaseException, row: int | None, cause: str) -> ChunkError:
        """An exception as text: not each can be pickled, nor built again from its arguments."""
        what = "".join(traceback.format_exception_only(error)).strip()
        return cls(row, what, cause, "".join(traceback.format_exception(error)))


class _RefusedError(Exception):
    """A result that is not used: (what it is, likely cause)."""


class Chunk:
    """The environments of the rows from ``first`` on, one after the other in this process."""

    def __init__(
        self,
        board: Board,
        first: int,
        process: int,
        load: Callable[[], Sequence[Callable[[], RowEnv]]],
    ) -> None:
        self.envs: list[RowEnv] = []
        self._board, self._first, self._load = board, first, load
        self._at = board.at[process : process + 1]
        self._at[:] = -1

    def do(self, command: str) -> None:
        """Carry out "make", "reset" or "step" in every row; a :class:`ChunkError` if one fails."""
        {"make": self._make, "reset": self._reset, "step": self._step}[command]()

    def close(self) -> None:
        """Close every environment. A failure is logged: no data depends on it any more."""
        while self.envs:
            row = self._first + len(self.envs) - 1
            try:
                self.envs.pop().close()
            except (Exception, SystemExit) as error:  # whatever a user's code may raise
                _log.warning("row %d: close() failed: %r", row, error)

    def _make(self) -> None:
        cause = (
            "a wrong argument or a missing package; a worker process knows only what the modules "
            "of the environment itself import and register"
        )
        with self._faults(cause):
            for row, maker in enumerate(self._load(), self._first):
                self._at[0] = row
                self.envs.append(maker())

    def _reset(self) -> None:
        obs, seeds = self._board.obs, self._board.seeds
        with self._faults():
            for row, env in enumerate(self.envs, self._first):
                self._at[0] = row
                obs[row] = _numbers("the observation", env.reset(int(seeds[row])), obs.shape[1:])

    def _step(self) -> None:
        board, shape = self._board, self._board.obs.shape[1:]
        actions, running = board.actions.copy(), board.running.tolist()
        with self._faults():
            for row, env in enumerate(self.envs, self._first):
                if running[row]:
                    self._at[0] = row
                    obs, reward, flags = _checked(env.step(actions[row]), shape)
                    board.obs[row], board.reward[row] = obs, reward
                    if True in flags:  # they are all False before a step
                        board.flags[:, row] = flags

    @contextlib.contextmanager
    def _faults(self, cause: str = "an error in the environment's own code") -> Iterator[None]:
        try:
            yield
        except _RefusedError as error:
            raise ChunkError(self._row, *error.args) from error
        except TaskError as error:  # ours, which speaks for itself
            raise ChunkError(self._row, str(error), "a setting of the family") from error
        except (Exception, SystemExit) as error:  # whatever a user's code may raise
            raise ChunkError.of(error, self._row, cause) from error
        self._at[0] = -1

    @property
    def _row(self) -> int | None:
        return None if self._at[0] < 0 else int(self._at[0])


def _checked(outcome: Any, shape: tuple[int, ...]) -> tuple[Any, Any, list[bool]]:
    """Observation, reward and flags; what is wrong is refused, never broadcast nor passed on."""
    if not isinstance(outcome, Outcome):
        what = "None" if outcome is None else f"a {type(outcome).__name__}"
        cause = "a missing `return`" if outcome is None else "a step() of another interface"
        raise _RefusedError(f"step() gave {what}, expected an Outcome", cause)
    flags = [_flag(name, getattr(outcome, name)) for name in Outcome._fields[2:]]
    if flags[2]:  # diverged: the rest is void, whatever it is
        return 0.0, 0.0, flags
    obs, reward = _numbers("the observation", outcome.obs, shape), outcome.reward
    if not (isinstance(reward, float) and math.isfinite(reward)):  # the usual one is quick
        reward = _numbers("the reward", reward, ())
    return obs, reward, flags


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if value is None:
        raise _RefusedError(f"{name} is None", "a missing `return`")
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        cause = "text, objects or lists of unequal lengths among the numbers"
        raise _RefusedError(f"{name} is not made of real numbers: {value!r:.200}", cause)
    if array.shape != shape:
        cause = "a size that changes between tasks or steps, or a space that was declared wrongly"
        raise _RefusedError(f"{name} has the shape {array.shape}, expected {shape}", cause)
    if array.dtype != np.float64:
        with np.errstate(over="ignore"):  # what overflows is refused below
            array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        where = "".join(f"[{i}]" for i in np.argwhere(~finite)[0])
        cause = "a simulation that blew up (report it with diverged=True) or a division by zero"
        raise _RefusedError(f"{name}{where} is {array[~finite][0]}", cause)
    return array


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer) and value in (0, 1):
        return bool(value)
    raise _RefusedError(f"{name} is {value!r:.200}, expected a bool", "values in a wrong order")
