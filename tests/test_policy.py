"""The stacked policy against plain modules, the Gaussian against torch's, the normaliser too."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from agent.policy import DiagonalGaussian, GaussianMlp, ObsNormalizer, PolicyConfig


def as_sequential(policy: GaussianMlp, row: torch.Tensor) -> nn.Sequential:
    """The same network as torch modules, filled number by number from one flat row."""
    sizes = [policy.obs_size, *policy.config.hidden, policy.action_size]
    modules, start = [], 0
    for i, o in pairwise(sizes):
        layer = nn.Linear(i, o)
        with torch.no_grad():
            layer.weight.copy_(row[start : start + i * o].reshape(i, o).T)
            layer.bias.copy_(row[start + i * o : start + (i + 1) * o])
        start += (i + 1) * o
        modules += [layer, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def test_stacked_policy_equals_a_sequential_per_task(small_policy: GaussianMlp):
    generator = torch.Generator().manual_seed(1)
    params = torch.randn(4, small_policy.num_params, generator=generator)
    obs = torch.randn(4, 3, 7, 3, generator=generator)
    small_policy.normalizer.mean = torch.tensor([0.5, -1.0, 0.0])
    small_policy.normalizer.var = torch.tensor([4.0, 1.0, 0.25])
    stacked = small_policy(params, obs)
    for t in range(4):
        alone = as_sequential(small_policy, params[t])(small_policy.normalizer(obs[t]))
        torch.testing.assert_close(stacked.mean[t], alone)
        torch.testing.assert_close(
            stacked.log_std[t].flatten(), params[t, -2:].clamp(*GaussianMlp.LOG_STD_RANGE)
        )


def test_acting_without_an_episode_axis_gives_the_same(small_policy: GaussianMlp):
    params = torch.randn(2, small_policy.num_params)
    obs = torch.randn(2, 5, 3)
    flat, deep = small_policy(params, obs), small_policy(params, obs[:, :, None])
    torch.testing.assert_close(flat.mean, deep.mean[:, :, 0])
    assert flat.log_prob(torch.zeros(2, 5, 2)).shape == (2, 5)


def test_num_params_counts_every_weight(small_policy: GaussianMlp):
    assert small_policy.num_params == (3 + 1) * 5 + (5 + 1) * 4 + (4 + 1) * 2 + 2
    assert small_policy.init(torch.Generator().manual_seed(0)).shape == (small_policy.num_params,)


def test_init_depends_on_the_generator_alone(small_policy: GaussianMlp):
    torch.manual_seed(5)
    first = small_policy.init(torch.Generator().manual_seed(3))
    torch.manual_seed(6)
    assert torch.equal(first, small_policy.init(torch.Generator().manual_seed(3)))
    assert not torch.equal(first, small_policy.init(torch.Generator().manual_seed(4)))


def test_gaussian_equals_torch():
    mean, log_std = torch.randn(6, 2), torch.tensor([-0.7, 0.3])
    other_mean, other_log_std = torch.randn(6, 2), torch.tensor([0.1, -0.4])
    ours, action = DiagonalGaussian(mean, log_std), torch.randn(6, 2)
    theirs = Independent(Normal(mean, log_std.exp()), 1)
    other = Independent(Normal(other_mean, other_log_std.exp()), 1)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(
        ours.kl(DiagonalGaussian(other_mean, other_log_std)), kl_divergence(theirs, other)
    )


def test_normalizer_in_parts_equals_all_at_once_and_skips_masked_rows():
    rows = torch.randn(300, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([10.0, -2.0])
    normalizer = ObsNormalizer(2)
    for part in (rows[:50], rows[50:51], rows[51:]):
        spoiled = torch.cat([part, torch.full((3, 2), 1e6)])
        normalizer.update(spoiled, torch.tensor([1.0] * len(part) + [0.0] * 3))
    torch.testing.assert_close(normalizer.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalizer.var, rows.var(0, unbiased=False), rtol=1e-3, atol=1e-4)
    assert float(normalizer.count) == 300


def test_normalizer_clips_and_ignores_nothing():
    normalizer = ObsNormalizer(1)
    normalizer.update(torch.zeros(0, 1), torch.zeros(0))
    assert float(normalizer.count) == 0
    assert float(normalizer(torch.tensor([1e9]))) == pytest.approx(10.0)


def test_parameters_made_under_another_normaliser_act_as_they_did_there():
    there, here = (GaussianMlp(3, 2, PolicyConfig(hidden=[5, 4])) for _ in range(2))
    g = torch.Generator().manual_seed(0)
    there.normalizer.mean, there.normalizer.var = torch.tensor([1.0, -2.0, 0.5]), torch.rand(3)
    here.normalizer.mean, here.normalizer.var = torch.tensor([0.0, 1.0, 2.0]), 1 + torch.rand(3)
    params = torch.stack([there.init(g) + 0.1 for _ in range(2)])
    moved = here.renormalised(params, there.normalizer.mean, there.normalizer.var)
    obs = torch.randn(2, 6, 3, generator=g)
    wanted, found = there(params, obs), here(moved, obs)
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.log_std, wanted.log_std)
    same = there.renormalised(params, there.normalizer.mean, there.normalizer.var)
    torch.testing.assert_close(same, params)
