"""The inner rule against its formula, closed forms and finite differences."""

from __future__ import annotations

import pytest
import torch

from agent import adapter
from agent.adapter import GradientAdapter, PpoAdapter, Pull
from agent.losses import clipped_surrogate, surrogate
from agent.policy import GaussianMlp
from agent.types import Recall
from tests.conftest import made_up_episodes


@pytest.fixture
def params(small_policy: GaussianMlp) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.5 * torch.randn(3, small_policy.num_params, generator=generator, dtype=torch.float64)


def recall_of(params: torch.Tensor, weights: list[float]) -> Recall:
    """The same K recalled policies for every task of ``params [T, P]``."""
    t, k = len(params), len(weights)
    generator = torch.Generator().manual_seed(9)
    rows = torch.randn(t, k, params.shape[1], generator=generator, dtype=params.dtype)
    index = torch.arange(k).expand(t, k)
    return Recall(
        index, torch.ones(t, k), torch.tensor(weights, dtype=params.dtype).expand(t, k), rows
    )


def test_the_rule_is_its_formula(small_policy: GaussianMlp, params: torch.Tensor):
    episodes = made_up_episodes(small_policy, params, 3, 4, 5)
    recall, rates = recall_of(params, [0.7, 0.3]), torch.full_like(params[0], 0.1)
    out = GradientAdapter(rates).step(small_policy, params, episodes, recall, 0.25)
    point = params.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(surrogate(small_policy, point, episodes).sum(), point)
    pull = 0.7 * (recall.params[:, 0] - params) + 0.3 * (recall.params[:, 1] - params)
    torch.testing.assert_close(out, params - 0.1 * gradient + 0.25 * pull)


@pytest.mark.parametrize("kind", [GradientAdapter(torch.tensor(0.1)), PpoAdapter(epochs=2)])
def test_beta_zero_is_bit_equal_to_no_memory(
    small_policy: GaussianMlp, params: torch.Tensor, kind: GradientAdapter | PpoAdapter
):
    episodes = made_up_episodes(small_policy, params, 3, 4, 5)
    without = kind.step(small_policy, params, episodes)
    with_zero = kind.step(small_policy, params, episodes, recall_of(params, [1.0]), 0.0)
    nothing_recalled = kind.step(small_policy, params, episodes, recall_of(params, [0.0]), 0.5)
    pulled = kind.step(small_policy, params, episodes, recall_of(params, [1.0]), 0.5)
    assert torch.equal(without, with_zero)
    assert torch.equal(without, nothing_recalled)
    assert not torch.equal(without, pulled)


