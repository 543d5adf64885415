"""Ids of the native families in Gymnasium's registry; importing this module registers them.

``gymnasium.make("engram/HalfCheetahVel-v0", variant="pearl", split="heldout")``, after an
``import envs.registration``; or in one, ``"envs.registration:engram/HalfCheetahVel-v0"``.
"""

from __future__ import annotations

import re

import gymnasium

FAMILIES: dict[str, tuple[str, ...]] = {
    "envs.navigation": (
        "Navigation",
        "NavigationSquare",
        "NavigationSparse",
        "NavigationCorners",
    ),
    "envs.half_cheetah": (
        "HalfCheetahDir",
        "HalfCheetahVel",
        "HalfCheetahFaults",
        "HalfCheetahBody",
        "HalfCheetahSensors",
    ),
    "envs.ant": ("AntDir", "AntAngle", "AntVel", "AntLegs", "AntBody"),
    "envs.ant_goals": ("AntGoal", "AntSquare"),
    "envs.walkers": (
        "HopperParams",
        "HopperVel",
        "HopperBody",
        "Walker2dParams",
        "Walker2dVel",
        "Walker2dBody",
    ),
    "envs.humanoid": ("HumanoidDir",),
    "envs.swimmer": ("SwimmerVel",),
    "envs.reacher": ("ReacherGoal", "ReacherReversed", "ReacherPayload"),
}
"""Classes by module."""
_RK4 = ("ant", "ant_goals", "walkers", "humanoid", "swimmer", "reacher")
RK4_MODULES = tuple(f"envs.{name}" for name in _RK4)
"""Robots whose models ask for RK4; each of their families has a Fast id (implicitfast) as well."""


def snake_case(name: str) -> str:
    """``HalfCheetahVel`` -> ``half_cheetah_vel``: the family's name in files and configs."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def ids() -> dict[str, dict[str, str]]:
    """Every id with the settings it stands for."""
    found = {}
    for module, names in FAMILIES.items():
        for name in names:
            plain = {"family": f"{module}:{name}", "name": snake_case(name)}
            found[f"engram/{name}-v0"] = plain
            if module in RK4_MODULES:
                fast = {"name": f"{snake_case(name)}_fast", "integrator": "implicitfast"}
                found[f"engram/{name}Fast-v0"] = plain | fast
    return found


for _id, _settings in ids().items():
    gymnasium.register(
        id=_id,
        entry_point="envs.citizens:NativeEnv",
        vector_entry_point="envs.citizens:NativeVectorEnv",
        kwargs=_settings,
    )
