"""Native families under stable-baselines3: a VecEnv that steps the native engine.

model = PPO("MlpPolicy", make_vec_env("engram/HalfCheetahVel-v0", 16))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from envs.citizens import NativeVectorEnv
from envs.registration import ids


def make_vec_env(env_id: str, num_envs: int, **settings: Any) -> TaskVecEnv:
    """A VecEnv of one of Engram's ids; settings as for ``gymnasium.make_vec``."""
    if env_id.rpartition(":")[2] not in ids():
        raise ValueError(f"{env_id}: is none of Engram's own; use stable_baselines3's make_vec_env")
    same_step = AutoresetMode.SAME_STEP
    made: Any = gymnasium.make_vec(env_id, num_envs, autoreset_mode=same_step, **settings)
    return TaskVecEnv(made)


class TaskVecEnv(VecEnv):
    """stable-baselines3's interface to a vector environment in autoreset mode SAME_STEP.

    Every episode is a new task unless ``set_options({"task": values})`` has pinned one; unlike with
    stable-baselines3's own vector environments, a pinned task survives the automatic resets.
    """

    def __init__(self, env: NativeVectorEnv) -> None:
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset_mode={env.autoreset_mode}: TaskVecEnv needs SAME_STEP")
        self.env = env
        self.render_mode = env.render_mode
        obs_space = Box(-np.inf, np.inf, env.single_observation_space.shape, np.float32)
        super().__init__(env.num_envs, obs_space, env.single_action_space)
        self._actions = np.zeros(env.action_space.shape or ())

    def reset(self) -> np.ndarray:
        """New episodes everywhere."""
        chosen = [options["task"] for options in self._options if "task" in options]
        if chosen and len(chosen) != self.num_envs:
            raise ValueError("set_options: give every environment a 'task', or none")
        options = {"task": chosen} if chosen else {}
        seeds = list(self._seeds) if any(seed is not None for seed in self._seeds) else None
        obs, _ = self.env.reset(seed=seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        return obs.astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step; ended episodes have started anew, their last observation is in infos."""
        obs, reward, terminated, truncated, info = self.env.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(done).tolist():
            infos[row] = {
                "terminal_observation": info["final_obs"][row].astype(np.float32),
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
            infos[row] |= {
                key: values[row]
                for key, values in info["final_info"].items()
                if not key.startswith("_")
            }
        return obs.astype(np.float32), reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Free the simulators."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture of each environment."""
        return self.env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the vector environment; of ``tasks``, each environment's own."""
        if attr_name == "tasks":
            return [self.env.tasks[i] for i in self._get_indices(indices)]
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: simulators share one object."""
        raise NotImplementedError("one object holds all simulators; pin tasks with set_options")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Refused: simulators share one object."""
        raise NotImplementedError("one object holds all simulators; call its methods on .env")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Never: there are no single environments to wrap."""
        return [False for _ in self._get_indices(indices)]
