"""T x E Python environments in lock step, in this process or in workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.parallel.chunk import RowEnv
from envs.parallel.rows import Rows, SerialRows
from envs.parallel.workers import WorkerRows
from envs.vector_tasks import VectorTasks

if TYPE_CHECKING:
    from envs.task import Task, TaskDistribution


def open_rows(
    makers: Sequence[Callable[[], RowEnv]],
    labels: Sequence[str],
    family: TaskDistribution,
    workers: int,
    deadline_s: float,
) -> Rows:
    """The rows of a family: in this process, or in so many worker processes."""
    if workers == 1:
        return SerialRows(makers, labels, family.raw_obs_size)
    return WorkerRows(
        makers,
        labels,
        family.raw_obs_size,
        workers=workers,
        action_size=family.action_size,
        deadline_s=deadline_s,
    )


class RowTasks(VectorTasks):
    """T x E environments, each stepped until its episode ends and not once more.

    The place of an ended episode then returns its last observation, reward 0 and neither
    ``terminated`` nor ``truncated``. An episode that diverges is truncated there, with reward 0.
    """

    def __init__(self, tasks: Sequence[Task], copies: int, horizon: int, rows: Rows) -> None:
        self.tasks, self.copies, self.physics_s = list(tasks), copies, 0.0
        self._horizon, self._steps, self._rows = horizon, 0, rows
        self._ended = np.ones(len(tasks) * copies, dtype=bool)
        self._diverged, self._success = np.zeros((2, len(tasks) * copies), dtype=bool)

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every environment, each with a seed of its own."""
        seeds = self.own(np.random.SeedSequence(seed).generate_state(self.rows_drawn))
        obs = self._rows.reset([int(each) for each in seeds])
        self._steps = 0
        self._ended[:] = self._diverged[:] = self._success[:] = False
        return self._shaped(obs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of every environment whose episode still runs."""
        running = ~self._ended
        started = time.perf_counter()
        now = self._rows.step(action.reshape(len(running), -1), running)
        self.physics_s += time.perf_counter() - started
        self._steps += 1
        self._diverged |= now.diverged
        self._success |= now.success
        late = self._steps >= self._horizon
        truncated = now.truncated | now.diverged | (running & late)
        self._ended |= now.terminated | truncated
        return (
            self._shaped(now.obs),
            self._shaped(now.reward),
            self._shaped(now.terminated),
            self._shaped(truncated),
        )

    @property
    def diverged(self) -> np.ndarray:
        """``[T, E]``: physics that blew up since the last reset."""
        return self._shaped(self._diverged)

    @property
    def success(self) -> np.ndarray | None:
        """``[T, E]``: episodes that have succeeded at any step since the last reset."""
        return self._shaped(self._success)

    @property
    def envs(self) -> Sequence[Any]:
        """The environments row by row, where they run in this process one by one."""
        return self._rows.envs if isinstance(self._rows, SerialRows) else []

    def look(self, row: int) -> tuple[Any, Any] | np.ndarray | None:
        """What a camera needs of one row; nothing is to be seen of environments in workers."""
        return self.envs[row].look() if self.envs else None

    def close(self) -> None:
        """Close every environment."""
        self._rows.close()

    def _shaped(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(self.tasks), self.copies, *rows.shape[1:]).copy()
