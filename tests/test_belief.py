"""Beliefs as parameters: pooling, the shared weights, the prior; context learning and the vote."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from agent.adapter import PpoAdapter
from agent.belief import BeliefPolicy, step_features
from agent.learners.context import Context, ContextAdaptation, ContextPolicy
from agent.learners.matching import Matching, VotingPolicy
from agent.learners.rl2 import Rl2
from agent.learners.varibad import Varibad
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.seeding import generator, torch_generator
from agent.train import BatchSize, make_policy, meta_iteration, new_learner
from agent.types import Adaptation, Trajectories
from envs.navigation import Navigation
from tests.conftest import made_up_episodes

Learns = TypeVar("Learns", bound=Context | Rl2)
SMALL = PolicyConfig(hidden=[5, 4])


def drawn(deltas: bool = False) -> ContextPolicy:
    """A policy with shared weights, and normalisers that do something."""
    policy = ContextPolicy(3, 2, SMALL, latent=2, width=8, deltas=deltas)
    policy.draw(torch_generator(0, "init"))
    policy.update_normalizers(some(policy, seed=9))
    return policy


def some(policy: GaussianMlp, episodes: int = 4, horizon: int = 6, seed: int = 0) -> Trajectories:
    params = torch.zeros(2, policy.num_params)
    return made_up_episodes(policy, params, 2, episodes, horizon, seed)


def prior(policy: ContextPolicy) -> torch.Tensor:
    return policy.init(torch_generator(0, "init")).expand(2, -1)


def test_the_order_of_steps_does_not_matter():
    policy = drawn()
    steps = some(policy, episodes=12, horizon=1)  # episodes of one step each: any order of steps
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    belief = policy.read(prior(policy), steps)
    torch.testing.assert_close(policy.read(prior(policy), steps.episodes(order)), belief)
    changed = dataclasses.replace(steps, reward=steps.reward.roll(1, 1))  # other pairs
    assert not torch.allclose(policy.read(prior(policy), changed), belief, atol=1e-3)


def test_reading_in_two_parts_equals_reading_at_once():
    policy = drawn()
    episodes = some(policy, episodes=5)
    halves = [episodes.episodes(slice(2)), episodes.episodes(slice(2, 5))]
    parts = policy.read(policy.read(prior(policy), halves[0]), halves[1])
    torch.testing.assert_close(parts, policy.read(prior(policy), episodes))


def test_a_belief_is_the_mean_over_valid_steps():
    policy = drawn()
    episodes = some(policy, episodes=2)
    mask = episodes.mask.clone()
    mask[0, 1, 3:] = 0.0
    shorter = dataclasses.replace(episodes, mask=mask)
    encoded = policy.encoder(step_features(policy, shorter))
    expected = (encoded * mask[..., None]).sum((1, 2)) / mask.sum((1, 2))[:, None]
    belief = policy.read(prior(policy), shorter)
    torch.testing.assert_close(belief[:, :2], expected)
    torch.testing.assert_close(belief[:, 2], torch.tensor([9 / 6, 2.0]))  # in whole episodes


def test_what_did_not_happen_or_diverged_leaves_no_trace():
    policy = drawn()
    episodes = some(policy)
    nothing = dataclasses.replace(episodes, mask=torch.zeros_like(episodes.mask))
    believed = policy.read(prior(policy), episodes)
    assert torch.equal(policy.read(believed, nothing), believed)
    assert torch.equal(policy.read(prior(policy), nothing), prior(policy))


def test_in_the_prior_the_head_sees_nothing_and_afterwards_the_bounded_mean():
    policy = drawn()
    assert torch.equal(policy.shown(prior(policy)), torch.zeros(2, 3))
    belief = torch.tensor([[0.5, -2.0, 3.0]])
    expected = torch.tensor([[0.5, -2.0]]).tanh()
    torch.testing.assert_close(policy.shown(belief)[:, :2], expected)
    assert float(policy.shown(belief)[0, 2]) == 1.0


def test_weights_shared_by_all_tasks_act_as_weights_of_each_task():
    shared, own = drawn(), drawn(deltas=True)
    obs, belief = some(shared).obs, torch.randn(2, 3)
    rows = torch.cat([belief, torch.zeros(2, own.num_params - 3)], 1)
    one, other = shared(belief, obs), own(rows, obs)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(
        one.log_prob(torch.zeros_like(one.mean)), other.log_prob(torch.zeros_like(other.mean))
    )
    inputs = torch.cat(
        [shared.normalizer(obs), shared.shown(belief)[:, None, None].expand(*obs.shape[:3], -1)], -1
    )
    torch.testing.assert_close(
        one.mean, shared.head.network(shared.weights.expand(2, -1), inputs).mean
    )


def test_deltas_of_one_task_change_that_task_alone():
    policy = drawn(deltas=True)
    rows = prior(policy).clone()
    rows[1, 3:] += 0.1
    obs = some(policy).obs[:1].expand(2, -1, -1, -1)
    before, after = policy(prior(policy), obs).mean, policy(rows, obs).mean
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_ppo_can_move_a_belief():
    policy = drawn()
    learner = Context(latent=2, width=8, task_adapter=PpoAdapter(epochs=2))
    learner.policy = policy
    learner.theta = prior(policy)[0]
    episodes = some(policy)
    belief = policy.read(prior(policy), episodes).detach()
    moved = learner.step(belief, episodes, 1)
    assert not torch.equal(moved[:, :2], belief[:, :2])
    assert torch.equal(moved[:, 2], belief[:, 2])  # the count has no gradient
    assert torch.equal(learner.step(prior(policy), episodes, 0), belief)  # step 0 reads


def test_a_belief_means_nothing_to_another_run():
    policy = drawn()
    with pytest.raises(ValueError, match="cannot be carried over to another training run"):
        policy.renormalised(prior(policy), torch.zeros(3), torch.ones(3))


def make(navigation: Navigation, learner: Learns, seed: int = 0) -> Learns:
    policy = make_policy(navigation, PolicyConfig(), False, "cpu", learner.make_policy)
    new_learner(learner, policy, seed)
    return learner


def test_the_belief_is_made_of_the_first_episodes_of_the_probe(navigation: Navigation):
    learner, used = make(navigation, Context(max_probes=3)), set()
    tasks = navigation.sample(3, generator(0, "train"))
    for n in range(12):
        rng = generator(0, "train", n)
        with TaskBatch(navigation, tasks, 5, learner.policy, rng) as batch:
            adaptation = learner.adapt(batch)
        probe = adaptation.support[0]
        expected = learner.policy.read(learner.prior(3), probe.episodes(slice(adaptation.used)))
        assert torch.equal(adaptation.params, expected.detach())
        used.add(adaptation.used)
    assert used == {1, 2, 3}


def test_each_part_of_the_loss_teaches_what_it_should(navigation: Navigation):
    learner = make(navigation, Context())
    tasks = navigation.sample(3, generator(0, "train"))
    with TaskBatch(navigation, tasks, 4, learner.policy, generator(0, "train", 1)) as batch:
        adaptation = learner.adapt(batch)
        query = learner.advantages(batch.collect(adaptation.params))
    probe = adaptation.support[0]
    encoder = list(learner.policy.encoder.parameters())
    taught = {
        "policy": (True, True),
        "probe": (False, True),  # the prior belief is not encoded
        "reward": (True, False),
        "change": (True, False),
    }
    for name, (encodes, acts) in taught.items():
        losses = learner.losses(probe.episodes(slice(2)), probe, query)
        found = torch.autograd.grad(
            losses[name], [*encoder, learner.policy.weights], allow_unused=True
        )
        some_of = [g is not None and bool(g.abs().sum() > 0) for g in found]
        assert any(some_of[:-1]) == encodes and some_of[-1] == acts, name


def test_an_update_needs_its_own_adaptation(navigation: Navigation):
    learner = make(navigation, Context())
    tasks = navigation.sample(2, generator(0, "train"))
    with TaskBatch(navigation, tasks, 2, learner.policy, generator(0, "train", 1)) as batch:
        adaptation = learner.adapt(batch)
    assert isinstance(adaptation, ContextAdaptation)
    plain = adaptation.support
    with pytest.raises(TypeError, match="what its own adapt gave"):
        learner.update(Adaptation(adaptation.params, plain), plain[0])


def voting() -> VotingPolicy:
    policy = VotingPolicy(3, 2, SMALL, prototypes=3, latent=2, width=8)
    policy.draw(torch_generator(0, "init"))
    return policy


def test_votes_are_a_softmax_of_distances_and_equal_in_the_prior():
    policy = voting()
    with torch.no_grad():
        policy.encoder.get_parameter("anchors").copy_(
            torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        )
        policy.encoder.get_parameter("sharpness").copy_(torch.tensor(0.5).log())
    known = torch.tensor([[0.0, 0.0, 1.0]])
    expected = torch.softmax(torch.tensor([[0.0, -0.5, -2.0]]), -1)
    torch.testing.assert_close(policy.attention(known), expected)
    torch.testing.assert_close(policy.attention(torch.zeros(1, 3)), torch.full((1, 3), 1 / 3))


def test_the_actions_are_the_weighted_mean_of_the_prototypes():
    policy = voting()
    obs, belief = some(drawn()).obs, torch.tensor([[0.3, -0.2, 1.0], [1.5, 0.4, 2.0]])
    acts, weight = policy(belief, obs), policy.attention(belief)
    each = [
        policy.head.network(one.expand(2, -1), policy.normalizer(obs)).mean
        for one in policy.weights.unflatten(0, (3, -1))
    ]
    expected = sum(weight[:, k, None, None, None] * each[k] for k in range(3))
    torch.testing.assert_close(acts.mean, expected)
    with torch.no_grad():  # a belief right at an anchor, and no doubt: that prototype alone
        policy.encoder.get_parameter("sharpness").fill_(12.0)
        anchor = policy.encoder.get_parameter("anchors")[1]
    sure = torch.cat([torch.atanh(anchor), torch.ones(1)]).expand(2, -1)
    torch.testing.assert_close(policy(sure, obs).mean, each[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "iterations"),
    [
        (Context(), 30),
        (Matching(outer_epochs=5), 30),
        (Rl2(), 20),
        (Varibad(), 16),
    ],
    ids=["context", "matching", "rl2", "varibad"],
)
def test_blind_to_its_belief_none_learns(
    navigation: Navigation,
    learner: Context | Rl2,
    iterations: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """The sabotaged copies, trained: -21.6 to -21.9. With their sight they reach -7 to -10."""
    for kind in (BeliefPolicy, VotingPolicy):
        monkeypatch.setattr(kind, "decide", blind(kind.decide))
    make(navigation, learner)
    for i in range(iterations):
        meta_iteration(learner, navigation, BatchSize(tasks=20, episodes=10), 0, i)
    tasks = navigation.sample(20, generator(0, "tasks"), "heldout")
    with TaskBatch(navigation, tasks, 1, learner.policy, generator(0, "evaluation")) as batch:
        probe = batch.collect(learner.prior(20))
        after = batch.collect(learner.step(learner.prior(20), probe, 0), deterministic=True)
    assert float(after.mean_return().mean()) < -17.7


def blind(decide: Callable[..., DiagonalGaussian]) -> Callable[..., DiagonalGaussian]:
    """The same, where whatever is believed looks like the prior."""

    def decides(
        self: BeliefPolicy, params: torch.Tensor, obs: torch.Tensor, shown: torch.Tensor
    ) -> DiagonalGaussian:
        return decide(self, params * 0, obs, shown * 0)

    return decides


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner", [Context(), Matching(outer_epochs=5)], ids=["context", "matching"]
)
def test_it_learns_to_find_the_goal_from_a_probe(navigation: Navigation, learner: Context):
    make(navigation, learner)
    for i in range(30):
        meta_iteration(learner, navigation, BatchSize(tasks=20, episodes=10), 0, i)
    tasks = navigation.sample(20, generator(0, "tasks"), "heldout")
    with TaskBatch(navigation, tasks, 3, learner.policy, generator(0, "evaluation")) as batch:
        before = batch.collect(learner.prior(20), deterministic=True)
        probe = batch.collect(learner.prior(20))
        after = batch.collect(learner.step(learner.prior(20), probe, 0), deterministic=True)
        swapped = batch.collect(
            learner.step(learner.prior(20), probe.tasks(torch.arange(20).roll(7)), 0),
            deterministic=True,
        )
    assert float(before.mean_return().mean()) < -17
    assert float(after.mean_return().mean()) > -14
    assert float(swapped.mean_return().mean()) < -17  # sabotage: the probe of another task