@pytest.mark.parametrize("kind", [GradientAdapter(torch.tensor(0.1)), PpoAdapter(epochs=2)])
def test_tasks_do_not_touch_each_other_and_inputs_stay(
    small_policy: GaussianMlp, params: torch.Tensor, kind: GradientAdapter | PpoAdapter
):
    episodes = made_up_episodes(small_policy, params, 3, 4, 5)
    before = params.clone()
    together = kind.step(small_policy, params, episodes)
    alone = kind.step(small_policy, params[1:2], episodes._map(lambda x: x[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-9, atol=1e-12)
    assert torch.equal(params, before)
    assert not together.requires_grad


def test_gradient_of_the_surrogate_is_the_policy_gradient(
    small_policy: GaussianMlp, params: torch.Tensor
):
    # at the acting policy: grad = -mean(A * grad log pi), by the likelihood-ratio identity
    episodes = made_up_episodes(small_policy, params, 3, 4, 5)
    point = params.clone().requires_grad_(True)
    (ratio_form,) = torch.autograd.grad(surrogate(small_policy, point, episodes).sum(), point)
    log_prob = small_policy(point, episodes.obs).log_prob(episodes.action)
    assert episodes.advantage is not None
    (score_form,) = torch.autograd.grad(-(log_prob * episodes.advantage).mean((1, 2)).sum(), point)
    torch.testing.assert_close(ratio_form, score_form)


def test_meta_gradient_on_quadratic_tasks_has_its_closed_form(monkeypatch: pytest.MonkeyPatch):
    # L_i = |theta - c_i|^2 / 2; one step leaves (1 - a)(theta - c_i), so the meta-gradient is
    # (1 - a)^2 (theta - c_i), and (1 - a)(theta - c_i) if the inner gradient is held constant.
    centres = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)

    def quadratic(policy: object, point: torch.Tensor, episodes: object) -> torch.Tensor:
        return 0.5 * (point - centres).square().sum(-1)

    monkeypatch.setattr(adapter, "surrogate", quadratic)
    theta = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    for first_order, factor in ((False, 0.8**2), (True, 0.8)):
        rule = GradientAdapter(torch.tensor(0.2, dtype=torch.float64), first_order)
        moved = rule.step(None, theta.expand(2, -1), None)  # pyright: ignore[reportArgumentType]
        (gradient,) = torch.autograd.grad(quadratic(None, moved, None).sum(), theta)
        torch.testing.assert_close(gradient, factor * (theta.detach() - centres).sum(0))


def test_ppo_improves_its_surrogate_and_stays_near(small_policy: GaussianMlp, params: torch.Tensor):
    episodes = made_up_episodes(small_policy, params, 3, 6, 20)
    out = PpoAdapter(rate=1e-2, epochs=5).step(small_policy, params, episodes)
    before = surrogate(small_policy, params, episodes)
    after = surrogate(small_policy, out, episodes)
    assert bool((after < before).all())
    kl = small_policy(params, episodes.obs).kl(small_policy(out, episodes.obs)).mean()
    assert 0 < float(kl) < 0.5


def test_pull_schedules():
    assert [Pull().at(n) for n in (0, 5)] == [0.0, 0.0]
    assert [Pull(kind="constant", beta=0.2).at(n) for n in (0, 9)] == [0.2, 0.2]
    assert [Pull(kind="decay", beta=0.4).at(n) for n in (0, 1, 2)] == [0.4, 0.2, 0.1]


def test_ppo_steps_are_adams_on_each_task_alone(small_policy: GaussianMlp, params: torch.Tensor):
    rule = PpoAdapter(rate=0.01, epochs=3, max_grad_norm=0.05, adam_betas=[0.8, 0.9])
    episodes = made_up_episodes(small_policy, params, 3, 5, 4)
    ours = rule.step(small_policy, params, episodes)
    parts = [[0, 1, 2], [3, 4], [4, 0, 1], [2, 3], [3, 4, 0], [1, 2]]  # two to an epoch
    for t in range(3):
        own = episodes._map(lambda x, t=t: x[t : t + 1])
        leaf = params[t : t + 1].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([leaf], lr=0.01, betas=(0.8, 0.9))
        for part in parts:
            optimizer.zero_grad()
            chosen = own.episodes(torch.tensor(part))
            clipped_surrogate(small_policy, leaf, chosen, rule.clip).sum().backward()
            norm = torch.nn.utils.clip_grad_norm_([leaf], 0.05)
            assert float(norm) > 0.05  # or the clipping is not tested
            optimizer.step()
        torch.testing.assert_close(ours[t], leaf.detach()[0], rtol=1e-5, atol=1e-7)


def test_ppo_is_pulled_from_where_the_step_began(small_policy: GaussianMlp, params: torch.Tensor):
    episodes, recall = made_up_episodes(small_policy, params, 3, 4, 5), recall_of(params, [0.6])
    rule = PpoAdapter(rate=0.05, epochs=2)
    moved = rule.step(small_policy, params, episodes)
    pull = 0.6 * (recall.params[:, 0] - params)
    out = rule.step(small_policy, params, episodes, recall, 0.25)
    torch.testing.assert_close(out, moved + 0.25 * pull)


def test_a_step_outside_of_the_graph_takes_a_view_of_a_leaf(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0)).requires_grad_(True)
    episodes = made_up_episodes(small_policy, theta.detach().expand(2, -1), 2, 3, 6)
    adapter = GradientAdapter(torch.tensor(0.1))
    with torch.no_grad():
        view = theta.expand(2, -1)
        moved = adapter.step(small_policy, view, episodes)
    assert not moved.requires_grad
    plain = adapter.step(small_policy, theta.detach().expand(2, -1), episodes)
    assert torch.equal(moved, plain)
