"""Humanoid: a walking figure; the direction in which it is paid for moving varies.

Definitions: ``reference/meta_rl.md`` 2.5 (read off the codes of ProMP, oyster and varibad); ``v5``
is gymnasium's. All run on gymnasium's present model and see its contact forces.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from envs.simulation import SimulatedFamily, SimulatedTasks
from envs.task import Finite
from envs.variants import Settings

# Constants, with their units.

FREE = 6
"""Degrees of freedom of the torso in the world; no motor acts on them."""
HIGHEST_CONTACT_COST = 10.0
"""Contact costs a step no more than this."""

_V5 = ["position", "velocity", "inertia", "body_velocity", "motor_forces", "body_contact_forces"]
_WITH_WORLD = [
    "position",
    "velocity",
    "inertia_with_world",
    "body_velocity_with_world",
    "all_motor_forces",
    "body_contact_forces_with_world",
]
# The step on which it falls is paid the healthy reward before gymnasium's v5, and not in it.
_BEFORE_V5 = {"observation": _WITH_WORLD, "pays_fall": True, "horizon": 200}
DIRECTION_VARIANTS: Settings = {
    "v5": {"observation": _V5, "horizon": 200},
    "promp": _BEFORE_V5,
    "varibad": _BEFORE_V5,
    "pearl": _BEFORE_V5 | {"pool": {"train": 100, "heldout": 30}},
}
"""All directions. promp: HumanoidRandDirec2D, also learn2learn; pearl has 100 + 30 fixed ones.

These pay a quarter of the way over the time step of the physics, which is 1.25 times the velocity.
Their observations have 28 more entries, always zero: the world's, and motors of the free torso.
varibad's actions from -1 to 1 stand for ours from -.4 to .4, which their cost is counted in.
"""


class HumanoidTasks(SimulatedTasks):
    """B humanoids: ``qpos [B, 24]`` = x, y, z, quaternion, 17 joints (m, rad), ``qvel [B, 23]``."""

    family: Humanoid
    READINGS = (*_V5, *_WITH_WORLD[2:])
    angle: float | np.ndarray = 0.0
    """Direction in which speed is paid, rad from x towards y."""

    # Readings of the physics.

    def position(self) -> np.ndarray:
        """All positions but x and y, ``[B, 22]``."""
        return self.qpos[:, 2:]

    def velocity(self) -> np.ndarray:
        """All rates, ``[B, 23]``."""
        return self.qvel

    def inertia(self) -> np.ndarray:
        """Inertia of each body about the centre of mass, its offset and mass, ``[B, 130]``."""
        return self.inertia_with_world()[:, 10:]

    def inertia_with_world(self) -> np.ndarray:
        """The same with the world's, which is always zero, ``[B, 140]``."""
        return self._flat(self.read("cinert"))

    def body_velocity(self) -> np.ndarray:
        """Angular and linear velocity of each body, ``[B, 78]``, rad/s and m/s."""
        return self.body_velocity_with_world()[:, 6:]

    def body_velocity_with_world(self) -> np.ndarray:
        """The same with the world's, which is always zero, ``[B, 84]``."""
        return self._flat(self.read("cvel"))

    def motor_forces(self) -> np.ndarray:
        """Torque of the motors at each joint, ``[B, 17]``, N m."""
        return self.all_motor_forces()[:, FREE:]

    def all_motor_forces(self) -> np.ndarray:
        """The same with the free torso's, always zero, ``[B, 23]``."""
        return self.read("qfrc_actuator")

    def body_contact_forces(self) -> np.ndarray:
        """Torque and force on each body, ``[B, 78]``, N m and N."""
        return self.body_contact_forces_with_world()[:, 6:]

    def body_contact_forces_with_world(self) -> np.ndarray:
        """The same with those on the world, always zero, ``[B, 84]``."""
        return self._flat(self.contact_forces)

    def healthy(self) -> np.ndarray:
        """``[B]`` bool: the torso is neither too low nor too high."""
        height = self.qpos[:, 2]
        return (self.family.min_height < height) & (height < self.family.max_height)

    def com(self) -> np.ndarray:
        """Coordinates x and y of the whole body's centre of mass, ``[B, 2]``, m."""
        mass = self.read_model("body_mass")
        weighted = mass[..., None] * self.read("xipos")[..., :2]
        return weighted.sum(axis=1) / mass.sum(axis=1, keepdims=True)

    def _flat(self, per_body: np.ndarray) -> np.ndarray:
        return per_body.reshape(len(self.qpos), -1)

    # Start and reward.

    def sample_reset(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Nominal pose, nearly at rest."""
        noise = self.family.reset_noise
        qpos = self.model.qpos0 + rng.uniform(-noise, noise, (n, self.model.nq))
        return qpos, rng.uniform(-noise, noise, (n, self.model.nv))

    def before_step(self) -> np.ndarray:
        """The centre of mass, m."""
        return self.com()

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Speed in the task's direction and the healthy reward, less the costs."""
        family = self.family
        along_x, along_y = (self.com() - before).T / self.dt
        speed = np.cos(self.angle) * along_x + np.sin(self.angle) * along_y
        paid = family.speed_reward * speed
        paid = paid + family.healthy_reward * (self.healthy() | family.pays_fall)
        cost = family.ctrl_cost * np.square(action).sum(axis=1)
        if family.contact_cost:
            forces = np.square(self._flat(self.contact_forces)).sum(axis=1)
            cost = cost + np.minimum(family.contact_cost * forces, HIGHEST_CONTACT_COST)
        return paid - cost

    def terminated(self) -> np.ndarray:
        """Fallen, or thrown into the air."""
        return ~self.healthy() & self.family.ends_by_fall


@dataclass(kw_only=True, config={"extra": "forbid"})
class Humanoid(SimulatedFamily):
    """Humanoids, paid for speed along x, that differ in the parameters given."""

    ASSET = "humanoid.xml"
    SIMULATORS = HumanoidTasks
    VARIANTS: ClassVar[Settings] = {"v5": {"observation": _V5, "horizon": 200}}

    speed_reward: Annotated[Finite, Field(ge=0)] = 1.25
    """Weight of the speed (m/s) in the reward."""
    ctrl_cost: Annotated[Finite, Field(ge=0)] = 0.1
    """Weight of the squared action in the reward."""
    contact_cost: Annotated[Finite, Field(ge=0)] = 5e-7
    """Weight of the squared contact forces in the reward."""
    healthy_reward: Finite = 5.0
    """Reward of a step after which the humanoid is healthy."""
    pays_fall: bool = False
    """Whether a step after which it is not is paid this too."""
    ends_by_fall: bool = True
    """Whether the episode ends once the humanoid is not healthy."""
    min_height: Finite = 1.0
    """Healthy only above, m of the torso's centre."""
    max_height: Finite = 2.0
    """Healthy only below, m."""
    reset_noise: Annotated[Finite, Field(ge=0)] = 0.01
    """Noise at reset, half-width: m and rad of the positions, m/s and rad/s of the rates."""

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


# Task parameters.


@dataclass(kw_only=True, config={"extra": "forbid"})
class HumanoidDir(Humanoid):
    """Humanoid-Dir: any direction in the plane."""

    VARIANTS: ClassVar[Settings] = DIRECTION_VARIANTS
    PARAMS: ClassVar[Settings] = {"angle": {"to": "attr:angle", "low": 0.0, "high": 2.0 * np.pi}}
