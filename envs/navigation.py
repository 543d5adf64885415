"""2-D navigation: a point must reach a goal that it cannot see; tests learn on it in seconds.

Goals on the unit circle with horizon 20 give the acceptance anchor of ``reference/meta_rl.md``
section 5.3: about -20 before adaptation, -8 or better after one gradient step. The other families
are those of published codes (section 2.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.points import Points, PointTasks
from envs.task import Finite, Task
from envs.variants import Settings

# Constants; lengths have no unit.

CORNER_STEP_SIZE = 0.2
"""Displacement per step of a full action among the corners, per axis."""
CORNER_START = 0.2
"""Half-width of the square in which episodes among the corners start."""
UNPAID = 0.5
"""Among the corners, nothing is paid this near to the origin (sum of both axes)."""
GOAL_RADIUS = 0.2
"""Sparse reward is paid within this distance."""


class NavigationTasks(PointTasks):
    """Points around which the goals lie on a circle."""

    family: Navigation

    def goals(self, tasks: Sequence[Task]) -> np.ndarray:
        """At the tasks' angles on the circle."""
        return self.family.radius * _directions(tasks)


class SquareTasks(PointTasks):
    """Points with goals in a square."""

    family: NavigationSquare

    def goals(self, tasks: Sequence[Task]) -> np.ndarray:
        """At the tasks' x and y."""
        return _places(tasks)

    def sample_start(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Uniform in a square, or the origin."""
        return rng.uniform(-self.family.start, self.family.start, (n, 2))

    def reached(self) -> np.ndarray:
        """Within the small box around the goal."""
        return np.abs(self._position - self._goal).max(axis=-1) < self.family.box

    def terminated(self) -> np.ndarray:
        """Once the goal is reached, where that ends the episode."""
        return self.reached() & self.family.ends_at_goal


class SparseTasks(PointTasks):
    """Points that are told of their goal only when they are near it."""

    family: NavigationSparse
    tolerance = GOAL_RADIUS

    def goals(self, tasks: Sequence[Task]) -> np.ndarray:
        """At the tasks' angles on the unit circle."""
        return _directions(tasks)

    def reached(self) -> np.ndarray:
        """Where the sparse reward is paid."""
        return np.asarray(self.distance() <= GOAL_RADIUS)

    def reward(self, before: np.ndarray) -> np.ndarray:
        """One less the distance near the goal, zero elsewhere; dense: the negative distance."""
        if self.family.dense:
            return -self.distance()
        return np.where(self.reached(), 1.0 - self.distance(), 0.0)


class CornerTasks(PointTasks):
    """Points whose goal is one of four corners."""

    step_size = CORNER_STEP_SIZE

    def goals(self, tasks: Sequence[Task]) -> np.ndarray:
        """At the tasks' x and y."""
        return _places(tasks)

    def sample_start(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Uniform in a small square."""
        return rng.uniform(-CORNER_START, CORNER_START, (n, 2))

    def reward(self, before: np.ndarray) -> np.ndarray:
        """Progress towards the goal, away from the origin and in the goal's own quarter."""
        progress = np.linalg.norm(before - self._goal, axis=-1) - self.distance()
        # The corners lie symmetrically, so the goal is a nearest one where no sign contradicts it.
        nearest = (self._position * self._goal >= 0.0).all(axis=-1)
        return np.where(nearest & (np.abs(self._position).sum(axis=-1) >= UNPAID), progress, 0.0)


def _directions(tasks: Sequence[Task]) -> np.ndarray:
    angle = np.array([task.values["angle"] for task in tasks])
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _places(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([[task.values["x"], task.values["y"]] for task in tasks])


@dataclass(kw_only=True, config={"extra": "forbid"})
class Navigation(Points):
    """Goals on a circle around the start; the one parameter is ``angle`` (rad)."""

    GOAL = ("angle",)
    SIMULATORS = NavigationTasks
    PARAMS: ClassVar[Settings] = {"angle": {"to": "attr:angle", "low": 0.0, "high": 2.0 * np.pi}}

    radius: Annotated[Finite, Field(gt=0)] = 1.0
    """Distance of the goals from the start."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class NavigationSquare(Points):
    """Goals ``x``, ``y`` in a square. finn2017: maml_rl, and pytorch-maml-rl, learn2learn alike."""

    GOAL = ("x", "y")
    SIMULATORS = SquareTasks
    PARAMS: ClassVar[Settings] = {
        axis: {"to": f"attr:{axis}", "low": -0.5, "high": 0.5, "ood": [0.5, 1.0]} for axis in "xy"
    }
    VARIANTS: ClassVar[Settings] = {
        "finn2017": {"horizon": 100},
        "pearl": {
            "horizon": 20,
            "start": 1.0,
            "ends_at_goal": False,
            "pool": {"train": 80, "heldout": 20},
            "params": {axis: {"low": -1.0, "high": 1.0, "ood": [1.0, 1.5]} for axis in "xy"},
        },
    }

    start: Annotated[Finite, Field(ge=0)] = 0.0
    """Half-width of the square around the origin in which episodes start."""
    box: Annotated[Finite, Field(gt=0)] = 0.01
    """Half-width of the square around the goal that counts as reached."""
    ends_at_goal: bool = True
    """Whether the episode ends there."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class NavigationSparse(Points):
    """Goals on the upper unit half circle at ``angle`` (rad); reward only near them.

    PEARL tests so after training on the dense reward (pearl_dense); VariBAD trains so too. PEARL's
    80 + 20 angles are evenly spaced, here they are drawn. Beyond the range: the lower half.
    """

    GOAL = ("angle",)
    SIMULATORS = SparseTasks
    PARAMS: ClassVar[Settings] = {
        "angle": {"to": "attr:angle", "low": 0.0, "high": np.pi, "ood": [np.pi, 2.0 * np.pi]}
    }
    VARIANTS: ClassVar[Settings] = {
        "varibad": {"horizon": 100},
        "pearl": {"horizon": 20, "pool": {"train": 80, "heldout": 20}},
        "pearl_dense": {"horizon": 20, "pool": {"train": 80, "heldout": 20}, "dense": True},
    }

    dense: bool = False
    """Whether the negative distance is paid instead, everywhere."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class NavigationCorners(Points):
    """ProMP's: the goal is one of four corners, told from each other only by going there."""

    GOAL = ("x", "y")
    SIMULATORS = CornerTasks
    PARAMS: ClassVar[Settings] = {
        axis: {"to": f"attr:{axis}", "choices": [-2.0, 2.0]} for axis in "xy"
    }
    VARIANTS: ClassVar[Settings] = {"promp": {"horizon": 100}}
