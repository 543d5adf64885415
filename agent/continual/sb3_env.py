"""A visit as stable-baselines3 meets it: a VecEnv whose episodes are lent and charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from agent.continual.loan import Loan
from envs.task import TaskError


class VisitVecEnv(VecEnv):
    """Rows of episodes; one that ends early is followed by the next, as long as budgets last.

    Actions are within +-1, as policies act; the visit scales them.
    """

    def __init__(self, rows: int, obs_size: int, action_size: int) -> None:
        self.render_mode = None
        observed = Box(-np.inf, np.inf, (obs_size,), np.float32)
        super().__init__(rows, observed, Box(-1.0, 1.0, (action_size,), np.float32))
        self.idle = False
        """Whether the last step was none: a row had no episode to act in."""

    def use(self, loan: Loan, steps: int) -> None:
        """Act in these episodes; none begins after as many steps."""
        self._loan, self._left, self.idle = loan, steps, False

    def reset(self) -> np.ndarray:
        """The episodes are new when they are lent."""
        return self._loan.obs.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step, unless some row has no episode: then nothing happens in any."""
        if not self._loan.running.all():
            self.idle = True
            over = np.ones(self.num_envs, dtype=bool)
            return self.reset(), np.zeros(self.num_envs, np.float32), over, self._infos()
        done, infos = self._loan.step(self._actions), self._infos()
        self._left -= 1
        for row in np.flatnonzero(done.over).tolist():
            infos[row]["terminal_observation"] = done.obs[row]
            infos[row]["TimeLimit.truncated"] = bool(done.truncated[row])
        if done.over.any() and self._left > 0:
            self._restart()
        return self.reset(), done.reward, done.over, infos

    def finish(self, act: Callable[[np.ndarray], np.ndarray]) -> None:
        """Act the episodes that still run to their end; nobody learns from the rest of them."""
        while self._loan.running.any():
            self._loan.step(act(self._loan.obs))

    def _restart(self) -> None:
        try:
            self._loan.start()
        except TaskError as error:
            raise TaskError(
                f"{error}: an episode ended before those beside it; set the agent's parallel to 1"
            ) from error

    def _infos(self) -> list[dict[str, Any]]:
        return [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        """The visit closes its simulators."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of this object, for each row."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused."""
        raise NotImplementedError("the simulators belong to the visit and cannot be changed")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Refused."""
        raise NotImplementedError("the simulators belong to the visit and have no such methods")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Never: there are no single environments to wrap."""
        return [False for _ in self._get_indices(indices)]
