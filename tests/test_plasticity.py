"""What is measured of a network, on networks whose activations are known."""

from __future__ import annotations

import math

import pytest
import torch

from agent.continual.metrics.plasticity import plasticity
from agent.policy import GaussianMlp, PolicyConfig


def made(weight: list[list[float]], bias: list[float]) -> tuple[GaussianMlp, torch.Tensor]:
    """A policy with one hidden layer of these weights ``[O, width]``; the rest is 0."""
    policy = GaussianMlp(len(weight), 1, PolicyConfig(hidden=[len(bias)]))
    params = torch.zeros(1, policy.num_params)
    hidden = torch.tensor([*[w for row in weight for w in row], *bias])
    params[0, : len(hidden)] = hidden
    params[0, -1] = 5.0  # the log-std is no weight
    return policy, params


def test_units_that_are_dead_quiet_busy_and_saturated():
    # Mean activities 0, .04, .3, 1: of their mean .335, shares 0, .12, .9, 3.
    wanted = [0.0, 0.04, 0.3]
    policy, params = made([[0, 0, 0, 0]], [*map(math.atanh, wanted), 20.0])
    found = plasticity(policy, params, torch.randn(7, 1))
    assert found["dormant"] == 0.25
    assert found["dormant_0.1"] == 0.25
    assert found["saturated"] == 0.25
    # Constant rows: one direction is all there is.
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert found["stable_rank"] == 1
    # 4 of the weights and biases are not 0, of 4 + 4 + 4 + 1.
    squares = sum(math.atanh(w) ** 2 for w in wanted) + 400
    assert found["weight_norm"] == pytest.approx(math.sqrt(squares / 13))


def test_between_a_fortieth_and_a_tenth_of_the_layer_a_unit_is_dormant_by_one_definition():
    policy, params = made([[0, 0]], [math.atanh(0.02), math.atanh(0.6)])
    found = plasticity(policy, params, torch.zeros(3, 1))
    assert found["dormant"] == 0
    assert found["dormant_0.1"] == 0.5  # .02 of a mean of .31


def test_the_effective_rank_is_the_number_of_equal_directions():
    size = 5
    policy, params = made((0.5 * torch.eye(size)).tolist(), [0.0] * size)
    found = plasticity(policy, params, torch.eye(size))
    assert found["effective_rank"] == pytest.approx(size, abs=1e-4)
    assert found["stable_rank"] == size
    # Singular values in the ratio 2 to 1 instead.
    policy, params = made([[math.atanh(0.2), 0.0], [0.0, math.atanh(0.1)]], [0.0, 0.0])
    found = plasticity(policy, params, torch.eye(2))
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found["effective_rank"] == pytest.approx(math.exp(entropy), abs=1e-4)
    policy, params = made([[0.5, 0.0], [0.0, 0.001]], [0.0, 0.0])
    assert plasticity(policy, params, torch.eye(2))["stable_rank"] == 1


def test_a_network_that_is_all_dead_has_numbers():
    policy, params = made([[0, 0]], [0.0, 0.0])
    found = plasticity(policy, params, torch.randn(3, 1))
    assert (found["dormant"], found["effective_rank"], found["stable_rank"]) == (1, 0, 0)


def test_each_layer_is_judged_by_its_own_mean_and_the_rank_is_of_the_last():
    policy = GaussianMlp(2, 1, PolicyConfig(hidden=[4, 3]))
    params = policy.init(torch.Generator().manual_seed(0))[None]
    obs = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    before = plasticity(policy, params, obs)
    assert before["dormant"] == 0
    assert before["effective_rank"] > 2
    params[0, 12 + 2 :: 3][:4] = 0.0  # all that leads to the last unit of the second layer
    params[0, 12 + 12 + 2] = 0.0
    after = plasticity(policy, params, obs)
    assert after["dormant"] == pytest.approx(1 / 7)
    assert after["effective_rank"] <= 2


def test_what_is_no_policy_or_no_observation_is_named():
    policy, params = made([[0, 0]], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"params \[1, 8\], got \[2, 8\]"):
        plasticity(policy, params.repeat(2, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"\[n, 1\] with n >= 1, got \[4, 3, 1\]"):
        plasticity(policy, params, torch.zeros(4, 3, 1))
    with pytest.raises(ValueError, match=r"got \[0, 1\]"):
        plasticity(policy, params, torch.zeros(0, 1))


def test_a_linear_policy_has_a_norm_and_no_units():
    policy = GaussianMlp(3, 2, PolicyConfig(hidden=[]))
    params = torch.full((1, policy.num_params), 2.0)
    assert plasticity(policy, params, torch.randn(5, 3)) == {"weight_norm": 2.0}
