"""The meta-learner: its gradient against finite differences, its state, and that it learns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from agent.advantage import estimate
from agent.learners.maml import Maml
from agent.learners.maml_trpo import MamlTrpo
from agent.policy import GaussianMlp
from agent.rollout import TaskBatch
from agent.seeding import generator, torch_generator
from agent.train import BatchSize, meta_iteration
from agent.types import Adaptation, Trajectories
from envs.navigation import Navigation
from tests.conftest import made_up_episodes


def make(policy: GaussianMlp, **settings: float) -> Maml:
    learner = Maml(**settings)  # pyright: ignore[reportArgumentType]
    learner.setup(policy, torch_generator(0, "init"))
    return learner


def in_double(learner: Maml) -> tuple[list[Trajectories], Trajectories]:
    """Put the learner into float64 and make up support and query episodes of two tasks."""
    policy = learner.policy
    learner.theta = learner.theta.detach().double().requires_grad_(True)
    learner.rates = torch.full_like(learner.theta, 0.3, requires_grad=True)
    acting = learner.theta.detach().expand(2, -1)
    support = [
        made_up_episodes(policy, acting, 2, 3, 6, seed=n) for n in range(learner.inner_steps)
    ]
    query = made_up_episodes(policy, acting + 0.01, 2, 3, 6, seed=7)
    return support, query


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_meta_gradient_equals_central_differences(small_policy: GaussianMlp, inner_steps: int):
    learner = make(small_policy, inner_steps=inner_steps)
    support, query = in_double(learner)
    learner.meta_loss(support, query).sum().backward()
    assert learner.theta.grad is not None
    leaves = [learner.theta] + ([learner.rates] if inner_steps else [])
    for leaf in leaves:
        assert leaf.grad is not None
        for i in torch.randperm(len(leaf), generator=torch.Generator().manual_seed(1))[
            :12
        ].tolist():
            sides = []
            for sign in (1, -1):
                moved = leaf.detach().clone()
                moved[i] += sign * 1e-6
                with torch.no_grad():
                    kept = leaf.clone()
                    leaf.copy_(moved)
                sides.append(float(learner.meta_loss(support, query).sum().detach()))
                with torch.no_grad():
                    leaf.copy_(kept)
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(
                float(leaf.grad[i]), rel=1e-4, abs=1e-8
            )


def test_first_order_gradient_is_a_different_one(small_policy: GaussianMlp):
    gradients = []
    for first_order in (False, True):
        learner = make(small_policy, first_order=first_order)
        learner.meta_loss(*in_double(learner)).sum().backward()
        gradients.append(learner.theta.grad)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)


def test_a_zero_inner_rate_is_multitask_learning(small_policy: GaussianMlp):
    maml, multitask = make(small_policy, inner_steps=1), make(small_policy, inner_steps=0)
    support, query = in_double(maml)
    maml.rates = torch.zeros_like(maml.theta)
    in_double(multitask)
    maml.meta_loss(support, query).sum().backward()
    multitask.meta_loss([], query).sum().backward()
    torch.testing.assert_close(maml.theta.grad, multitask.theta.grad)


def test_adapt_changes_nothing_and_update_does(navigation: Navigation):
    policy = GaussianMlp(2, 2)
    learner = make(policy)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    with TaskBatch(
        navigation, navigation.sample(3, generator(0, "train")), 4, policy, generator(0, "train", 1)
    ) as batch:
        adaptation = learner.adapt(batch)
        query = batch.collect(adaptation.params)
    assert all(torch.equal(before[k], v) for k, v in learner.state_dict().items())
    assert batch.steps_used == 2 * 3 * 4 * 20
    assert not torch.equal(adaptation.params[0], adaptation.params[1])
    learner.update(adaptation, query)
    assert not torch.equal(before["theta"], learner.state_dict()["theta"])
    assert not torch.equal(before["rates"], learner.state_dict()["rates"])
    assert not torch.equal(before["obs.mean"], learner.state_dict()["obs.mean"])


def test_state_goes_through_a_checkpoint_bit_for_bit(navigation: Navigation):
    size = BatchSize(tasks=3, episodes=4)
    one, other = make(GaussianMlp(2, 2)), make(GaussianMlp(2, 2))
    for i in range(3):
        meta_iteration(one, navigation, size, 0, i)
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    for learner in (one, other):
        meta_iteration(learner, navigation, size, 0, 3)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_diverged_episode_teaches_nothing(small_policy: GaussianMlp):
    learner = make(small_policy)
    params = learner.theta.detach().expand(2, -1)
    clean = made_up_episodes(small_policy, params, 2, 3, 6)
    mask, reward = clean.mask.clone(), clean.reward.clone()
    mask[0, 1], reward[0, 1] = 0.0, 1e9
    spoiled = dataclasses.replace(clean, mask=mask, reward=reward)
    obs = clean.obs.clone()
    obs[0, 1] = 123.0
    more_spoiled = dataclasses.replace(spoiled, obs=obs)
    assert torch.equal(learner.step(params, spoiled, 0), learner.step(params, more_spoiled, 0))


def learned(navigation: Navigation, inner_steps: int, seed: int, iterations: int) -> float:
    """Return after one adaptation step, mean over the last five iterations of a short training."""
    policy = GaussianMlp(2, 2)
    learner = make(policy, inner_steps=inner_steps)
    learner.setup(policy, torch_generator(seed, "init"))
    for i in range(iterations):
        meta_iteration(learner, navigation, BatchSize(tasks=20, episodes=10), seed, i)
    tasks = navigation.sample(20, generator(seed, "tasks"), "heldout")
    with TaskBatch(navigation, tasks, 10, policy, generator(seed, "evaluation")) as batch:
        start = learner.theta.detach().expand(20, -1)
        before = batch.collect(start)
        after = batch.collect(learner.step(start, before, 0))
    assert float(before.mean_return().mean()) < -17  # nobody can know the goal before having moved
    return float(after.mean_return().mean())


@pytest.mark.slow
def test_it_learns_to_adapt_on_navigation(navigation: Navigation):
    assert learned(navigation, inner_steps=1, seed=0, iterations=60) >= -8.0


@pytest.mark.slow
def test_multitask_learning_with_the_same_step_does_not(navigation: Navigation):
    assert learned(navigation, inner_steps=0, seed=0, iterations=60) < -15.0


def fresh_batch(learner: Maml) -> tuple[Adaptation, Trajectories]:
    """Support and query episodes of two tasks, as if just collected."""
    acting = learner.theta.detach().expand(2, -1)
    support, query = (made_up_episodes(learner.policy, acting, 2, 3, 6, seed=n) for n in (1, 2))
    support = learner.advantages(support)
    return Adaptation(learner.step(acting, support, 0), [support]), query


def test_the_first_steps_are_the_meta_learned_rule_and_the_rest_ppo(small_policy: GaussianMlp):
    for inner_steps, by_rule in ((0, [True, False, False]), (2, [True, True, False])):
        learner = make(small_policy, inner_steps=inner_steps)
        params = learner.theta.detach().expand(2, -1)
        episodes = learner.advantages(made_up_episodes(small_policy, params, 2, 3, 6))
        rule = learner.adapter.step(small_policy, params, episodes).detach()
        ppo = learner.task_adapter.step(small_policy, params, episodes)
        for n, expected in enumerate(by_rule):
            assert torch.equal(learner.step(params, episodes, n), rule if expected else ppo)


def test_the_published_rule_goes_on_at_half_its_rate(small_policy: GaussianMlp):
    learner = MamlTrpo(inner_rate=0.2)
    learner.setup(small_policy, torch_generator(0, "init"))
    params = learner.theta.detach().expand(2, -1)
    episodes = made_up_episodes(small_policy, params, 2, 4, 5)
    first, second = (learner.step(params, episodes, n) for n in range(2))
    torch.testing.assert_close(second - params, (first - params) / 2)
    assert float((first - params).abs().max()) > 1e-3
    ppo = dataclasses.replace(learner, later_rate=None)
    ppo.setup(small_policy, torch_generator(0, "init"))
    ready = ppo.advantages(episodes)
    expected = ppo.task_adapter.step(small_policy, params, ready)
    assert torch.equal(ppo.step(params, episodes, 1), expected)


def test_advantages_use_the_learners_own_discounts(small_policy: GaussianMlp):
    learner = make(small_policy, gamma=0.5, gae_lambda=0.3)
    params = learner.theta.detach().expand(2, -1)
    episodes = made_up_episodes(small_policy, params, 2, 3, 6)
    expected = estimate(episodes, small_policy.normalizer, 0.5, 0.3).advantage
    found = learner.advantages(episodes).advantage
    assert found is not None and expected is not None and torch.equal(found, expected)


def test_an_update_makes_its_epochs_clips_and_keeps_the_rates_in_range(
    small_policy: GaussianMlp,
):
    learner = make(small_policy, outer_epochs=3, outer_rate=1.0, max_grad_norm=1e-3)
    learner.update(*fresh_batch(learner))
    assert float(learner.state_dict()["adam.0.step"]) == 3
    rates = learner.rates.detach()
    assert float(rates.min()) == 0.0 and float(rates.max()) <= 2.0  # Adam moves each by about 1
    learner = make(small_policy, outer_epochs=1, max_grad_norm=1e-3)
    learner.update(*fresh_batch(learner))
    first_moment = learner.state_dict()["adam.0.exp_avg"]  # a tenth of the one gradient
    assert float(first_moment.norm()) == pytest.approx(1e-4, rel=1e-2)


def test_the_normaliser_takes_in_each_episode_of_an_update_once(small_policy: GaussianMlp):
    learner = make(small_policy)
    adaptation, query = fresh_batch(learner)
    learner.update(adaptation, query)
    rows = torch.cat([adaptation.support[0].obs, query.obs]).flatten(0, -2)
    normalizer = small_policy.normalizer
    assert float(normalizer.count) == len(rows)
    torch.testing.assert_close(normalizer.mean, rows.mean(0))
    torch.testing.assert_close(normalizer.var, rows.var(0, unbiased=False))


def test_the_normaliser_stands_still_while_the_loss_is_made(
    small_policy: GaussianMlp, monkeypatch: pytest.MonkeyPatch
):
    learner, counts = make(small_policy, outer_epochs=2), []
    adaptation, query = fresh_batch(learner)
    loss = Maml.meta_loss

    def spy(self: Maml, support: list[Trajectories], query: Trajectories) -> torch.Tensor:
        counts.append(float(self.policy.normalizer.count))
        return loss(self, support, query)

    monkeypatch.setattr(Maml, "meta_loss", spy)
    learner.update(adaptation, query)
    assert counts == [0.0, 0.0]


def test_a_meta_gradient_that_is_not_finite_is_refused(small_policy: GaussianMlp):
    learner = make(small_policy)
    adaptation, query = fresh_batch(learner)
    before = learner.theta.detach().clone()
    reward = query.reward.clone()
    reward[0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="meta-gradient is not finite"):
        learner.update(adaptation, dataclasses.replace(query, reward=reward))
    assert torch.equal(learner.theta.detach(), before)
