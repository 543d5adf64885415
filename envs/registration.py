"""Ids of the native families in Gymnasium's registry; importing this module registers them.

``gymnasium.make("engram/HalfCheetahVel-v0", variant="pearl", split="heldout")``, after an
``import envs.registration``; or in one, ``"envs.registration:engram/HalfCheetahVel-v0"``.
"""

from __future__ import annotations

import re

import gymnasium

FAMILIES = {
    "envs.half_cheetah": (
        "HalfCheetahDir",
        "HalfCheetahVel",
        "HalfCheetahFaults",
        "HalfCheetahBody",
        "HalfCheetahSensors",
    ),
}
"""Classes by module. The robots of ``RK4_MODULES`` have a Fast id each as well."""
RK4_MODULES: tuple[str, ...] = ()


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
