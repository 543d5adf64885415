"""T x E Gymnasium environments in lock step: in this process, in workers, or vectorised already."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from envs.gym_env import TaskEnv
from envs.gym_vector import VectorRows
from envs.rows import Rows, SerialRows
from envs.vector_tasks import VectorTasks
from envs.workers import WorkerRows

if TYPE_CHECKING:
    from envs.gym_tasks import GymTasks
    from envs.task import Task


def make_row(family: GymTasks, values: Mapping[str, float]) -> TaskEnv:
    """``family.make(values)``, in a form that can be sent to a worker process."""
    return family.make(values)


def open_rows(family: GymTasks, tasks: Sequence[Task], copies: int) -> Rows:
    """Environments for ``copies`` episodes of each task, task by task."""
    labels = [family.label(task) for task in tasks for _ in range(copies)]
    obs_size = family.raw_obs_size  # first of all, for errors are plainer here than in workers
    if family.vectorized:
        return VectorRows(family, [task.values for task in tasks], copies, labels)
    makers = [
        functools.partial(make_row, family, dict(task.values))
        for task in tasks
        for _ in range(copies)
    ]
    if family.workers == 1:
        return SerialRows(makers, labels, obs_size)
    return WorkerRows(
        makers,
        labels,
        obs_size,
        workers=family.workers,
        action_size=family.action_size,
        deadline_s=family.deadline_s,
    )


class GymVectorTasks(VectorTasks):
    """T x E environments, each stepped until its episode ends and not once more.

    The place of an ended episode then returns its last observation, reward 0 and neither
    ``terminated`` nor ``truncated``. An episode that diverges is truncated there, with reward 0.
    """

    def __init__(self, family: GymTasks, tasks: Sequence[Task], copies: int) -> None:
        self.tasks, self.copies, self.physics_s = list(tasks), copies, 0.0
        self._family, self._steps, n = family, 0, len(tasks) * copies
        self._rows = open_rows(family, tasks, copies)
        self._ended = np.ones(n, dtype=bool)
        self._diverged, self._success = np.zeros((2, n), dtype=bool)

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every environment, each with a seed of its own."""
        seeds = np.random.SeedSequence(seed).generate_state(len(self._ended))
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
        late = self._steps >= self._family.horizon
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
        """``[T, E]``: MuJoCo physics that blew up. Elsewhere what is not finite is an error."""
        return self._shaped(self._diverged)

    @property
    def success(self) -> np.ndarray | None:
        """``[T, E]``: episodes that ``info`` has called solved; None where it does not tell."""
        return self._shaped(self._success) if self._family.reports_success else None

    @property
    def envs(self) -> list[gymnasium.Env]:
        """The environments that run in this process one by one, in their wrappers."""
        return [row.env for row in self._task_envs()]

    def look(self, row: int) -> tuple[Any, Any] | np.ndarray | None:
        """What a camera needs of one row; nothing is to be seen of environments in workers."""
        if isinstance(self._rows, VectorRows):
            return self._rows.look(row)
        envs = self._task_envs()
        return envs[row].look() if envs else None

    def close(self) -> None:
        """Close every environment."""
        self._rows.close()

    def _task_envs(self) -> list[TaskEnv]:
        rows = self._rows.envs if isinstance(self._rows, SerialRows) else []
        return [row for row in rows if isinstance(row, TaskEnv)]

    def _shaped(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(self.tasks), self.copies, *rows.shape[1:]).copy()
