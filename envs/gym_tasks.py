# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""Any Gymnasium environment, plus the parameters in which its tasks differ, as a family of tasks.

This first form takes Box observations and Box actions. Environments are stepped one after the
other in Python; gymnasium's wrappers, its own TimeLimit among them, stay as they are.
"""

from __future__ import annotations

import copy
import functools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from pydantic import Field

from envs.simulation import UNSTABLE, apply_op, naming, write_one_model
from envs.task import Param, Task, TaskDistribution, TaskError, VectorTasks


@dataclass(kw_only=True)
class GymTasks(TaskDistribution):
    """One Gymnasium environment whose ``params`` differ from task to task.

    Targets: ``attr:name`` of ``env.unwrapped``, ``kwarg:name`` of ``gymnasium.make`` (whole numbers
    among ``choices`` are passed as integers), ``model:`` and ``option:`` of a MuJoCo environment.
    All are written once, before the first reset.
    """

    env_id: Annotated[str, Field(min_length=1)]
    """Id for ``gymnasium.make``; ``"my_pkg.envs:Thing-v0"`` imports that module first."""
    import_path: list[str] = field(default_factory=list)
    """Folders appended to ``sys.path``, so that they cannot hide an installed package."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``gymnasium.make`` for every task; ``kwarg:`` values come on top."""

    def __post_init__(self) -> None:
        """Check that no unknown default has to be scaled or shifted."""
        for name, param in self.params.items():
            if param.to.startswith("kwarg:") and param.op != "set":
                raise TaskError(
                    f"{self.name}.params.{name}: {param.to!r} takes op=set only, got op={param.op}:"
                    " the argument's default is not known; use attr: to change a nominal value"
                )

    @property
    def obs_size(self) -> int:
        """Numbers in an observation, flattened."""
        return int(np.prod(self.spaces[0].shape))

    @property
    def action_size(self) -> int:
        """Numbers in an action, flattened."""
        return int(np.prod(self.spaces[1].shape))

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The action space's bounds."""
        low, high = self.spaces[1].low, self.spaces[1].high
        return low.reshape(-1).astype(np.float64), high.reshape(-1).astype(np.float64)

    @functools.cached_property
    def spaces(self) -> tuple[Box, Box]:
        """Observation and action space, read from an environment that is closed at once."""
        env = self.make({n: p.choices[0] if p.choices else p.low for n, p in self.params.items()})
        env.close()
        obs, action = env.observation_space, env.action_space
        here = f"{self.name}: {self.env_id!r}"
        if not isinstance(obs, Box) or not isinstance(action, Box):
            what, space = ("action", action) if isinstance(obs, Box) else ("observation", obs)
            raise TaskError(
                f"{here} has the {what} space {space}; this first form takes Box observations "
                "and Box actions only (Dict, Tuple and Discrete come later)"
            )
        if not (np.issubdtype(action.dtype, np.floating) and action.is_bounded()):
            raise TaskError(
                f"{here} has the action space {action}; it must be of real numbers within finite "
                "bounds, because a policy's actions are real and are clipped to the bounds"
            )
        return obs, action

    def make(self, values: Mapping[str, Any]) -> gymnasium.Env:
        """An environment of which only the ``kwarg:`` values are set yet."""
        for folder in self.import_path:
            path = str(Path(folder).expanduser().absolute())
            if path not in sys.path:
                sys.path.append(path)
        kwargs = {
            param.to.partition(":")[2]: _argument(param, values[name])
            for name, param in self.params.items()
            if param.to.startswith("kwarg:")
        }
        try:
            return gymnasium.make(self.env_id, **{**self.kwargs, **kwargs})
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise TaskError(f"{self.name}: cannot make {self.env_id!r}: {error}") from error

    def write_params(self, env: gymnasium.Env, values: Mapping[str, float]) -> None:
        """Write a task's ``attr:``, ``model:`` and ``option:`` values into a fresh environment."""
        inner, nominal = env.unwrapped, None
        for name, param in self.params.items():
            with naming(self.name, name):
                if param.to.startswith("attr:"):
                    _write_attribute(inner, param, values[name])
                elif not param.to.startswith("kwarg:"):
                    nominal = copy.copy(_model(inner, param)) if nominal is None else nominal
                    write_one_model(inner.model, param, values[name], nominal)
        if nominal is not None:
            mujoco.mj_setConst(inner.model, inner.data)

    def open(self, tasks: Sequence[Task], copies: int) -> GymVectorTasks:
        """Environments for ``copies`` episodes of each task."""
        return GymVectorTasks(self, tasks, copies)


