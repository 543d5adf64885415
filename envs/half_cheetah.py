"""HalfCheetah: a planar runner; direction, target speed, motors, body, world and sensors vary.

Definitions and their disagreements: ``reference/meta_rl.md`` 2.1 and 2.2 (read off the codes of
maml_rl, ProMP, pytorch-maml-rl, oyster, varibad, HyperX and AMAGO); ``v5`` is gymnasium's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.simulation import Settings, SimulatedFamily, SimulatedTasks
from envs.task import Finite

# Constants, with their units.

RESET_NOISE = 0.1
"""Noise at reset, rad and m: half-width of the positions' (uniform), sd of the rates' (normal)."""

_POSITION, _TORSO = ["position", "velocity"], ["position", "velocity", "torso_position"]
_COM = ["position", "velocity", "torso_com"]
_UP_TO_2 = {"params": {"speed": {"high": 2.0}}}
DIRECTION_VARIANTS = {
    "v5": {"ctrl_cost": 0.1, "observation": _POSITION, "horizon": 100},
    "finn2017": {"ctrl_cost": 0.05, "observation": _COM, "horizon": 200},
    "promp": {"ctrl_cost": 0.05, "observation": _POSITION, "horizon": 100},
    "deleu": {"ctrl_cost": 0.05, "observation": _TORSO, "horizon": 100},
    "pearl": {"ctrl_cost": 0.05, "observation": _TORSO, "horizon": 200},
    "varibad": {"ctrl_cost": 0.05, "observation": _TORSO, "horizon": 200},
    "hyperx": {"ctrl_cost": 0.05, "observation": _TORSO, "horizon": 200, "unpaid_distance": 5.0},
}
"""Direction. finn2017: maml_rl; deleu also learn2learn and garage; hyperx: its sparse version."""
VELOCITY_VARIANTS = {
    "promp": {"ctrl_cost": 0.05, "observation": _POSITION, "horizon": 100},
    "finn2017": {"ctrl_cost": 0.05, "observation": _COM, "horizon": 200} | _UP_TO_2,
    "deleu": {"ctrl_cost": 0.05, "observation": _TORSO, "horizon": 100} | _UP_TO_2,
    "pearl": {"ctrl_cost": 0.05, "observation": _TORSO, "horizon": 200}
    | {"pool": {"train": 100, "heldout": 30}},
    "varibad": {"ctrl_cost": 0.05, "observation": _TORSO, "horizon": 200},
    "amago": {"ctrl_cost": 0.05, "observation": _POSITION, "horizon": 1000},
}
"""Target speed in [0, 3] m/s, in finn2017 and deleu in [0, 2]; pearl has 100 + 30 fixed tasks."""


class HalfCheetahTasks(SimulatedTasks):
    """B half-cheetahs: ``qpos [B, 9]`` = x, z, pitch, 6 joints (m, rad), ``qvel`` their rates."""

    family: HalfCheetah
    READINGS = ("position", "velocity", "torso_com", "torso_position")
    direction: float | np.ndarray = 1.0
    """+1 is paid for running forward, -1 for running backward."""

    # Readings of the physics.

    def position(self) -> np.ndarray:
        """All positions but x, ``[B, 8]``."""
        return self.qpos[:, 1:]

    def velocity(self) -> np.ndarray:
        """All rates, ``[B, 9]``."""
        return self.qvel

    def torso_com(self) -> np.ndarray:
        """Centre of mass of the torso and all below it, ``[B, 3]``, m."""
        return self.read("subtree_com")[:, 1]

    def torso_position(self) -> np.ndarray:
        """Position of the torso's frame in the world, x included, ``[B, 3]``, m."""
        return self.read("xpos")[:, 1]

    # Start and reward.

    def sample_reset(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Nominal pose with noise."""
        qpos = self.model.qpos0 + rng.uniform(-RESET_NOISE, RESET_NOISE, (n, self.model.nq))
        return qpos, RESET_NOISE * rng.standard_normal((n, self.model.nv))

    def before_step(self) -> np.ndarray:
        """Position along the track, m."""
        return self.qpos[:, 0].copy()

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Mean speed over the step in the task's direction (m/s) less the control cost."""
        forward = self.direction * (self.qpos[:, 0] - before) / self.dt
        if self.family.unpaid_distance:
            forward = np.where(np.abs(self.qpos[:, 0]) < self.family.unpaid_distance, 0.0, forward)
        return forward - self.family.ctrl_cost * np.square(action).sum(axis=1)


class HalfCheetahVelTasks(HalfCheetahTasks):
    """Half-cheetahs that are paid for running at a hidden speed."""

    speed: float | np.ndarray = 1.0
    """Target, m/s."""

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Distance from the target speed (m/s), negative, less the control cost."""
        velocity = (self.qpos[:, 0] - before) / self.dt
        cost = self.family.ctrl_cost * np.square(action).sum(axis=1)
        return -np.abs(velocity - self.speed) - cost


# Task parameters.

DIRECTION = {"direction": {"to": "attr:direction", "choices": [-1.0, 1.0]}}
SPEED = {"speed": {"to": "attr:speed", "low": 0.0, "high": 3.0, "ood": [3.0, 4.0]}}
LEGS = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")


def _part(*bodies: str) -> dict[str, object]:
    """Mass and radius of some bodies, halved or half as much again (CSP's perturbations)."""
    mass = [f"model:body_mass[{body}]" for body in bodies]
    radius = [f"model:geom_size[{body},0]" for body in bodies]
    return {"to": [*mass, *radius], "op": "scale", "choices": [0.5, 1.5]}


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetah(SimulatedFamily):
    """Half-cheetahs, paid for speed, that differ in the parameters given."""

    ASSET = "half_cheetah.xml"
    SIMULATORS = HalfCheetahTasks
    VARIANTS: ClassVar[Settings] = DIRECTION_VARIANTS

    ctrl_cost: Annotated[Finite, Field(ge=0)] = 0.1
    """Weight of the squared action in the reward."""
    unpaid_distance: Annotated[Finite, Field(ge=0)] = 0.0
    """Speed is paid only at least so far from the origin, m (HyperX's sparse reward)."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetahDir(HalfCheetah):
    """HalfCheetah-Dir ("FwdBack"): forward or backward, two tasks; nothing can be held out."""

    PARAMS: ClassVar[Settings] = DIRECTION


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetahVel(HalfCheetah):
    """HalfCheetah-Vel: a hidden target speed."""

    SIMULATORS = HalfCheetahVelTasks
    PARAMS: ClassVar[Settings] = {
        "speed": {"to": "attr:speed", "low": 0.0, "high": 3.0, "ood": [3.0, 4.0]}
    }
    VARIANTS: ClassVar[Settings] = VELOCITY_VARIANTS


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetahFaults(HalfCheetah):
    """Running forward with two of six motors broken: reversed, at a fifth of the gear, or dead."""

    PARAMS: ClassVar[Settings] = {
        f"gear_{leg}": {
            "to": f"model:actuator_gear[{leg}]",
            "op": "scale",
            "choices": [-1.0, 0.2, 0.0],
        }
        for leg in LEGS
    }
    perturbed: Annotated[int, Field(ge=1)] | None = 2


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetahBody(HalfCheetah):
    """Running forward in another body and world: up to two of CSP's perturbations at a time.

    Multipliers as in salina_cl's half-cheetah scenarios (``reference/continual_rl.md`` 1.3): moon
    .15, tiny .5 and huge 1.5 gravity; rainfall .4; parts tiny .5 and huge 1.5; carry_stuff 4.
    """

    PARAMS: ClassVar[Settings] = {
        "gravity": {"to": "option:gravity", "op": "scale", "choices": [0.15, 0.5, 1.5]},
        "friction": {"to": "model:geom_friction", "op": "scale", "choices": [0.4, 0.5, 1.5]},
        "torso": _part("torso"),
        "thigh": _part("bthigh", "fthigh"),
        "shin": _part("bshin", "fshin"),
        "foot": _part("bfoot", "ffoot"),
        "load": {"to": "model:body_mass[torso]", "op": "scale", "choices": [2.0, 4.0]},
    }
    perturbed: Annotated[int, Field(ge=1)] | None = 2


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetahSensors(HalfCheetah):
    """Running forward with four of 17 sensors dead: they show zero, which four is hidden."""

    PARAMS: ClassVar[Settings] = {
        f"sensor_{i}": {"to": f"obs:{i}", "op": "scale", "choices": [0.0]} for i in range(17)
    }
    perturbed: Annotated[int, Field(ge=1)] | None = 4
