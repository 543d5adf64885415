"""Points in the plane: what the navigation families share. Pure numpy.

Actions are displacements in units of the step size, clipped to +-1 per axis; observed is the
position. Lengths have no unit.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from envs.task import Task, TaskDistribution, TaskError, VectorTasks
from envs.variants import Settings, complete

STEP_SIZE = 0.1
"""Displacement per step of a full action, per axis."""


class PointTasks(VectorTasks):
    """T x E points in the plane; a point whose episode has ended stays where it is."""

    step_size: ClassVar[float] = STEP_SIZE
    tolerance: ClassVar[float] = 0.0
    """Radius to draw around the goal."""
    tasks: list[Task]

    def __init__(self, family: Points, tasks: Sequence[Task], copies: int) -> None:
        self.family, self.tasks, self.copies, self.physics_s = family, list(tasks), copies, 0.0
        self._goal = self.goals(self.tasks)[:, None]  # [T, 1, 2]
        shape = (len(self.tasks), copies)
        self._position = np.zeros((*shape, 2))
        self._steps, self._ended = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=bool)
        self._reached = np.zeros(shape, dtype=bool)
        # Where each point was after 0, 1, ... ``_steps`` steps of its episode; for pictures.
        self._trail = np.zeros((family.horizon + 1, *shape, 2))

    @abstractmethod
    def goals(self, tasks: Sequence[Task]) -> np.ndarray:
        """Where the tasks' goals are, ``[T, 2]``."""

    def sample_start(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Where n episodes start, ``[n, 2]``: at the origin, unless a family says otherwise."""
        return np.zeros((n, 2))

    def distance(self) -> np.ndarray:
        """What is left to the goal, ``[T, E]``."""
        return np.linalg.norm(self._position - self._goal, axis=-1)

    def reward(self, before: np.ndarray) -> np.ndarray:
        """Reward ``[T, E]`` of the step just made from ``before [T, E, 2]``."""
        return -self.distance()

    def reached(self) -> np.ndarray | None:
        """``[T, E]`` bool: points at their goal; None where the family does not say when."""
        return None

    def terminated(self) -> np.ndarray:
        """``[T, E]`` bool: episodes that the task itself ends; never, unless a family says so."""
        return np.zeros(self._ended.shape, dtype=bool)

    def reset(self, seed: int) -> np.ndarray:
        """All points at their starts."""
        start = self.own(self.sample_start(np.random.default_rng(seed), self.rows_drawn))
        self._begin(np.arange(len(self.tasks)), start.reshape(self._position.shape))
        return self._position.copy()

    def restart(
        self, rows: np.ndarray, tasks: Sequence[Task], rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """New episodes, of new tasks, in some rows; obs ``[n, 2]``."""
        if self.copies != 1:
            raise TaskError(f"restart needs copies=1, where rows are tasks; copies={self.copies}")
        if len(rows):
            for row, task in zip(rows.tolist(), tasks, strict=True):
                self.tasks[row] = task
            self._goal[rows] = self.goals(tasks)[:, None]
            self._begin(rows, np.stack([self.sample_start(rng, 1) for rng in rngs]))
        return self._position[rows, 0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Move the points whose episodes still run."""
        started = time.perf_counter()
        running, before = ~self._ended, self._position
        moved = before + self.step_size * np.clip(action, -1.0, 1.0)
        self._position = np.where(running[..., None], moved, before)
        reward = np.where(running, self.reward(before), 0.0)
        self._steps += running
        np.put_along_axis(self._trail, self._steps[None, ..., None], self._position[None], axis=0)
        reached = self.reached()
        if reached is not None:
            self._reached |= reached
        terminated = running & self.terminated()
        truncated = running & (self._steps >= self.family.horizon)
        self._ended |= terminated | truncated
        self.physics_s += time.perf_counter() - started
        return self._position.copy(), reward, terminated, truncated

    @property
    def success(self) -> np.ndarray | None:
        """``[T, E]``: episodes whose point has been at its goal after a step; None: not defined."""
        return None if self.reached() is None else self._reached.copy()

    def look(self, row: int) -> np.ndarray:
        """The plane with the point, the way it came and its goal, ``uint8 [240, 320, 3]``."""
        from envs.drawing.sheets import point_picture  # needs Pillow, which learning does not

        t, e = divmod(row, self.copies)
        trail = self._trail[: self._steps[t, e], t, e]
        # One scale for all rows and steps of an episode.
        far = max(np.abs(self._goal).max(), np.abs(self._trail[0]).max(), 5.0 * self.step_size)
        return point_picture(
            self._position[t, e],
            self._goal[t, 0],
            trail,
            reach=1.25 * float(far),
            tolerance=self.tolerance,
        )

    @property
    def diverged(self) -> np.ndarray:
        """Never: a point cannot blow up."""
        return np.zeros(self._ended.shape, dtype=bool)

    def _begin(self, rows: np.ndarray, start: np.ndarray) -> None:
        # A new array: ``before`` and what was handed out may be views of the old one.
        self._position = self._position.copy()
        self._position[rows], self._trail[0, rows] = start, start
        self._steps[rows], self._ended[rows], self._reached[rows] = 0, False, False


@dataclass(kw_only=True, config={"extra": "forbid"})
class Points(TaskDistribution):
    """A family of them: position seen, displacement done, goals given by parameters."""

    VARIANTS: ClassVar[Settings] = {}
    PARAMS: ClassVar[Settings] = {}
    GOAL: ClassVar[tuple[str, ...]]
    """Names of the parameters that say where the goal is."""
    SIMULATORS: ClassVar[type[PointTasks]]

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Fill the variant's settings in where none are given."""
        return complete(cls.VARIANTS, cls.PARAMS, given)

    def __post_init__(self) -> None:
        """Beside the goal's, only parameters that work for every family."""
        own = [
            name
            for name, param in self.params.items()
            if any(not target.startswith(("action:", "obs:")) for target in param.targets)
        ]
        if set(own) != set(self.GOAL):
            needed = ", ".join(repr(name) for name in self.GOAL)
            raise ValueError(f"params must be just {needed}, got {sorted(own)}")

    @property
    def raw_obs_size(self) -> int:
        """Position."""
        return 2

    @property
    def action_size(self) -> int:
        """Displacement in steps."""
        return 2

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """A full action moves a whole step along an axis."""
        return -np.ones(2), np.ones(2)

    def simulate(self, tasks: Sequence[Task], copies: int) -> PointTasks:
        """Points for ``copies`` episodes of each task."""
        return self.SIMULATORS(self, tasks, copies)