class GymVectorTasks(VectorTasks):
    """T x E environments, each stepped until its episode ends and not once more.

    The place of an ended episode then returns its last observation, reward 0 and neither
    ``terminated`` nor ``truncated``. An episode that diverges is truncated there, with reward 0.
    """

    def __init__(self, family: GymTasks, tasks: Sequence[Task], copies: int) -> None:
        self.tasks, self.copies, self.physics_s = tasks, copies, 0.0
        self.envs: list[gymnasium.Env] = []
        self._family, self._steps = family, 0
        with ExitStack() as opened:
            opened.callback(self.close)
            for task in tasks:
                for _ in range(copies):
                    self.envs.append(family.make(task.values))
                    family.write_params(self.envs[-1], task.values)
            opened.pop_all()  # nothing failed: keep them open
        self._obs = np.zeros((len(self.envs), family.obs_size))
        self._ended = np.zeros(len(self.envs), dtype=bool)
        self._diverged = np.zeros(len(self.envs), dtype=bool)

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every environment, each with a seed of its own."""
        seeds = np.random.SeedSequence(seed).generate_state(len(self.envs))
        for i, env in enumerate(self.envs):
            self._obs[i] = self._flat(i, env.reset(seed=int(seeds[i]))[0])
            if (data := _physics(env)) is not None:  # not every reset calls mj_resetData
                data.warning.number[:] = 0
        self._steps = 0
        self._diverged[:] = ~np.isfinite(self._obs).all(axis=1)
        self._ended[:] = self._diverged
        return self._shaped(self._obs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of every environment whose episode still runs."""
        space = self._family.spaces[1]
        flat = action.reshape(len(self.envs), *space.shape).astype(space.dtype)
        running = ~self._ended
        reward = np.zeros(len(self.envs))
        terminated, truncated = np.zeros((2, len(self.envs)), dtype=bool)
        started = time.perf_counter()
        for i in np.flatnonzero(running).tolist():
            reward[i], terminated[i], truncated[i] = self._step_one(i, flat[i])
        self.physics_s += time.perf_counter() - started
        reward[self._diverged] = 0.0
        self._steps += 1
        truncated |= running & (self._diverged | (self._steps >= self._family.horizon))
        self._ended |= terminated | truncated
        return (
            self._shaped(self._obs),
            self._shaped(reward),
            self._shaped(terminated),
            self._shaped(truncated),
        )

    def _step_one(self, i: int, action: np.ndarray) -> tuple[float, bool, bool]:
        data = _physics(self.envs[i])
        before = 0.0 if data is None else data.time
        obs, reward, terminated, truncated, _ = self.envs[i].step(action)
        self._obs[i], reward = self._flat(i, obs), float(reward)
        # MuJoCo resets what blew up; it looks healthy afterwards but for its counters and clock.
        reset = data is not None and (data.warning.number[UNSTABLE].any() or data.time < before)
        finite = np.isfinite(self._obs[i]).all() and math.isfinite(reward)
        self._diverged[i] = reset or not finite
        return reward, terminated, truncated

    @property
    def diverged(self) -> np.ndarray:
        """``[T, E]``: physics that blew up, or an observation or reward that is not finite."""
        return self._shaped(self._diverged)

    def close(self) -> None:
        """Close every environment."""
        while self.envs:
            self.envs.pop().close()

    def _flat(self, i: int, obs: Any) -> np.ndarray:
        """An observation as one row; one of a wrong size must not be broadcast."""
        row = np.asarray(obs, dtype=np.float64).reshape(-1)
        if row.size != self._obs.shape[1]:
            task = self._family.label(self.tasks[i // self.copies])
            raise TaskError(
                f"{self._family.name}: task {task!r} gave an observation of shape {np.shape(obs)}, "
                f"but the family's observation space is {self._family.spaces[0]}"
            )
        return row

    def _shaped(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(self.tasks), self.copies, *rows.shape[1:]).copy()


def _argument(param: Param, value: float) -> float | int:
    return int(value) if param.choices is not None and float(value).is_integer() else value


def _write_attribute(inner: Any, param: Param, value: float) -> None:
    name = param.to.partition(":")[2]
    nominal = np.asarray(getattr(inner, name, None))
    if nominal.dtype.kind not in "iuf":
        raise TaskError(f"{param.to!r}: {type(inner).__name__} has no number or array {name!r}")
    new = np.array(apply_op(param.op, nominal, np.array([value]))[0])
    if nominal.ndim == 0:
        whole = nominal.dtype.kind != "f" and float(new).is_integer()  # a count stays a count
        new = int(new) if whole else float(new)
    try:
        setattr(inner, name, new)
    except AttributeError as error:
        raise TaskError(f"{param.to!r} cannot be set: {error}") from error


def _model(inner: Any, param: Param) -> mujoco.MjModel:
    model = getattr(inner, "model", None)
    if not isinstance(model, mujoco.MjModel):
        raise TaskError(f"{param.to!r}: {type(inner).__name__} has no MuJoCo model to change")
    return model


def _physics(env: gymnasium.Env) -> Any:
    """The environment's MuJoCo data; None where it has none."""
    data = getattr(env.unwrapped, "data", None)
    return data if isinstance(data, mujoco.MjData) else None
