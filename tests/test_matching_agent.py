"""Recalled policies that vote: weights by hand, one voter alone, and what a life of it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.continual.methods.matching import Matching, Vote, voters
from agent.learners.context import Context
from agent.learners.maml import Maml
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.seeding import generator
from agent.types import Trajectories
from envs.navigation import Navigation
from tests.test_memory_learners import born, keeps_all, lives, visit
from tests.test_readers import rows


def drawn(policy: GaussianMlp, *shape: int) -> Tensor:
    """Policies ``[..., P]``."""
    g = torch.Generator().manual_seed(0)
    return 0.5 * torch.randn(*shape, policy.num_params, generator=g)


def test_the_weights_are_the_posterior_with_none_of_these_for_the_meta_initialisation():
    offered = rows([[0.6, 0.3], [0.0, 0.0]], [0.1, 1.0])
    weights, policies = voters(offered)
    torch.testing.assert_close(weights, torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.0, 1.0]]))
    assert torch.equal(policies[:, :2], offered.params)
    assert torch.equal(policies[:, 2], offered.anchor.expand(2, -1))
    doubled = voters(replace(offered, weight=2 * offered.weight, null=2 * offered.null))[0]
    torch.testing.assert_close(doubled, weights)


def test_the_outcome_is_the_weighted_mean_of_the_voters_actions(small_policy: GaussianMlp):
    policies, vote = drawn(small_policy, 2, 3), Vote(small_policy)
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1]])
    obs = torch.randn(2, 4, 7, 3, generator=torch.Generator().manual_seed(1))
    said = vote(vote.ballot(weights, policies), obs)
    for task in range(2):
        each = [small_policy(policies[task, k][None], obs[task][None]) for k in range(3)]
        mean = sum(float(w) * s.mean[0] for w, s in zip(weights[task], each, strict=True))
        log_std = sum(float(w) * s.log_std[0] for w, s in zip(weights[task], each, strict=True))
        torch.testing.assert_close(said.mean[task], mean)
        torch.testing.assert_close(said.log_std[task], log_std)


def test_a_voter_with_all_the_weight_acts_as_if_alone(navigation: Navigation):
    policy = GaussianMlp(2, 2, PolicyConfig(hidden=[6]))
    policies, vote = drawn(policy, 2, 3), Vote(policy)
    weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    tasks = navigation.sample(2, generator(0, "tasks"))

    def acted(params: Tensor, by: Any) -> Trajectories:
        with TaskBatch(navigation, tasks, 3, policy, generator(0, "visit")) as batch:
            return batch.collect(params, policy=by)

    alone = acted(torch.stack([policies[0, 1], policies[1, 0]]), policy)
    voted = acted(vote.ballot(weights, policies), vote)
    for name in ("obs", "action", "log_prob", "reward"):
        assert torch.equal(getattr(alone, name), getattr(voted, name)), name


class Summing(GaussianMlp):
    """Acts on the sum of what it saw and of all rewards in the episode."""

    def begin(self, params: Tensor, episodes: int) -> Tensor:
        """Nothing seen."""
        return params.new_zeros(len(params), episodes, self.obs_size)

    def act(self, params: Tensor, obs: Tensor, carry: Any) -> tuple[DiagonalGaussian, Any]:
        """On the sum."""
        return self(params, carry + obs), carry + obs

    def heard(self, carry: Any, action: Tensor, reward: Tensor) -> Any:
        """The reward and the action count."""
        return carry + reward[..., None] + action.sum(-1, keepdim=True)

    def along(self, params: Tensor, episodes: Trajectories) -> DiagonalGaussian:
        """The same sums, from the record."""
        paid = episodes.reward[..., None] + episodes.action.sum(-1, keepdim=True)
        return self(params, episodes.obs.cumsum(2) + paid.cumsum(2) - paid)


def test_voters_that_remember_each_keep_their_own_memory(navigation: Navigation):
    policy = Summing(2, 2, PolicyConfig(hidden=[6]))
    vote = Vote(policy)
    params = vote.ballot(torch.tensor([[0.3, 0.7]] * 2), drawn(policy, 2, 2))
    tasks = navigation.sample(2, generator(0, "tasks"))
    with TaskBatch(navigation, tasks, 3, policy, generator(0, "visit")) as batch:
        acted = batch.collect(params, policy=vote)
    again = vote.along(params, acted).log_prob(acted.action)
    torch.testing.assert_close(again, acted.log_prob, atol=1e-3, rtol=1e-3)
    assert vote.heard(None, acted.action[:, :, 0], acted.reward[:, :, 0]) is None


@pytest.mark.parametrize("kind", [Maml, Context])
def test_a_new_task_is_learned_and_a_known_one_is_voted_on(navigation: Navigation, kind: Any):
    learner, probes = born(navigation, kind(), 2 if kind is Context else 0)
    agent = keeps_all(Matching)
    agent.setup(learner, probes, 0)
    told = lives(agent, navigation, "ABA")
    size = learner.policy.num_params
    assert [t["row"] for t in told] == [None, None, 0]
    assert [t["wrote"]["row"] for t in told] == [0, 1, None]
    assert [t["start"].shape[1] == size for t in told] == [True, True, False]
    assert torch.equal(told[2]["start"], told[2]["end"])  # no gradient
    assert told[2]["wrote"]["reason"].startswith("a known task")
    rows_now = agent.store.bank.snapshot()
    assert rows_now.visits.tolist() == [2, 1] and rows_now.recalls.tolist() == [1, 0]
    assert torch.equal(
        rows_now.params(torch.tensor([0])), told[2]["before"].params(torch.tensor([0]))
    )
    # The weights are the posterior that was told, and sum to one with "none of these".
    weights, policies = agent._vote.parts(told[2]["start"])
    assert weights[0, 0] == pytest.approx(told[2]["posterior"][0], rel=1e-4)
    assert weights[0, -1] == pytest.approx(told[2]["null"], rel=1e-4, abs=1e-9)
    assert torch.equal(policies[-1], learner.theta.detach())


def test_it_goes_on_from_any_batch_and_is_evaluated_by_its_vote(navigation: Navigation):
    learner, probes = born(navigation, Maml())

    def fresh() -> Any:
        agent = keeps_all(Matching)
        agent.setup(learner, probes, 0)
        return agent

    agent = fresh()
    whole = lives(agent, navigation, "AA")
    again = lives(fresh(), navigation, "AA", fresh)
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one["end"], other["end"]) and one["wrote"] == other["wrote"]
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    with visit(navigation, learner.policy, "A", 5) as here:
        actor = agent.actor(here)
    assert actor.policy is agent._vote and actor.params.shape[1] > learner.policy.num_params
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items())
