"""Ant: a quadruped; direction, target speed, legs, body and world vary (goals: ``ant_goals``).

Definitions and their disagreements: ``reference/meta_rl.md`` 2.3 and 2.4 (read off the codes of
maml_rl, pytorch-maml-rl, ProMP, oyster, varibad and HyperX); ``v5`` is gymnasium's. All run on
gymnasium's present model and see its contact forces, which were all zero under mujoco-py 2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from envs.simulation import SimulatedFamily, SimulatedTasks
from envs.task import Finite
from envs.variants import Settings

# Constants, with their units.

TORSO = 1
"""The torso's body; all others hang from it."""
SEEN_FORCE = 1.0
"""Contact forces and torques are shown and charged clipped to this, N and N m."""

_V5 = ["position", "velocity", "clipped_contact_forces"]
STATE, FULL_STATE = ["position", "velocity"], ["full_position", "velocity"]
WORLD = ["clipped_contact_forces_with_world"]
# The step on which the ant falls is paid the healthy reward before gymnasium's v5, and not in it.
BEFORE_V5 = {"pays_fall": True, "horizon": 200}
MAML_RL = {"ctrl_cost": 0.005, "healthy_reward": 0.05, "paid_point": "com"} | BEFORE_V5
MAML_RL |= {"observation": [*FULL_STATE, *WORLD, "orientation", "com"]}
DELEU = MAML_RL | {"paid_point": "torso", "horizon": 100}
DELEU |= {"observation": [*FULL_STATE, *WORLD, "orientation", "torso_position"]}
PROMP = {"observation": [*STATE, *WORLD], "min_height": 0.0} | BEFORE_V5
PEARL = {"observation": STATE} | BEFORE_V5
"""What the tasks of one code have in common."""
DIRECTION_VARIANTS: Settings = {
    "v5": {"observation": _V5, "horizon": 200},
    "finn2017": MAML_RL,
    "deleu": DELEU,
    "promp": PROMP,
    "pearl": PEARL,
    "varibad": PEARL | {"params": {"direction": {"to": "attr:angle"}}},
}
"""Two directions. finn2017: maml_rl, which pays the velocity at the step's end where we pay its
mean; promp: also learn2learn; pearl: its forward_backward. varibad, hyper and pomdp-baselines use
the -1 or 1 that stands for backward or forward as an angle: their ants run 57.3 degrees to the
left or to the right of x."""
ANGLE_VARIANTS: Settings = {
    "v5": {"observation": _V5, "horizon": 200},
    "promp": PROMP,
    "pearl": PEARL,
}
"""All directions. promp: AntRandDirec2D, also learn2learn; pearl: AntDir, whose configuration has
two random angles to train and test on, while these are drawn afresh."""
VELOCITY_VARIANTS: Settings = {
    "finn2017": MAML_RL | {"healthy_reward": 1.05},
    "deleu": DELEU | {"healthy_reward": 1.05},
}
"""Target speed."""


