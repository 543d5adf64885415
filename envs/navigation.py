"""2-D navigation: a point must reach a goal that it cannot see; tests learn on it in seconds.

Pure numpy. Start at the origin, action = displacement clipped to +-0.1 per step, reward = -distance
to the goal after the step. Horizon 20 and goals on the unit circle give the acceptance anchor of
``reference/meta_rl.md`` section 5.3: about -20 before adaptation, -8 or better after one gradient
step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.task import Finite, Task, TaskDistribution, VectorTasks

STEP_SIZE = 0.1
"""Displacement per step of a full action, per axis."""


class NavigationTasks(VectorTasks):
    """T x E points in the plane."""

    def __init__(self, family: Navigation, tasks: Sequence[Task], copies: int) -> None:
        self.tasks, self.copies, self.physics_s = tasks, copies, 0.0
        angle = np.array([[t.values["angle"] for t in tasks]]).T  # [T, 1]
        self._goal = family.radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # [T, 1, 2]
        self._horizon, self._steps = family.horizon, 0
        self._position = np.zeros((len(tasks), copies, 2))

    def reset(self, seed: int) -> np.ndarray:
        """All points at the origin; the seed changes nothing here, as nothing is random."""
        self._position = np.zeros_like(self._position)
        self._steps = 0
        return self._position.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Move, and pay for the distance that is left."""
        started = time.perf_counter()
        self._position = self._position + STEP_SIZE * np.clip(action, -1.0, 1.0)
        reward = -np.linalg.norm(self._position - self._goal, axis=-1)
        self._steps += 1
        never = np.zeros(reward.shape, dtype=bool)
        self.physics_s += time.perf_counter() - started
        return (
            self._position.copy(),
            reward,
            never,
            np.full(reward.shape, self._steps >= self._horizon),
        )

    @property
    def diverged(self) -> np.ndarray:
        """Never: a point cannot blow up."""
        return np.zeros(self._position.shape[:2], dtype=bool)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Navigation(TaskDistribution):
    """Goals on a circle around the start; the one parameter is ``angle`` (rad)."""

    radius: Annotated[Finite, Field(gt=0)] = 1.0
    """Distance of the goals from the start."""

    def __post_init__(self) -> None:
        """Check that the one parameter this family understands is there."""
        if set(self.params) != {"angle"}:
            raise ValueError(f"params must be just 'angle', got {sorted(self.params)}")

    @property
    def raw_obs_size(self) -> int:
        """Position."""
        return 2

    @property
    def action_size(self) -> int:
        """Displacement in tenths."""
        return 2

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """A full action moves 0.1 along an axis."""
        return -np.ones(2), np.ones(2)

    def simulate(self, tasks: Sequence[Task], copies: int) -> NavigationTasks:
        """Points for ``copies`` episodes of each task."""
        return NavigationTasks(self, tasks, copies)
