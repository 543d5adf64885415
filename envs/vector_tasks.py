"""Simulators of a batch of tasks in lock step, and what stands between them and the agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.param import TaskError, apply_op

if TYPE_CHECKING:
    from envs.task import Task, TaskDistribution


class VectorTasks(ABC):
    """T x E simulators in lock step: whole episodes, no autoreset, terminated and truncated apart.

    A simulation that has ended keeps its place; the caller must mask what it returns afterwards.
    """

    tasks: Sequence[Task]
    copies: int
    """E, simulators per task."""
    physics_s: float
    """Wall seconds spent inside the simulator since it was opened."""
    first_row: int = 0
    """Which of the rows of the whole batch is the first of these."""
    whole: int | None = None
    """Rows of the whole batch, if others of them are simulated elsewhere."""

    def be_part(self, first_row: int, whole: int) -> None:
        """Be the rows from ``first_row`` on of ``whole`` T x E, which start as if all were here.

        ``reset`` then draws for ``rows_drawn`` rows and takes its ``own`` of them.
        """
        self.first_row, self.whole = first_row, whole

    @property
    def rows_drawn(self) -> int:
        """For how many rows a reset has to draw."""
        return len(self.tasks) * self.copies if self.whole is None else self.whole

    def own(self, drawn: np.ndarray) -> np.ndarray:
        """These rows' part of what was drawn for all, ``[rows_drawn, ...]``."""
        return drawn[self.first_row : self.first_row + len(self.tasks) * self.copies]

    @property
    def success(self) -> np.ndarray | None:
        """``[T, E]`` bool: episodes that have succeeded since the last reset; None: not defined."""
        return None

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every simulator; equal seeds, equal starts. Obs ``[T, E, O]``."""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Apply ``action [T, E, A]``; obs ``[T, E, O]``, reward, terminated, truncated."""

    @property
    @abstractmethod
    def diverged(self) -> np.ndarray:
        """``[T, E]`` bool: simulations that blew up since the last reset; their data is void."""

    def restart(
        self, rows: np.ndarray, tasks: Sequence[Task], rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """New episodes in ``rows [n]``, each of its own task and start; obs ``[n, O]``.

        Only with ``copies=1``, where every row is a task of its own. Vector environments that
        reset one row while others go on need it; the loops of this project do not.
        """
        raise TaskError(f"{type(self).__name__} cannot restart single simulations")

    def look(self, row: int) -> tuple[Any, Any] | np.ndarray | None:
        """What a camera needs of one row of T x E.

        MuJoCo's model and data, or pixels ``uint8 [height, width, 3]``, or None: nothing to see.
        """
        return None

    def close(self) -> None:  # noqa: B027 (most hold nothing to free)
        """Free what the simulators hold."""


def connect(family: TaskDistribution, simulators: VectorTasks) -> VectorTasks:
    """The simulators as the agent meets them: with its tasks' faults and visible parameters."""
    kinds = {t.partition(":")[0] for param in family.params.values() for t in param.targets}
    if family.visible or kinds & {"action", "obs"}:
        return ConnectedTasks(family, simulators)
    return simulators


class ConnectedTasks(VectorTasks):
    """Simulators whose motors, sensors or both are changed by task, and what the agent is told.

    ``action:INDEX`` targets change an entry of the action before the simulator gets it (scale by
    -1: reversed, 0.2: weak, 0: dead); ``obs:INDEX`` targets an entry of the observation (0:
    masked). The parameters that are not hidden are appended to the observation, their ranges
    scaled to [-1, 1].
    """

    def __init__(self, family: TaskDistribution, simulators: VectorTasks) -> None:
        self._family, self._inner = family, simulators
        self.tasks, self.copies, self.physics_s = simulators.tasks, simulators.copies, 0.0
        self._sizes = {"action": family.action_size, "obs": family.raw_obs_size}
        self._read_tasks()

    def be_part(self, first_row: int, whole: int) -> None:
        """Be some rows of a larger batch."""
        self._inner.be_part(first_row, whole)

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every simulator."""
        return self._shown(self._inner.reset(seed))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step with the action as the motors get it; observation as the sensors show it."""
        done = self._inner.step(self._changed("action", action))
        self.physics_s = self._inner.physics_s
        return self._shown(done[0]), *done[1:]

    def restart(
        self, rows: np.ndarray, tasks: Sequence[Task], rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """New episodes in some rows."""
        fresh = self._inner.restart(rows, tasks, rngs)
        self.tasks = self._inner.tasks
        self._read_tasks()
        all_rows = np.zeros((len(self.tasks), 1, fresh.shape[1]))
        all_rows[rows, 0] = fresh
        return self._shown(all_rows)[rows, 0]

    @property
    def diverged(self) -> np.ndarray:
        """``[T, E]`` bool: simulations that blew up."""
        return self._inner.diverged

    @property
    def success(self) -> np.ndarray | None:
        """``[T, E]`` bool, or None: as the simulators tell."""
        return self._inner.success

    def look(self, row: int) -> tuple[Any, Any] | np.ndarray | None:
        """What a camera needs of one row."""
        return self._inner.look(row)

    def close(self) -> None:
        """Free what the simulators hold."""
        self._inner.close()

    def _read_tasks(self) -> None:
        """Each task's changes as (index, op, values ``[T, 1]``), and what is shown of it."""
        self._changes: dict[str, list[tuple[int, str, np.ndarray]]] = {"action": [], "obs": []}
        for name, param in self._family.params.items():
            values = np.array([task.values[name] for task in self.tasks])
            for target in param.targets:
                kind, _, entry = target.partition(":")
                if kind in self._changes:
                    index = self._index(name, kind, entry)
                    self._changes[kind].append((index, param.op, values))
        family = self._family
        columns = [list(family.params).index(name) for name in family.visible]
        self._told = family.describe(self.tasks)[:, None, columns]

    def _index(self, name: str, kind: str, entry: str) -> int:
        if not entry.isdigit() or int(entry) >= self._sizes[kind]:
            raise TaskError(
                f"{self._family.name}.params.{name}: {kind}:{entry} is no entry of the {kind}; "
                f"expected an index from 0 to {self._sizes[kind] - 1}"
            )
        return int(entry)

    def _changed(self, kind: str, rows: np.ndarray) -> np.ndarray:
        if not self._changes[kind]:
            return rows
        rows = np.array(rows, dtype=np.float64)
        for index, op, values in self._changes[kind]:
            rows[..., index] = apply_op(op, rows[..., index], values)
        return rows

    def _shown(self, obs: np.ndarray) -> np.ndarray:
        obs = self._changed("obs", obs)
        told = np.broadcast_to(self._told, (*obs.shape[:2], self._told.shape[2]))
        return np.concatenate([obs, told], axis=-1)
