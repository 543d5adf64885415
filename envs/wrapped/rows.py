"""T x E Gymnasium environments in lock step: in this process, in workers, or vectorised already."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from envs.parallel.row_tasks import RowTasks, open_rows
from envs.parallel.rows import Rows
from envs.wrapped.env import TaskEnv
from envs.wrapped.vector import VectorRows

if TYPE_CHECKING:
    from envs.gym_tasks import GymTasks
    from envs.task import Task


def make_row(family: GymTasks, values: Mapping[str, float]) -> TaskEnv:
    """``family.make(values)``, in a form that can be sent to a worker process."""
    return family.make(values)


def open_gym_rows(family: GymTasks, tasks: Sequence[Task], copies: int) -> Rows:
    """Environments for ``copies`` episodes of each task, task by task."""
    _ = family.probe  # first of all, for its errors are plainer than those of one row
    labels = [family.label(task) for task in tasks for _ in range(copies)]
    if family.vectorized:
        return VectorRows(family, [task.values for task in tasks], copies, labels)
    makers = [
        functools.partial(make_row, family, dict(task.values))
        for task in tasks
        for _ in range(copies)
    ]
    return open_rows(makers, labels, family, family.workers, family.deadline_s)


class GymVectorTasks(RowTasks):
    """T x E environments, each stepped until its episode ends and not once more.

    Only MuJoCo's physics can diverge; elsewhere what is not finite is an error that says where.
    """

    def __init__(self, family: GymTasks, tasks: Sequence[Task], copies: int) -> None:
        super().__init__(tasks, copies, family.horizon, open_gym_rows(family, tasks, copies))
        self._family = family

    @property
    def success(self) -> np.ndarray | None:
        """``[T, E]``: episodes that ``info`` has called solved; None where it does not tell."""
        return super().success if self._family.reports_success else None

    @property
    def envs(self) -> list[gymnasium.Env]:
        """The environments that run in this process one by one, in their wrappers."""
        return [row.env for row in super().envs]

    def look(self, row: int) -> tuple[Any, Any] | np.ndarray | None:
        """What a camera needs of one row; nothing is to be seen of environments in workers."""
        if isinstance(self._rows, VectorRows):
            return self._rows.look(row)
        rows = super().envs
        return rows[row].look() if rows else None
