"""Reacher: an arm of two joints in a plane; hidden goal, reversed motors, or a payload.

The base is gymnasium's Reacher-v5 (``v5``); the families are this project's own. Each says what is
observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.simulation import SimulatedFamily, SimulatedTasks
from envs.task import Finite, Task
from envs.variants import Settings

# Constants, with their units.

ANGLE_NOISE = 0.1
"""Noise of the joints at reset, half-width, rad."""
RATE_NOISE = 0.005
"""Noise of their rates at reset, half-width, rad/s."""
REACH = 0.2
"""Targets are uniform in the disc of this radius around the shoulder, m."""
TOUCH = 0.019
"""The episode succeeds once fingertip (radius .01) and target (.009) touch, m between centres."""

SEEN = ["joints", "target", "rates", "to_target"]
SEEN_WITHOUT_TARGET = ["joints", "rates", "fingertip"]


class ReacherTasks(SimulatedTasks):
    """B arms: ``qpos [B, 4]`` = shoulder, elbow (rad), target x, y (m), ``qvel`` their rates."""

    family: Reacher
    READINGS = ("joints", "target", "rates", "to_target", "fingertip")

    def __init__(self, family: Reacher, tasks: Sequence[Task], copies: int) -> None:
        super().__init__(family, tasks, copies)
        bodies = (self.model.body(name).id for name in ("fingertip", "target"))
        self._fingertip, self._target = bodies
        self._success = np.zeros(len(self.qpos), dtype=bool)

    # Readings of the physics.

    def joints(self) -> np.ndarray:
        """Cosines and then sines of shoulder and elbow, ``[B, 4]``."""
        return np.concatenate([np.cos(self.qpos[:, :2]), np.sin(self.qpos[:, :2])], axis=1)

    def target(self) -> np.ndarray:
        """Place of the target, ``[B, 2]``, m."""
        return self.qpos[:, 2:]

    def rates(self) -> np.ndarray:
        """Of shoulder and elbow, ``[B, 2]``, rad/s."""
        return self.qvel[:, :2]

    def fingertip(self) -> np.ndarray:
        """Place of the fingertip, ``[B, 2]``, m."""
        return self.read("xpos")[:, self._fingertip, :2]

    def to_target(self) -> np.ndarray:
        """Fingertip less target, ``[B, 2]``, m."""
        return self._gap()[:, :2]

    def _gap(self) -> np.ndarray:
        places = self.read("xpos")
        return places[:, self._fingertip] - places[:, self._target]

    # Start and reward.

    def sample_reset(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Nearly stretched along x, nearly at rest; the target anywhere within reach."""
        qpos = self.model.qpos0 + rng.uniform(-ANGLE_NOISE, ANGLE_NOISE, (n, self.model.nq))
        qvel = rng.uniform(-RATE_NOISE, RATE_NOISE, (n, self.model.nv))
        distance, angle = REACH * np.sqrt(rng.uniform(size=n)), rng.uniform(0.0, 2.0 * np.pi, n)
        qpos[:, 2:] = _place(distance, angle)
        qvel[:, 2:] = 0.0
        return qpos, qvel

    def before_step(self) -> np.ndarray:
        """Nothing: the reward does not need the past."""
        return np.empty(0)

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Distance from fingertip to target (m) and control cost, both negative."""
        distance = np.linalg.norm(self._gap(), axis=1)
        return -distance - self.family.ctrl_cost * np.square(action).sum(axis=1)

    # Success.

    @property
    def success(self) -> np.ndarray:
        """``[T, E]``: episodes in which the fingertip has touched the target after a step."""
        return self._shaped(self._success)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One control step; see whether the target is touched."""
        done = super().step(action)
        self._success |= ~self._diverged & (np.linalg.norm(self._gap(), axis=1) <= TOUCH)
        return done

    def _begin(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        super()._begin(rows, qpos, qvel)
        self._success[rows] = False


class ReacherGoalTasks(ReacherTasks):
    """Arms whose target the task sets."""

    goal_distance: float | np.ndarray = REACH
    """From the shoulder, m."""
    goal_angle: float | np.ndarray = 0.0
    """Direction from the shoulder, rad."""

    def _begin(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        everywhere = np.zeros(len(self.qpos))
        goals = _place(everywhere + self.goal_distance, everywhere + self.goal_angle)
        qpos[:, 2:] = goals[rows]
        super()._begin(rows, qpos, qvel)


def _place(distance: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Distance and direction from the shoulder as x and y, ``[n, 2]``."""
    return distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Reacher(SimulatedFamily):
    """Reach a visible target that is new in every episode; by default gymnasium's Reacher-v5."""

    ASSET = "reacher.xml"
    SIMULATORS = ReacherTasks
    VARIANTS: ClassVar[Settings] = {"v5": {"observation": SEEN, "horizon": 50}}

    frame_skip: Annotated[int, Field(ge=1)] = 2
    """Physics steps (10 ms) per control step."""
    ctrl_cost: Annotated[Finite, Field(ge=0)] = 1.0
    """Weight of the squared action in the reward."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class ReacherGoal(Reacher):
    """A hidden goal: observed are the arm and its fingertip, but neither the target nor the way.

    Angles wrap, so that the ends of their range are neighbours. Beyond the range are goals next to
    the shoulder, for which the arm folds up.
    """

    SIMULATORS = ReacherGoalTasks
    VARIANTS: ClassVar[Settings] = {"hidden": {"observation": SEEN_WITHOUT_TARGET, "horizon": 50}}
    PARAMS: ClassVar[Settings] = {
        "goal_distance": {
            "to": "attr:goal_distance",
            "low": 0.05,
            "high": 0.2,
            "ood": [0.03, 0.05],
        },
        "goal_angle": {"to": "attr:goal_angle", "low": -np.pi, "high": np.pi},
    }


@dataclass(kw_only=True, config={"extra": "forbid"})
class ReacherReversed(Reacher):
    """Each motor as it should be, reversed, or weak, which is hidden: nine tasks.

    The target is new in every episode and observed, as in v5. Beyond the range, a motor is both
    reversed and weak.
    """

    PARAMS: ClassVar[Settings] = {
        f"gear_{joint}": {
            "to": f"model:actuator_gear[{motor}]",
            "op": "scale",
            "choices": [1.0, -1.0, 0.2],
            "ood": [-0.2],
        }
        for motor, joint in enumerate(("shoulder", "elbow"))
    }


@dataclass(kw_only=True, config={"extra": "forbid"})
class ReacherPayload(Reacher):
    """A load in the hand, more damping and dry friction in the joints, all of them hidden.

    The target is new in every episode and observed, as in v5. The loads are heavy because the
    model's motors are: 200 N m, and a rotor of 1 kg m^2 at each joint.
    """

    PARAMS: ClassVar[Settings] = {
        "payload": {  # kg
            "to": "model:body_mass[fingertip]",
            "op": "add",
            "low": 0.0,
            "high": 20.0,
            "ood": [20.0, 30.0],
        },
        "damping": {
            "to": [f"model:dof_damping[{joint}]" for joint in ("joint0", "joint1")],
            "op": "scale",
            "low": 1.0,
            "high": 10.0,
            "log": True,
        },
        "friction": {  # N m
            "to": [f"model:dof_frictionloss[{joint}]" for joint in ("joint0", "joint1")],
            "op": "add",
            "low": 0.0,
            "high": 20.0,
        },
    }
