# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""One Meta-World environment with one goal, as a row of numbers in and out; and where goals come
from.

Meta-World's pickles and numpy's global generator are not touched: a goal is the environment's
``rand_vec``, which is drawn from a generator given to it, or set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np

from envs.chunk import Outcome
from envs.compat import import_metaworld
from envs.param import TaskError
from envs.simulation import UNSTABLE

OBS_SIZE = 39
"""Hand, gripper and objects (18), the same of the step before, and three zeros for the goal."""
ACTION_SIZE = 4
"""The hand's move along x, y and z (cm at 1), and the gripper's effort."""
STEPS = 500
"""Longest episode, in steps of 12.5 ms; Meta-World refuses to go on after it."""
GOALS = 50
"""Goals of each environment in each benchmark."""

# A reset asks for its rand_vec up to 4 times, and for ever if object and goal are too close.
_MOST_DRAWS = 100


class Model:
    """The MuJoCo model (19 MB, mostly meshes) that the copies of one task in a process share.

    What an environment writes into its model follows from the task alone.
    """

    def __init__(self) -> None:
        self.model: mujoco.MjModel | None = None


class MetaWorldEnv:
    """A row of ``envs/chunk.py``: an environment whose every episode has the same goal."""

    def __init__(self, shared: Model, name: str, rand_vec: Sequence[float], rewards: str) -> None:
        self.env = _make(name, lambda: np.array(rand_vec), shared, reward_function_version=rewards)
        self._succeeded = False

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode, whose start follows from the goal: there is nothing to seed."""
        self._succeeded = False
        return self.env.reset()[0]

    def step(self, action: np.ndarray) -> Outcome:
        """One step; it succeeds from the first step on that does."""
        before = self.env.data.time
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._succeeded |= bool(info["success"])
        data = self.env.data
        # MuJoCo resets what blew up; it looks healthy afterwards but for its counters and clock.
        diverged = bool(data.warning.number[UNSTABLE].any()) or data.time < before
        return Outcome(obs, float(reward), terminated, truncated, diverged, self._succeeded)

    def look(self) -> tuple[Any, Any]:
        """MuJoCo's model and data, for a camera."""
        return self.env.model, self.env.data

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def draw_goals(names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Fifty goals of each environment, ``[50, 3 or 6]``: Meta-World's own for this seed.

    One stream serves all environments in turn, so a goal depends on those named before.
    """
    rng = np.random.RandomState(seed)  # numpy's old generator, for it is theirs
    goals = {}
    for name in names:
        drawn: list[np.ndarray] = []

        def draw() -> np.ndarray:
            space = env._random_reset_space  # noqa: B023 (called in this round of the loop only)
            drawn.append(rng.uniform(space.low, space.high))  # noqa: B023
            return drawn[-1]

        env = _make(name, draw, Model())
        env.do_simulation = lambda *_: None  # whether a goal is taken does not depend on physics
        goals[name] = np.stack([_last(drawn, env.reset) for _ in range(GOALS)])
        env.close()
    return goals


def _last(drawn: list[np.ndarray], reset: Callable[[], Any]) -> np.ndarray:
    reset()
    return drawn[-1]


def _make(name: str, rand_vec: Callable[[], np.ndarray], shared: Model, **settings: Any) -> Any:
    """An environment of Meta-World that gets its goal from ``rand_vec``."""
    cls = import_metaworld().ALL_V3_ENVIRONMENTS[name]
    draws = 0

    def get_rand_vec(env: Any) -> np.ndarray:
        nonlocal draws
        draws += 1
        if draws > _MOST_DRAWS:
            raise TaskError(
                f"{name}: object and goal of the rand_vec {rand_vec().tolist()} are too close to "
                "each other, or it is not one of this environment"
            )
        return rand_vec()

    def reset(env: Any) -> Any:
        nonlocal draws
        draws = 0
        return cls.reset(env)

    def load(env: Any) -> tuple[Any, Any]:
        if shared.model is not None:
            return shared.model, mujoco.MjData(shared.model)
        shared.model, data = cls._initialize_simulation(env)
        return shared.model, data

    methods = {"_get_state_rand_vec": get_rand_vec, "reset": reset, "_initialize_simulation": load}
    env = type(cls.__name__, (cls,), methods)(**settings)
    env._set_task_called = True
    return env
