"""Hopper and Walker2d: runners in a plane that fall; physics, target speed and body vary.

The families with many coefficients are those of rand_param_envs (``reference/meta_rl.md`` 2.6),
which PEARL, VariBAD and others use; target speeds of variant ``promp`` are ProMP's; bodies are
perturbed as in CSP (``reference/continual_rl.md`` 1.3); ``v5`` is gymnasium's. All run on
gymnasium's present models, in which both of Walker2d's feet have friction 1.9 (in older ones, one
of them had .9).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from envs.runners import RunnerTasks, TargetSpeedTasks
from envs.simulation import SimulatedFamily
from envs.task import Finite
from envs.variants import Settings

# Constants, with their units.

RESET_NOISE = 5e-3
"""Noise at reset, half-width: m and rad of the positions, m/s and rad/s of the rates."""
SEEN_RATE = 10.0
"""Rates are shown clipped to this, m/s and rad/s."""

# The step on which a robot falls is paid the healthy reward before gymnasium's v5, and not in it.
_BEFORE_V5 = {"pays_fall": True, "horizon": 200}
COEFFICIENT_VARIANTS = {
    "varibad": _BEFORE_V5,
    "pearl": _BEFORE_V5 | {"pool": {"train": 40, "heldout": 10}},
}
"""Tasks drawn afresh, as in rand_param_envs itself, or 40 + 10 fixed ones."""


class WalkerTasks(RunnerTasks):
    """B hoppers or walkers: ``qpos`` = x, z, pitch, joints (m, rad), ``qvel`` their rates."""

    family: Walker
    noise = RESET_NOISE

    # Readings of the physics.

    def position(self) -> np.ndarray:
        """All positions but x, ``[B, 5]`` or ``[B, 8]``."""
        return self.qpos[:, 1:]

    def velocity(self) -> np.ndarray:
        """All rates, clipped, ``[B, 6]`` or ``[B, 9]``."""
        return np.clip(self.qvel, -SEEN_RATE, SEEN_RATE)

    def healthy(self) -> np.ndarray:
        """``[B]`` bool: upright and in the family's ranges, the ends excluded."""
        limits, height = self.family, self.qpos[:, 1]
        healthy = (height > limits.min_height) & (np.abs(self.qpos[:, 2]) < limits.max_pitch)
        if limits.max_height is not None:
            healthy &= height < limits.max_height
        if limits.max_state is not None:
            state = np.concatenate([self.qpos[:, 2:], self.qvel], axis=1)
            healthy &= (np.abs(state) < limits.max_state).all(axis=1)
        return healthy

    # Reward and end.

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The speed's worth and the healthy reward, less the control cost."""
        paid = self.healthy() | self.family.pays_fall
        cost = self.family.ctrl_cost * np.square(action).sum(axis=1)
        return self.worth(before) + self.family.healthy_reward * paid - cost

    def terminated(self) -> np.ndarray:
        """Fallen, or out of the ranges in another way."""
        return ~self.healthy() & self.family.ends_by_fall


class WalkerVelTasks(TargetSpeedTasks, WalkerTasks):
    """Hoppers or walkers that are paid for moving at a hidden speed."""


# Task parameters.

SPEED: Settings = {"speed": {"to": "attr:speed", "low": 0.0, "high": 3.0, "ood": [3.0, 4.0]}}
HOPPER_PARTS = ("torso", "thigh", "leg", "foot")
WALKER_PARTS = (*HOPPER_PARTS, "thigh_left", "leg_left", "foot_left")
OUT_OF_REACH = ("torso", "thigh", "thigh_left")
"""Parts too high to touch the floor before a fall ends the episode (the hopper's thigh: before the
step on which it ends), so that their friction matters only where falls do not."""


def _factor(base: float, to: str, can_matter: bool) -> dict[str, Any]:
    """A multiplier ``base ^ U(-3, 3)`` of one entry of the model."""
    drawn = {"op": "scale", "low": base**-3, "high": base**3, "log": True}
    return {"to": f"model:{to}"} | drawn | ({} if can_matter else {"inert": True})


def coefficients(parts: tuple[str, ...]) -> Settings:
    """The physics coefficients of rand_param_envs, an entry of the model each.

    They include those of the world and its floor, and some that cannot matter: the world's mass and
    inertia, inertia about axes that a robot in a plane never turns about, friction against spinning
    and rolling (contacts here have at most three dimensions), and the zero dampings at the root.
    Friction between two surfaces is that of the rougher one. Mass and inertia vary apart.
    """
    found = {}
    for body in ("world", *parts):
        found[f"mass_{body}"] = _factor(1.5, f"body_mass[{body}]", body != "world")
        for i, axis in enumerate("xyz"):
            turns = body != "world" and axis == "y"
            found[f"inertia_{body}_{axis}"] = _factor(1.5, f"body_inertia[{body},{i}]", turns)
    for surface, geom in {"floor": "floor", **{part: f"{part}_geom" for part in parts}}.items():
        for i, kind in enumerate(("slide", "spin", "roll")):
            to = f"geom_friction[{geom},{i}]"
            slides = kind == "slide" and surface not in OUT_OF_REACH
            found[f"friction_{surface}_{kind}"] = _factor(1.5, to, slides)
    joints = [f"{part}_joint" for part in parts if part != "torso"]
    for joint in ("rootx", "rootz", "rooty", *joints):
        name = f"damping_{joint.removesuffix('_joint')}"
        found[name] = _factor(1.3, f"dof_damping[{joint}]", joint in joints)
    return found


