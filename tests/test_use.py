"""The pulls: closed forms, vanishing bias, and what they refuse to mix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from agent.adapter import GradientAdapter, PpoAdapter, Pull
from agent.losses import surrogate
from agent.memory.candidates import LineageError
from agent.memory.reader.base import recall_of
from agent.memory.reader.simple import SoftmaxTopK, Top1
from agent.memory.use import (
    FunctionRecall,
    function_recall,
    own_teacher,
    posterior_recall,
    used,
)
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig
from agent.types import Recall, Trajectories
from tests.conftest import made_up_episodes
from tests.test_readers import opened, rows


def recall_to(target: torch.Tensor) -> Recall:
    one = torch.ones(len(target), 1, dtype=target.dtype)
    return Recall(torch.zeros(len(target), 1).long(), one, one, target[:, None])


def test_harmonic_pulls_fade_as_a_prior_does():
    for kind in ("harmonic", "posterior", "function"):
        pull = Pull(kind=kind, beta=0.4, halving_steps=3.0)
        assert [pull.at(n) for n in (0, 3, 9)] == pytest.approx([0.4, 0.2, 0.1])


@pytest.mark.parametrize("kind", ["constant", "decay", "harmonic"])
def test_only_a_constant_pull_leaves_a_bias_on_a_quadratic(kind: str):
    # L = |theta - c|^2 / 2: a constant beta ends at (a c + b theta_bar) / (a + b)
    best, wrong, a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[5.0, 5.0]]), 0.1, 0.2
    pull, recall = Pull(kind=kind, beta=b), recall_to(wrong)  # pyright: ignore[reportArgumentType]
    theta = torch.zeros(1, 2)
    for n in range(20_000):
        theta = theta - a * (theta - best) + pull.at(n) * recall.pull(theta)
    end = (a * best + b * wrong) / (a + b) if kind == "constant" else best
    torch.testing.assert_close(theta, end, atol=1e-3, rtol=1e-3)


def test_the_posterior_pulls_by_responsibilities_none_among_them():
    offered = rows([[0.6, 0.3], [0.0, 0.0]], [0.1, 1.0])
    recall = posterior_recall(offered, spread=0.5)
    assert recall.index[:, -1].tolist() == [-1, -1]
    torch.testing.assert_close(recall.weights[0], torch.tensor([0.6, 0.3, 0.1]))
    # distances of the rows (1, 1) and (2, 2) from 0: 2 and 8 squared
    assert float(recall.tau[0]) == pytest.approx(0.5 * ((2 * 0.6 + 8 * 0.3) / 0.9) ** 0.5)
    here = torch.tensor([[1.9, 2.1], [3.0, 4.0]], requires_grad=True)
    means = torch.tensor([[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    parts = torch.distributions.Normal(means, recall.tau[0]).log_prob(here[0]).sum(-1)
    (gradient,) = torch.autograd.grad((recall.weights[0].log() + parts).logsumexp(0), here)
    pull = recall.pull(here.detach())
    torch.testing.assert_close(pull[0], gradient[0] * recall.tau[0].square())
    torch.testing.assert_close(pull[1], -here.detach()[1])  # nothing but the meta-initialisation
    at_anchor = posterior_recall(rows([[0.0]], [1.0])).pull(torch.zeros(1, 2))
    assert at_anchor.tolist() == [[0, 0]]


def test_function_pull_adds_the_gradient_of_its_divergence(small_policy: GaussianMlp):
    generator = torch.Generator().manual_seed(0)
    size = small_policy.num_params
    params, teacher = 0.5 * torch.randn(2, 2, size, generator=generator, dtype=torch.float64)
    episodes = made_up_episodes(small_policy, params, 2, 3, 4)
    recall = function_recall(recall_to(teacher), [own_teacher(small_policy, teacher)])
    out = GradientAdapter(torch.tensor(0.1)).step(small_policy, params, episodes, recall, 0.3)
    point = params.clone().requires_grad_(True)
    theirs = small_policy(teacher, episodes.obs)
    kl = theirs.kl(small_policy(point, episodes.obs)).mean((1, 2))
    loss = surrogate(small_policy, point, episodes) + 0.3 * kl
    torch.testing.assert_close(out, params - 0.1 * torch.autograd.grad(loss.sum(), point)[0])
    masked = replace(episodes, mask=torch.zeros_like(episodes.mask))
    assert not recall.divergence(small_policy, params, masked).any()
    assert not recall.pull(params).any()


@pytest.mark.parametrize("rule", [GradientAdapter(torch.tensor(0.05)), PpoAdapter(epochs=3)])
def test_a_policy_of_another_size_is_imitated(
    small_policy: GaussianMlp, rule: GradientAdapter | PpoAdapter
):
    bigger = GaussianMlp(3, 2, PolicyConfig(hidden=[20, 20]))
    generator = torch.Generator().manual_seed(1)
    theirs = 2 * bigger.init(generator)[None]
    params = small_policy.init(generator)[None]
    episodes = made_up_episodes(small_policy, params, 1, 4, 10)
    episodes = episodes.with_advantage(torch.zeros_like(episodes.reward))  # nothing but the pull
    recall = function_recall(recall_to(params), [own_teacher(bigger, theirs)])
    before = recall.divergence(small_policy, params, episodes)
    for _ in range(30):
        params = rule.step(small_policy, params, episodes, recall, 1.0)
    assert float(recall.divergence(small_policy, params, episodes)) < 0.7 * float(before)
    assert torch.equal(rule.step(small_policy, params, episodes, recall, 0.0), params)


def test_teachers_without_weight_say_nothing(small_policy: GaussianMlp):
    params = torch.zeros(1, small_policy.num_params)
    episodes = made_up_episodes(small_policy, params, 1, 2, 3)

    def broken(seen: Trajectories) -> DiagonalGaussian:
        return DiagonalGaussian(torch.full((*seen.reward.shape, 2), torch.nan), torch.zeros(2))

    none = replace(recall_to(params), weights=torch.zeros(1, 1))
    recall = function_recall(none, [broken])
    assert recall.divergence(small_policy, params, episodes).tolist() == [0.0]
    with pytest.raises(ValueError, match="1 weights for 2 teachers"):
        function_recall(none, [broken, broken])


def test_what_each_pull_uses_and_refuses(small_policy: GaussianMlp):
    offered = rows([[0.5, 0.4]], [0.1])
    foreign = replace(offered, mixable=torch.tensor([[False, True]]))
    trial = opened(Top1(), offered)
    assert used("none", trial, offered, small_policy) is None
    for kind in ("constant", "decay", "harmonic"):
        recall = used(kind, trial, offered, small_policy)
        assert recall is not None and recall.weights.tolist() == [[1.0, 0.0]]
        with pytest.raises(LineageError, match=r"rows \[100\]"):
            used(kind, opened(Top1(), foreign), foreign, small_policy)
    with pytest.raises(LineageError):
        used("posterior", opened(Top1(), foreign), foreign, small_policy)
    function = used("function", opened(Top1(), foreign), foreign, small_policy)
    assert isinstance(function, FunctionRecall) and len(function.teachers) == 2
    assert used("posterior", opened(SoftmaxTopK(), offered), offered, small_policy) is not None


def test_distances_say_how_sure_the_posterior_is():
    offered = rows([[1.0, 0.0], [0.5, 0.25]], [0.0, 0.25])
    distance = recall_of(offered, offered.weight).distance
    torch.testing.assert_close(torch.exp(-distance.square() / 2).float(), offered.weight)
