"""The native families as ordinary Gymnasium environments, single and vectorised.

A new episode is a new task of the split, drawn by the environment's own generator, unless a task
is pinned; a pinned task stays, through resets and autoresets, until another is.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.pictures import Camera
from envs.task import Split, Task, TaskDistribution, TaskError

Values = Mapping[str, float]
_RENDER_SIZE = (320, 240)


def build_family(family: str | TaskDistribution, **settings: Any) -> TaskDistribution:
    """The family itself, or one of a class named as ``module:Class``, with these settings."""
    if isinstance(family, TaskDistribution):
        if settings:
            raise TaskError(f"{sorted(settings)}: settings go to a class, not to a family built")
        return family
    module, _, name = family.partition(":")
    return getattr(importlib.import_module(module), name)(**settings)


class NativeVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N simulators of a family, each with a task of its own, as a Gymnasium vector environment."""

    def __init__(
        self,
        family: str | TaskDistribution,
        num_envs: int = 1,
        split: Split = "train",
        task: Values | Sequence[Values] | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Open the simulators.

        Args:
            family: A family, or ``module:Class`` of one with ``settings`` (``variant``, ...).
            num_envs: N.
            split: Where tasks are drawn from: train, validation, heldout or ood.
            task: Values of a task to stay at, or N of them; None: draw one for each episode.
            autoreset_mode: NextStep, SameStep or Disabled, as Gymnasium defines them.
            render_mode: None or rgb_array.
            settings: Of the family.
        """
        self.family = build_family(family, **settings)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.split: Split = split
        mode = AutoresetMode(autoreset_mode)
        fps = 30 if self.family.dt is None else round(1.0 / self.family.dt)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": fps,
            "autoreset_mode": mode,
        }
        self.autoreset_mode = mode
        low, high = self.family.action_range
        self.single_observation_space = Box(-np.inf, np.inf, (self.family.obs_size,), np.float64)
        self.single_action_space = Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs = [np.random.default_rng() for _ in range(num_envs)]
        self._pinned: list[Task | None] = [None] * num_envs
        self._pin(np.arange(num_envs), task)
        self._simulators = self.family.open([self._next(i) for i in range(num_envs)], copies=1)
        self._done = np.ones(num_envs, dtype=bool)
        self._camera: Camera | None = None

    @property
    def tasks(self) -> list[Task]:
        """The task that each simulator is at."""
        return list(self._simulators.tasks)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New episodes everywhere, or where ``options["reset_mask"]`` says.

        ``options["task"]`` pins a task (one for all, or a list); None there draws again.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        rows = np.arange(self.num_envs) if mask is None else self._masked(mask)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        for row in rows if seeds is not None else ():
            if seeds is not None and seeds[row] is not None:
                self._rngs[row] = np.random.default_rng(seeds[row])
        if "task" in options:
            self._pin(rows, options.pop("task"))
        if options:
            raise TaskError(f"unknown reset options {sorted(options)}; known: reset_mask, task")
        obs = self._obs if mask is not None else np.zeros(self.observation_space.shape or ())
        self._obs = obs
        infos = self._restart(rows, {})
        return self._obs.copy(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every episode that runs; what has ended starts anew as the mode says."""
        if self.autoreset_mode is AutoresetMode.DISABLED and self._done.any():
            raise ResetNeeded(
                f"episodes {np.flatnonzero(self._done).tolist()} have ended; reset them with "
                "options={'reset_mask': ...}"
            )
        ended_before = np.flatnonzero(self._done)  # the engine does not step these
        acted = np.asarray(actions, dtype=np.float64).reshape(self.num_envs, 1, -1)
        obs, reward, terminated, truncated = (x[:, 0] for x in self._simulators.step(acted))
        self._obs = obs
        self._done = terminated | truncated
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(self._done).tolist():
            infos = self._add_info(infos, self._ending(row), row)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            infos = self._restart(ended_before, infos)
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            final: dict[str, Any] = {}
            for row in np.flatnonzero(self._done).tolist():
                ending = {"final_obs": self._obs[row].copy(), "final_info": self._ending(row)}
                final = self._add_info(final, ending, row)
            infos = self._restart(np.flatnonzero(self._done), final)
        return self._obs.copy(), reward, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """A picture of each simulation, ``uint8 [height, width, 3]``."""
        if self.render_mode is None:
            return None
        if self._camera is None:
            self._camera = Camera(*_RENDER_SIZE)
        return tuple(self._camera.look(self._simulators, row) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Free the simulators and the camera."""
        self._simulators.close()
        if self._camera is not None:
            self._camera.close()

    def _restart(self, rows: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        """New episodes in some rows, written into the observation at hand."""
        if len(rows):
            tasks = [self._next(row) for row in rows.tolist()]
            rngs = [self._rngs[row] for row in rows]
            self._obs[rows] = self._simulators.restart(rows, tasks, rngs)
            self._done[rows] = False
            for row, task in zip(rows.tolist(), tasks, strict=True):
                infos = self._add_info(infos, {"task": dict(task.values)}, row)
        return infos

    def _next(self, row: int) -> Task:
        pinned = self._pinned[row]
        if pinned is not None:
            return pinned
        return self.family.sample(1, self._rngs[row], self.split)[0]

    def _pin(self, rows: np.ndarray, task: Values | Sequence[Values] | None) -> None:
        each = [task] * len(rows) if task is None or isinstance(task, Mapping) else list(task)
        if len(each) != len(rows):
            raise TaskError(f"task: expected one, or {len(rows)} of them, got {len(each)}")
        for row, values in zip(rows.tolist(), each, strict=True):
            self._pinned[row] = None if values is None else self.family.task(values)

    def _ending(self, row: int) -> dict[str, Any]:
        success = self._simulators.success
        told = {} if success is None else {"is_success": bool(success[row, 0])}
        return {"diverged": bool(self._simulators.diverged[row, 0])} | told

    def _masked(self, mask: Any) -> np.ndarray:
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise TaskError(f"reset_mask: expected a bool array of shape ({self.num_envs},)")
        return np.flatnonzero(mask)


class NativeEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One simulator of a family as a Gymnasium environment; the vector form is much faster."""

    def __init__(
        self,
        family: str | TaskDistribution,
        split: Split = "train",
        task: Values | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Open the simulator; for the arguments see ``NativeVectorEnv``."""
        self._one = NativeVectorEnv(
            family, 1, split, task, AutoresetMode.DISABLED, render_mode, **settings
        )
        self.family, self.render_mode = self._one.family, render_mode
        self.metadata = {k: v for k, v in self._one.metadata.items() if k != "autoreset_mode"}
        self.observation_space = self._one.single_observation_space
        self.action_space = self._one.single_action_space

    @property
    def task(self) -> Task:
        """The task that the environment is at."""
        return self._one.tasks[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode; ``options["task"]`` pins a task, None there draws again."""
        super().reset(seed=seed)
        self._one._rngs[0] = self.np_random
        obs, _ = self._one.reset(options=options)
        return obs[0], {"task": dict(self.task.values)}

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """One control step."""
        obs, reward, terminated, truncated, infos = self._one.step(np.asarray(action)[None])
        info = {k: v[0] for k, v in infos.items() if not k.startswith("_")}
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        """A picture, ``uint8 [height, width, 3]``."""
        frames = self._one.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Free the simulator."""
        self._one.close()
