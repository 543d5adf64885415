"""The surrogates on ratios, advantages and masks worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from agent.losses import clipped_surrogate, surrogate
from agent.policy import GaussianMlp
from agent.types import Trajectories
from tests.conftest import made_up_episodes


@pytest.fixture
def params(small_policy: GaussianMlp) -> torch.Tensor:
    return small_policy.init(torch.Generator().manual_seed(0)).double()[None]


def by_hand(policy: GaussianMlp, params: torch.Tensor) -> Trajectories:
    """Likelihood ratios .5, 1.5, .5, 1.5 with advantages 1, 1, -1, -1, and two masked steps."""
    episodes = made_up_episodes(policy, params, 1, 1, 6)
    ratio = torch.tensor([[[0.5, 1.5, 0.5, 1.5, 1.0, 1.0]]], dtype=torch.float64)
    log_prob = policy(params, episodes.obs).log_prob(episodes.action) - ratio.log()
    log_prob[..., 4:] = -1e4  # a masked step may hold anything; exp(1e4) would overflow
    return dataclasses.replace(
        episodes,
        log_prob=log_prob,
        mask=torch.tensor([[[1.0, 1, 1, 1, 0, 0]]], dtype=torch.float64),
        advantage=torch.tensor([[[1.0, 1, -1, -1, 0, 0]]], dtype=torch.float64),
    )


def test_the_clipped_surrogate_is_the_pessimistic_one(
    small_policy: GaussianMlp, params: torch.Tensor
):
    episodes = by_hand(small_policy, params)
    # min(.5, .8) = .5;  min(1.5, 1.2) = 1.2;  min(-.5, -.8) = -.8;  min(-1.5, -1.2) = -1.5
    loss = clipped_surrogate(small_policy, params, episodes, 0.2)
    assert loss.tolist() == pytest.approx([-(0.5 + 1.2 - 0.8 - 1.5) / 4])


@pytest.mark.parametrize("clip", [None, 0.2])
def test_masked_steps_neither_count_nor_overflow(
    small_policy: GaussianMlp, params: torch.Tensor, clip: float | None
):
    episodes = by_hand(small_policy, params)
    valid = episodes._map(lambda x: x[:, :, :4] if x.ndim > 2 and x.shape[2] == 6 else x)
    results = []
    for each in (episodes, valid):
        point = params.clone().requires_grad_(True)
        if clip is None:
            loss = surrogate(small_policy, point, each)
        else:
            loss = clipped_surrogate(small_policy, point, each, clip)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), point)))
    torch.testing.assert_close(results[0], results[1])
