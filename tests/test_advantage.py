"""Returns, GAE and the linear baseline on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import torch

from agent.advantage import estimate, gae, linear_baseline, normalize, returns_to_go
from agent.policy import ObsNormalizer
from agent.types import Trajectories

ONES = torch.ones(1, 1, 3)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([[list(values)]], dtype=torch.float32)


def test_returns_to_go_by_hand():
    # 3;  2 + .5 * 3 = 3.5;  1 + .5 * 3.5 = 2.75
    torch.testing.assert_close(returns_to_go(row(1, 2, 3), ONES, 0.5), row(2.75, 3.5, 3.0))


def test_returns_to_go_stops_at_the_mask():
    torch.testing.assert_close(returns_to_go(row(1, 2, 99), row(1, 1, 0), 0.5), row(2.0, 2.0, 0.0))


def test_gae_by_hand():
    # deltas: 3 - .3 = 2.7;  2 + .9 * .3 - .2 = 2.07;  1 + .9 * .2 - .1 = 1.08;  decay .9 * .5 = .45
    # A2 = 2.7;  A1 = 2.07 + .45 * 2.7 = 3.285;  A0 = 1.08 + .45 * 3.285 = 2.55825
    out = gae(row(1, 2, 3), row(0.1, 0.2, 0.3), ONES, 0.9, 0.5)
    torch.testing.assert_close(out, row(2.55825, 3.285, 2.7))


def test_gae_does_not_see_past_the_end_of_an_episode():
    # two valid steps: A1 = 2 - .2 = 1.8;  A0 = (1 + .9 * .2 - .1) + .45 * 1.8 = 1.89
    out = gae(row(1, 2, 77), row(0.1, 0.2, 55), row(1, 1, 0), 0.9, 0.5)
    torch.testing.assert_close(out, row(1.89, 1.8, 0.0))


def test_gae_with_lambda_one_is_return_less_value():
    reward, value = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.ones(2, 3, 5)
    torch.testing.assert_close(
        gae(reward, value, mask, 0.9, 1.0), returns_to_go(reward, mask, 0.9) - value
    )


def test_baseline_recovers_a_target_that_is_linear_in_its_features():
    obs = torch.randn(2, 20, 10, 3)
    time = torch.arange(10) / 10
    target = 2 * obs[..., 0] - obs[..., 2].square() + 3 * time**2 + 1
    torch.testing.assert_close(
        linear_baseline(obs, target, torch.ones(2, 20, 10)), target, rtol=0, atol=1e-2
    )


def test_baseline_is_fitted_task_by_task_and_ignores_masked_steps():
    obs = torch.randn(2, 20, 10, 3)
    target = torch.stack([obs[0, ..., 0], -5 * obs[1, ..., 1]])
    mask = torch.ones(2, 20, 10)
    mask[:, 3, 4:] = 0
    spoiled = target.clone()
    spoiled[:, 3, 4:] = 1e6
    fitted = linear_baseline(obs, spoiled, mask)
    torch.testing.assert_close(fitted * mask, target * mask, rtol=0, atol=1e-2)


def test_normalised_advantage_has_zero_mean_and_unit_sd_over_valid_steps_of_each_task():
    advantage = torch.randn(3, 4, 6) * 5 + 2
    mask = torch.ones(3, 4, 6)
    mask[0, 0, 3:] = 0
    out = normalize(advantage, mask)
    for t in range(3):
        valid = out[t][mask[t] > 0]
        assert abs(float(valid.mean())) < 1e-5
        assert abs(float(valid.std(unbiased=False)) - 1) < 1e-4
    assert float(out[0, 0, 3:].abs().sum()) == 0


def test_a_task_without_valid_steps_has_no_advantage_rather_than_nan():
    assert torch.equal(normalize(torch.randn(1, 2, 3), torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_estimate_is_gae_over_a_ridge_baseline_of_normalised_observations():
    rng, gamma, lam = np.random.default_rng(0), 0.8, 0.6
    obs, reward = rng.normal(size=(1, 6, 4, 2)), rng.normal(size=(1, 6, 4))
    normalizer = ObsNormalizer(2)
    normalizer.mean, normalizer.var = torch.tensor([0.5, -1.0]), torch.tensor([400.0, 900.0])
    episodes = Trajectories(
        obs=torch.tensor(obs),
        action=torch.zeros(1, 6, 4, 1),
        log_prob=torch.zeros(1, 6, 4),
        reward=torch.tensor(reward),
        mask=torch.ones(1, 6, 4, dtype=torch.float64),
        final_obs=torch.zeros(1, 6, 2),
        terminated=torch.zeros(1, 6, dtype=torch.bool),
        diverged=torch.zeros(1, 6, dtype=torch.bool),
    )
    x, t = (obs[0] - [0.5, -1.0]) / [20.0, 30.0], np.tile(np.arange(4) / 4, (6, 1))[..., None]
    features = np.concatenate([x, x**2, t, t**2, t**3, t**0], -1).reshape(24, -1)
    ahead = [np.pad(reward[0], ((0, 0), (0, k)))[:, k:] * gamma**k for k in range(4)]
    target = np.sum(ahead, axis=0)
    gram = features.T @ features + 1e-3 * np.eye(8)
    value = (features @ np.linalg.solve(gram, features.T @ target.ravel())).reshape(6, 4)
    delta = reward[0] + gamma * np.pad(value, ((0, 0), (0, 1)))[:, 1:] - value
    later = [np.pad(delta, ((0, 0), (0, k)))[:, k:] * (gamma * lam) ** k for k in range(4)]
    raw = np.sum(later, axis=0)
    expected = (raw - raw.mean()) / raw.std()
    found = estimate(episodes, normalizer, gamma, lam).advantage
    assert found is not None
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-5)