def bodies(parts: tuple[str, ...]) -> Settings:
    """Gravity, friction, and each part's mass and radius (left and right together)."""
    found: dict[str, dict[str, Any]] = {
        "gravity": {"to": "option:gravity", "op": "scale", "choices": [0.15, 0.5, 1.5]},
        "friction": {"to": "model:geom_friction", "op": "scale", "choices": [0.4, 0.5, 1.5]},
    }
    for part in HOPPER_PARTS:
        sides = [each for each in parts if each.removesuffix("_left") == part]
        mass = [f"model:body_mass[{each}]" for each in sides]
        radius = [f"model:geom_size[{each}_geom,0]" for each in sides]
        found[part] = {"to": [*mass, *radius], "op": "scale", "choices": [0.5, 1.5]}
    return found


@dataclass(kw_only=True, config={"extra": "forbid"})
class Walker(SimulatedFamily):
    """What Hopper and Walker2d share: paid for speed and for not falling."""

    SIMULATORS = WalkerTasks
    VARIANTS: ClassVar[Settings] = {"v5": {"horizon": 200}}

    frame_skip: Annotated[int, Field(ge=1)] = 4
    """Physics steps (2 ms) per control step."""
    ctrl_cost: Annotated[Finite, Field(ge=0)] = 1e-3
    """Weight of the squared action in the reward."""
    healthy_reward: Finite = 1.0
    """Reward of a step after which the robot is healthy."""
    pays_fall: bool = False
    """Whether a step after which it is not is paid this too."""
    ends_by_fall: bool = True
    """Whether the episode ends once the robot is not healthy."""
    min_height: Finite
    """Healthy only above, m of the torso's centre."""
    max_height: Finite | None = None
    """Healthy only below, m; None: any height."""
    max_pitch: Annotated[Finite, Field(gt=0)]
    """Healthy only while the torso leans less, to either side, rad."""
    max_state: Annotated[Finite, Field(gt=0)] | None = None
    """Healthy only while pitch, joint angles and all rates are smaller, rad, m/s; None: any."""

    @model_validator(mode="after")
    def _see_what_lies(self) -> Self:
        """What was out of reach matters after all where a fall does not end the episode."""
        for part in () if self.ends_by_fall else OUT_OF_REACH:
            name = f"friction_{part}_slide"
            if name in self.params:
                self.params[name] = replace(self.params[name], inert=False)
        return self

    @model_validator(mode="after")
    def _check_heights(self) -> Self:
        if self.max_height is not None and self.min_height >= self.max_height:
            raise ValueError(
                f"min_height={self.min_height:g} must be below max_height={self.max_height:g}"
            )
        return self


@dataclass(kw_only=True, config={"extra": "forbid"})
class Hopper(Walker):
    """One leg: 3 motors; by default gymnasium's Hopper-v5."""

    ASSET = "hopper.xml"

    min_height: Finite = 0.7
    """Healthy only above, m of the torso's centre."""
    max_pitch: Annotated[Finite, Field(gt=0)] = 0.2
    """Healthy only while the torso leans less, to either side, rad."""
    max_state: Annotated[Finite, Field(gt=0)] | None = 100.0
    """Healthy only while pitch, joint angles and all rates are smaller, rad, m/s; None: any."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class HopperParams(Hopper):
    """Hopper-RandParams: 41 coefficients of the physics, hidden; 14 of them can matter."""

    PARAMS: ClassVar[Settings] = coefficients(HOPPER_PARTS)
    VARIANTS: ClassVar[Settings] = COEFFICIENT_VARIANTS


@dataclass(kw_only=True, config={"extra": "forbid"})
class HopperVel(Hopper):
    """Hopping at a hidden speed."""

    SIMULATORS = WalkerVelTasks
    PARAMS: ClassVar[Settings] = SPEED


@dataclass(kw_only=True, config={"extra": "forbid"})
class HopperBody(Hopper):
    """Hopping in another body and world: up to two perturbations at a time."""

    PARAMS: ClassVar[Settings] = bodies(HOPPER_PARTS)
    perturbed: Annotated[int, Field(ge=1)] | None = 2


@dataclass(kw_only=True, config={"extra": "forbid"})
class Walker2d(Walker):
    """Two legs: 6 motors; by default gymnasium's Walker2d-v5."""

    ASSET = "walker2d_v5.xml"

    min_height: Finite = 0.8
    """Healthy only above, m of the torso's centre."""
    max_height: Finite | None = 2.0
    """Healthy only below, m; None: any height."""
    max_pitch: Annotated[Finite, Field(gt=0)] = 1.0
    """Healthy only while the torso leans less, to either side, rad."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Walker2dParams(Walker2d):
    """Walker2d-RandParams: 65 coefficients of the physics, hidden; 25 of them can matter."""

    PARAMS: ClassVar[Settings] = coefficients(WALKER_PARTS)
    VARIANTS: ClassVar[Settings] = COEFFICIENT_VARIANTS


@dataclass(kw_only=True, config={"extra": "forbid"})
class Walker2dVel(Walker2d):
    """Walking at a hidden speed; ProMP's up to 10 m/s, which no walker reaches."""

    SIMULATORS = WalkerVelTasks
    PARAMS: ClassVar[Settings] = SPEED
    VARIANTS: ClassVar[Settings] = {
        "v5": {"horizon": 200},
        "promp": {
            "horizon": 200,
            "frame_skip": 8,
            "healthy_reward": 15.0,
            "pays_fall": True,
            "params": {"speed": {"high": 10.0, "ood": [10.0, 12.0]}},
        },
    }


@dataclass(kw_only=True, config={"extra": "forbid"})
class Walker2dBody(Walker2d):
    """Walking in another body and world: up to two perturbations at a time."""

    PARAMS: ClassVar[Settings] = bodies(WALKER_PARTS)
    perturbed: Annotated[int, Field(ge=1)] | None = 2
