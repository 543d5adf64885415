"""What several tests need: small policies, small families, and episodes made up from numbers."""

from __future__ import annotations

import math

import pytest
import torch

from agent.policy import GaussianMlp, PolicyConfig
from agent.types import Trajectories
from envs.navigation import Navigation
from envs.task import Param

torch.set_num_threads(1)


@pytest.fixture
def navigation() -> Navigation:
    """Goals on the unit circle, 20 steps."""
    angle = Param(to="attr:angle", low=0.0, high=2 * math.pi)
    return Navigation(name="navigation", horizon=20, params={"angle": angle})


@pytest.fixture
def small_policy() -> GaussianMlp:
    """Three observations, two actions, two small layers."""
    return GaussianMlp(3, 2, PolicyConfig(hidden=[5, 4]))


def made_up_episodes(
    policy: GaussianMlp,
    params: torch.Tensor,
    tasks: int,
    episodes: int,
    horizon: int,
    seed: int = 0,
) -> Trajectories:
    """Random observations and rewards, with actions that ``params [T, P]`` might have taken."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=params.dtype)

    obs = normal(tasks, episodes, horizon, policy.obs_size)
    distribution = policy(params, obs)
    noise = normal(tasks, episodes, horizon, policy.action_size)
    action = (distribution.mean + noise * distribution.log_std.exp()).detach()
    return Trajectories(
        obs=obs,
        action=action,
        log_prob=distribution.log_prob(action).detach(),
        reward=normal(tasks, episodes, horizon),
        mask=torch.ones(tasks, episodes, horizon, dtype=params.dtype),
        final_obs=normal(tasks, episodes, policy.obs_size),
        terminated=torch.zeros(tasks, episodes, dtype=torch.bool),
        diverged=torch.zeros(tasks, episodes, dtype=torch.bool),
        advantage=normal(tasks, episodes, horizon),
    )
