"""Gymnasium's own environments with models that a test has written to by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco


def changed(env_id: str, change: Callable[[Any], None]) -> str:
    """Id of a new environment: this one with what ``change`` does to its ``MjModel``."""

    def make(**kwargs: Any) -> gymnasium.Env:
        env: Any = gymnasium.make(env_id, **kwargs).unwrapped
        change(env.model)
        mujoco.mj_setConst(env.model, env.data)  # pyright: ignore[reportAttributeAccessIssue]
        return env

    new_id = f"Changed{len(gymnasium.registry)}-v0"
    gymnasium.register(new_id, entry_point=make)
    return new_id
