"""Ants that are paid for being near a hidden goal, in a disc or in a square.

Definitions: ``reference/meta_rl.md`` 2.4 (read off the codes of ProMP, oyster, varibad, HyperX,
maml_rl and pytorch-maml-rl).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from envs.ant import DELEU, FULL_STATE, MAML_RL, WORLD, Ant, AntTasks
from envs.task import Task
from envs.variants import Settings

# Constants, with their units.

DISC_RADIUS = 3.0
"""Goals lie in the disc of this radius around the start, m."""
GOAL_RADIUS = 0.75
"""HyperX's: so near the goal an episode has succeeded, and the sparse reward is paid, m."""

# The rewards of goals have no other parts, and nothing ends the episode.
_GOAL = {"ctrl_cost": 0.1, "healthy_reward": 0.0, "ends_by_fall": False, "horizon": 200}
_GOAL |= {"observation": [*FULL_STATE, *WORLD]}

GOAL_VARIANTS: Settings = {
    "promp": _GOAL,
    "varibad": _GOAL,
    "pearl": _GOAL | {"pool": {"train": 150, "heldout": 30}},
    "hyperx": _GOAL
    | {"observation": ["torso_position", *FULL_STATE, *WORLD], "ctrl_cost": 0.01, "sparse": True},
}
"""Goals in a disc; pearl has 150 + 30 fixed ones; hyperx: its sparse version."""
SQUARE_VARIANTS: Settings = {
    "finn2017": MAML_RL | {"healthy_reward": 4.05},
    "deleu": DELEU | {"healthy_reward": 4.05},
}
"""Goals in a square."""


class AntGoalTasks(AntTasks):
    """Ants that are paid for being near a hidden place in a disc."""

    family: AntGoal
    goal_angle: float | np.ndarray = 0.0
    """Direction from the start to the goal, rad."""
    goal_area: float | np.ndarray = 1.0
    """Share of the disc that is nearer than the goal: uniform if goals are uniform in the disc."""

    def __init__(self, family: AntGoal, tasks: Sequence[Task], copies: int) -> None:
        super().__init__(family, tasks, copies)
        self._success = np.zeros(len(self.qpos), dtype=bool)

    def goal(self) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Coordinates x and y of the goal, m."""
        radius = DISC_RADIUS * np.sqrt(self.goal_area)
        return radius * np.cos(self.goal_angle), radius * np.sin(self.goal_angle)

    def to_goal(self) -> np.ndarray:
        """From the place to the goal, ``[2, B]``, m."""
        x, y = self.place().T
        goal_x, goal_y = self.goal()
        return np.stack([goal_x - x, goal_y - y])

    def near(self) -> np.ndarray:
        """``[B]`` bool: at the goal, or close to it."""
        return np.linalg.norm(self.to_goal(), axis=0) <= GOAL_RADIUS

    def worth(self, before: np.ndarray) -> np.ndarray:
        """Distance from the goal along x and along y, negative, m.

        Sparse: one less the straight distance near the goal, a constant penalty elsewhere.
        """
        if self.family.sparse:
            distance = np.linalg.norm(self.to_goal(), axis=0)
            return np.where(self.near(), 1.0 - distance, -GOAL_RADIUS)
        return -np.abs(self.to_goal()).sum(axis=0)

    # Success.

    @property
    def success(self) -> np.ndarray:
        """``[T, E]``: episodes in which the ant has been near the goal after a step."""
        return self._shaped(self._success)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One control step; see whether the goal is reached."""
        done = super().step(action)
        self._success |= ~self._diverged & self.near()
        return done

    def _begin(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        super()._begin(rows, qpos, qvel)
        self._success[rows] = False


class AntSquareTasks(AntGoalTasks):
    """Ants that are paid for being near a hidden place in a square."""

    goal_x: float | np.ndarray = 0.0
    goal_y: float | np.ndarray = 0.0
    """Of the goal, m."""

    def goal(self) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Coordinates x and y of the goal, m."""
        return self.goal_x, self.goal_y


# Task parameters.


@dataclass(kw_only=True, config={"extra": "forbid"})
class AntGoal(Ant):
    """Ant-Goal: a hidden place, uniform in a disc; beyond the range, in the ring from 3 to 4 m."""

    SIMULATORS = AntGoalTasks
    VARIANTS: ClassVar[Settings] = GOAL_VARIANTS
    PARAMS: ClassVar[Settings] = {
        "angle": {"to": "attr:goal_angle", "low": 0.0, "high": 2.0 * np.pi},
        "area": {"to": "attr:goal_area", "low": 0.0, "high": 1.0, "ood": [1.0, 16.0 / 9.0]},
    }

    sparse: bool = False
    """Whether only nearness to the goal is paid, and all else costs the same."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class AntSquare(AntGoal):
    """Ant-Pos: a hidden place, uniform in a square; beyond the range, outside of it."""

    SIMULATORS = AntSquareTasks
    VARIANTS: ClassVar[Settings] = SQUARE_VARIANTS
    PARAMS: ClassVar[Settings] = {
        axis: {"to": f"attr:goal_{axis}", "low": -3.0, "high": 3.0, "ood": [3.0, 4.0]}
        for axis in "xy"
    }
