"""Off-policy returns against the exact ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from agent.memory.worth import reweighted_return
from agent.policy import GaussianMlp, PolicyConfig
from tests.conftest import made_up_episodes

POLICY = GaussianMlp(2, 1, PolicyConfig(hidden=[4]))
PARAMS = POLICY.init(torch.Generator().manual_seed(0))


def test_a_policys_own_return_is_exact():
    episodes = made_up_episodes(POLICY, PARAMS[None], 1, 5, 7)
    found = reweighted_return(POLICY, PARAMS, PARAMS[None], episodes)
    assert found == pytest.approx(float(episodes.mean_return()), rel=1e-5)


def test_one_step_by_hand():
    """A reward equal to the action: the mean action of the other policy is what it would return."""
    episodes = made_up_episodes(POLICY, PARAMS[None], 1, 200_000, 1)
    zero = episodes.obs.zero_()
    episodes = replace(episodes, obs=zero, reward=episodes.action[..., 0])
    moved = PARAMS.clone()
    moved[-2] += 0.2  # the bias of the action
    wanted = float(POLICY(moved[None], zero[:, :1, :1]).mean)
    seen = float(POLICY(PARAMS[None], zero[:, :1, :1]).mean)
    action = seen + POLICY(PARAMS[None], zero).log_std.exp() * torch.randn(
        episodes.action.shape, generator=torch.Generator().manual_seed(1)
    )
    episodes = replace(episodes, action=action, reward=action[..., 0])
    found = reweighted_return(POLICY, moved, PARAMS[None], episodes)
    assert found == pytest.approx(wanted, abs=0.01) and abs(found - seen) > 0.15


def test_nothing_is_known_where_everything_diverged():
    episodes = made_up_episodes(POLICY, PARAMS[None], 1, 2, 3)
    lost = replace(episodes, diverged=torch.ones(1, 2, dtype=torch.bool))
    assert math.isnan(reweighted_return(POLICY, PARAMS, PARAMS[None], lost))
