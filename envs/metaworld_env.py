# pyright: reportAttributeAccessIssue=false
# (Meta-World is an extra, and MuJoCo's bindings come without type stubs.)
"""One Meta-World environment with one goal, as a row of numbers in and out; and its goals.

A goal is the environment's ``rand_vec``. Here it is handed to the environment, set or drawn, so
that neither Meta-World's pickled tasks nor numpy's global generator are needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np

from envs.compat import import_metaworld
from envs.parallel.chunk import Outcome
from envs.param import TaskError
from envs.simulation import UNSTABLE

OBS_SIZE = 39
"""Hand, gripper and objects (18), the same of the step before, and three zeros for the goal."""
ACTION_SIZE = 4
"""The hand's move along x, y and z (cm at 1), and the gripper's effort."""
STEPS = 500
"""Longest episode, in steps of 12.5 ms; Meta-World refuses to go on after it."""
GOALS = 50
"""Goals that a benchmark has in each of its environments."""
ENVIRONMENTS = {
    f"{name}-v3": int(size)
    for name, size in (
        entry.split(":")
        for entry in """
        assembly:6 basketball:6 bin-picking:6 box-close:6 button-press-topdown:3
        button-press-topdown-wall:3 button-press:3 button-press-wall:3 coffee-button:3 coffee-pull:6
        coffee-push:6 dial-turn:3 disassemble:6 door-close:3 door-lock:3
        door-open:3 door-unlock:3 hand-insert:6 drawer-close:3 drawer-open:3
        faucet-open:3 faucet-close:3 hammer:3 handle-press-side:3 handle-press:3
        handle-pull-side:3 handle-pull:3 lever-pull:3 pick-place-wall:6 pick-out-of-hole:6
        pick-place:6 plate-slide:6 plate-slide-side:6 plate-slide-back:6 plate-slide-back-side:6
        peg-insert-side:6 peg-unplug-side:3 soccer:6 stick-push:6 stick-pull:6
        push:6 push-wall:6 push-back:6 reach:6 reach-wall:6
        shelf-place:6 sweep-into:6 sweep:3 window-open:3 window-close:3
        """.split()
    )
}
"""Meta-World's 50 environments, in its order (a task names one by its place, from 0 on), and how
many numbers a ``rand_vec`` of each has."""

# A reset asks twice for the rand_vec, and without end if its object and its goal are too close.
_MOST_QUESTIONS = 1_000


class SharedModel:
    """The MuJoCo model of one task, 19 MB of mostly meshes, for all of its copies in a process.

    Environments write into their model, but only at a reset and only what follows from the task.
    """

    def __init__(self) -> None:
        self.model: mujoco.MjModel | None = None


class MetaWorldEnv:
    """A row (``envs/parallel/chunk.py``) whose every episode has the same goal."""

    def __init__(
        self, shared: SharedModel, name: str, rand_vec: Sequence[float], rewards: str
    ) -> None:
        self.env = _make(name, shared, lambda low, high: np.array(rand_vec), rewards)
        """Meta-World's own environment."""

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode; there is nothing to seed, for the goal alone gives its start."""
        return self.env.reset()[0]

    def step(self, action: np.ndarray) -> Outcome:
        """One step; its success is that of this step."""
        data = self.env.data
        before = data.time
        obs, reward, terminated, truncated, info = self.env.step(action)
        # MuJoCo resets what blew up; it looks healthy afterwards but for its counters and clock.
        diverged = bool(data.warning.number[UNSTABLE].any()) or data.time < before
        return Outcome(obs, float(reward), terminated, truncated, diverged, bool(info["success"]))

    def look(self) -> tuple[Any, Any]:
        """MuJoCo's model and data, for a camera."""
        return self.env.model, self.env.data

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


@functools.lru_cache(maxsize=8)
def benchmark_goals(
    benchmark: str, env_name: str | None, seed: int, part: str
) -> dict[str, np.ndarray]:
    """Every goal of the training or the test part of a benchmark; not to be written into."""
    if env_name is not None:
        return draw_goals([env_name], seed + (part == "test"))
    return draw_goals(list(getattr(import_metaworld().env_dict, f"{benchmark}_V3")[part]), seed)


def draw_goals(names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """The goals of each environment ``[50, 3 or 6]``, as Meta-World draws them with this seed.

    One stream serves all environments in turn, so a goal depends on those named before.
    """
    rng = np.random.RandomState(seed)  # numpy's old generator: it is Meta-World's
    return {name: _draw_goals_of(name, rng) for name in names}


def _draw_goals_of(name: str, rng: np.random.RandomState) -> np.ndarray:
    env = _make(name, SharedModel(), rng.uniform)
    # A reset moves the hand for 250 steps, on which it does not depend which draw is taken.
    env.do_simulation = lambda *_: mujoco.mj_kinematics(env.model, env.data)
    goals = []
    for _ in range(GOALS):
        env.reset()
        goals.append(env.rand_vec)
    env.close()
    return np.stack(goals)


class _Given:
    """Goes before an environment's own class: gives it its ``rand_vec`` and its model."""

    def __init__(
        self, shared: SharedModel, rand_vec: Callable[..., np.ndarray], rewards: str
    ) -> None:
        self._shared, self._rand_vec, self._questions = shared, rand_vec, 0
        own_class: Any = super()
        own_class.__init__(reward_function_version=rewards)
        self._set_task_called = True

    def reset(self) -> tuple[np.ndarray, dict]:
        self._questions = 0
        return super().reset()

    def _get_state_rand_vec(self) -> np.ndarray:
        self._questions += 1
        space = self._random_reset_space
        if self._questions > _MOST_QUESTIONS:
            raise TaskError(f"object and goal are too close to each other in {self.rand_vec}")
        self.rand_vec = self._rand_vec(space.low, space.high)
        return self.rand_vec

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        if self._shared.model is not None:
            return self._shared.model, mujoco.MjData(self._shared.model)
        self._shared.model, data = super()._initialize_simulation()
        return self._shared.model, data


def _make(
    name: str, shared: SharedModel, rand_vec: Callable[..., np.ndarray], rewards: str = "v2"
) -> Any:
    cls = import_metaworld().ALL_V3_ENVIRONMENTS[name]
    given = type(cls.__name__, (_Given, cls), {})
    return given(shared, rand_vec, rewards)