class AntTasks(SimulatedTasks):
    """B ants: ``qpos [B, 15]`` = x, y, z, quaternion, 8 joints (m, rad), ``qvel [B, 14]``."""

    family: Ant
    READINGS = (
        "position",
        "full_position",
        "velocity",
        "clipped_contact_forces",
        "clipped_contact_forces_with_world",
        "orientation",
        "torso_position",
        "com",
    )
    direction: float | np.ndarray = 1.0
    """+1 is paid for running along the angle, -1 for running against it."""
    angle: float | np.ndarray = 0.0
    """Direction in which speed is paid, rad from x towards y."""

    # Readings of the physics.

    def position(self) -> np.ndarray:
        """All positions but x and y, ``[B, 13]``."""
        return self.qpos[:, 2:]

    def full_position(self) -> np.ndarray:
        """All positions, ``[B, 15]``."""
        return self.qpos

    def velocity(self) -> np.ndarray:
        """All rates, ``[B, 14]``."""
        return self.qvel

    def clipped_contact_forces(self) -> np.ndarray:
        """Torque and force on each body, clipped, without those on the world, ``[B, 78]``."""
        return self.clipped_contact_forces_with_world()[:, 6:]

    def clipped_contact_forces_with_world(self) -> np.ndarray:
        """Torque and force on each body, clipped; the world's are always zero, ``[B, 84]``."""
        forces = self.contact_forces.reshape(len(self.qpos), -1)
        return np.clip(forces, -SEEN_FORCE, SEEN_FORCE)

    def orientation(self) -> np.ndarray:
        """The torso's rotation matrix, ``[B, 9]``."""
        return self.read("xmat")[:, TORSO].reshape(len(self.qpos), 9)

    def torso_position(self) -> np.ndarray:
        """Position of the torso's centre, ``[B, 3]``, m."""
        return self.read("xpos")[:, TORSO]

    def com(self) -> np.ndarray:
        """Centre of mass of the whole ant, ``[B, 3]``, m."""
        return self.read("subtree_com")[:, TORSO]

    def healthy(self) -> np.ndarray:
        """``[B]`` bool: the torso is neither too low nor too high."""
        height = self.qpos[:, 2]
        return (height >= self.family.min_height) & (height <= self.family.max_height)

    def place(self) -> np.ndarray:
        """Coordinates x and y of the point whose motion is paid, ``[B, 2]``, m."""
        point = self.com() if self.family.paid_point == "com" else self.torso_position()
        return point[:, :2]

    # Start and reward.

    def sample_reset(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Nominal pose with noise."""
        noise = self.family.reset_noise
        qpos = self.model.qpos0 + rng.uniform(-noise, noise, (n, self.model.nq))
        return qpos, noise * rng.standard_normal((n, self.model.nv))

    def before_step(self) -> np.ndarray:
        """The place, m."""
        return self.place().copy()

    def worth(self, before: np.ndarray) -> np.ndarray:
        """Mean speed over the step in the task's direction, ``[B]``, m/s."""
        along_x, along_y = (self.place() - before).T / self.dt
        return self.direction * (np.cos(self.angle) * along_x + np.sin(self.angle) * along_y)

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The motion's worth and the healthy reward, less the costs of control and contact."""
        family = self.family
        paid = self.worth(before) + family.healthy_reward * (self.healthy() | family.pays_fall)
        cost = family.ctrl_cost * np.square(action).sum(axis=1)
        if family.contact_cost:
            forces = self.clipped_contact_forces_with_world()
            cost = cost + family.contact_cost * np.square(forces).sum(axis=1)
        return paid - cost

    def terminated(self) -> np.ndarray:
        """Fallen, or thrown into the air."""
        return ~self.healthy() & self.family.ends_by_fall


class AntVelTasks(AntTasks):
    """Ants that are paid for running along x at a hidden speed."""

    speed: float | np.ndarray = 1.0
    """Target, m/s."""

    def worth(self, before: np.ndarray) -> np.ndarray:
        """Distance from the target speed, negative, m/s."""
        return -np.abs(super().worth(before) - self.speed)


# Task parameters.

LEGS = {"front_left": (2, 3), "front_right": (4, 5), "back_left": (6, 7), "back_right": (0, 1)}
"""Motors of each leg, hip and ankle. They have no names in ant.xml; their joints are hip_4,
ankle_4, hip_1, ankle_1, hip_2, ankle_2, hip_3, ankle_3, and hip 1 is front_left_leg's, 2 is
front_right_leg's, 3 is back_leg's, 4 is right_back_leg's."""
FEET = {4: "left_ankle", 7: "right_ankle", 10: "third_ankle", 13: "fourth_ankle"}
"""The last bodies of the legs, which have no names in ant.xml either, and their geoms."""


def _part(bodies: Sequence[str | int], geoms: Sequence[str], *factors: float) -> dict[str, object]:
    """Mass and radius of some bodies, multiplied."""
    mass = [f"model:body_mass[{body}]" for body in bodies]
    radius = [f"model:geom_size[{geom}_geom,0]" for geom in geoms]
    return {"to": [*mass, *radius], "op": "scale", "choices": list(factors)}


@dataclass(kw_only=True, config={"extra": "forbid"})
class Ant(SimulatedFamily):
    """Ants, paid for speed along x, that differ in the parameters given."""

    ASSET = "ant.xml"
    SIMULATORS = AntTasks
    VARIANTS: ClassVar[Settings] = {"v5": {"observation": _V5, "horizon": 200}}

    ctrl_cost: Annotated[Finite, Field(ge=0)] = 0.5
    """Weight of the squared action in the reward."""
    contact_cost: Annotated[Finite, Field(ge=0)] = 5e-4
    """Weight of the squared, clipped contact forces in the reward."""
    healthy_reward: Finite = 1.0
    """Reward of a step after which the ant is healthy."""
    pays_fall: bool = False
    """Whether a step after which it is not is paid this too."""
    ends_by_fall: bool = True
    """Whether the episode ends once the ant is not healthy."""
    min_height: Finite = 0.2
    """Healthy only from here, m of the torso's centre."""
    max_height: Finite = 1.0
    """Healthy only up to here, m."""
    reset_noise: Annotated[Finite, Field(ge=0)] = 0.1
    """Noise at reset, m and rad: half-width of the positions' (uniform), sd of the rates'."""
    paid_point: Literal["torso", "com"] = "torso"
    """What counts as the ant's place: the torso's centre or the whole ant's centre of mass."""

    @model_validator(mode="after")
    def _check_heights(self) -> Self:
        if self.min_height >= self.max_height:
            raise ValueError(
                f"min_height={self.min_height:g} must be below max_height={self.max_height:g}"
            )
        return self

    @property
    def needs_contact_forces(self) -> bool:
        """Whether the reward charges or the observation shows them; they cost time."""
        return self.contact_cost > 0 or super().needs_contact_forces


@dataclass(kw_only=True, config={"extra": "forbid"})
class AntDir(Ant):
    """Ant-Dir: along x or against it, two tasks; nothing can be held out."""

    VARIANTS: ClassVar[Settings] = DIRECTION_VARIANTS
    PARAMS: ClassVar[Settings] = {"direction": {"to": "attr:direction", "choices": [-1.0, 1.0]}}


@dataclass(kw_only=True, config={"extra": "forbid"})
class AntAngle(Ant):
    """Ant-Dir in the plane: any direction."""

    VARIANTS: ClassVar[Settings] = ANGLE_VARIANTS
    PARAMS: ClassVar[Settings] = {"angle": {"to": "attr:angle", "low": 0.0, "high": 2.0 * np.pi}}


@dataclass(kw_only=True, config={"extra": "forbid"})
class AntVel(Ant):
    """Ant-Vel: a hidden target speed along x."""

    SIMULATORS = AntVelTasks
    VARIANTS: ClassVar[Settings] = VELOCITY_VARIANTS
    PARAMS: ClassVar[Settings] = {
        "speed": {"to": "attr:speed", "low": 0.0, "high": 3.0, "ood": [3.0, 4.0]}
    }


@dataclass(kw_only=True, config={"extra": "forbid"})
class AntLegs(Ant):
    """Running along x with two of four legs broken: both motors reversed, weak, or dead."""

    PARAMS: ClassVar[Settings] = {
        f"leg_{leg}": {
            "to": [f"model:actuator_gear[{motor}]" for motor in motors],
            "op": "scale",
            "choices": [-1.0, 0.5, 0.2, 0.0],
            "ood": [-0.2],
        }
        for leg, motors in LEGS.items()
    }
    perturbed: Annotated[int, Field(ge=1)] | None = 2


@dataclass(kw_only=True, config={"extra": "forbid"})
class AntBody(Ant):
    """Running along x in another body and world: two of CSP's perturbations at a time.

    Multipliers of salina_cl's ant scenarios (``reference/continual_rl.md`` 1.3): gravity moon .7,
    small .8, high 1.25; rainfall .375; feet tiny .75, huge 3; torso huge 1.5. Its bodies are those
    of Brax's ant: "Torso" is the torso here and "Body 4, 7, 10, 13" (matched by the parts 1, 2, 4
    and 7 of their names) are the feet. Its "spring" names a joint among bodies and changes nothing.
    """

    PARAMS: ClassVar[Settings] = {
        "gravity": {"to": "option:gravity", "op": "scale", "choices": [0.7, 0.8, 1.25]},
        "friction": {"to": "model:geom_friction", "op": "scale", "choices": [0.375]},
        "foot": _part(list(FEET), list(FEET.values()), 0.75, 3.0),
        "torso": _part(["torso"], ["torso"], 1.5),
    }
    perturbed: Annotated[int, Field(ge=1)] | None = 2
