"""Reptile on a stream: where a visit starts, and how that moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agent.continual.agents import Finetune, PolicyAgent
from agent.continual.methods.reptile import ReptileOnline
from agent.continual.testing import AgentContract
from agent.continual.visit import Segment, Visit
from agent.learners.reptile import moved_towards
from agent.seeding import generator


class TestContract(AgentContract):
    """What every agent of the stream keeps."""

    def make_agent(self) -> Any:
        """With an outer rate that changes."""
        return ReptileOnline(halving_visits=1.0)


def lived(agent: PolicyAgent, visits: int) -> tuple[PolicyAgent, list[Tensor], list[Tensor]]:
    """The agent after some visits to as many tasks, and where each began and ended."""
    contract, starts, ends = TestContract(), [], []
    family = contract.make_family()
    learner, probes = contract.make_learner(family)
    agent.setup(learner, probes, 0)
    for number, task in enumerate(family.sample(visits, generator(0, "tasks"))):
        rng = generator(0, "visit", number)
        with Visit(family, [Segment(number, "A", task, 12)], learner.policy, rng) as visit:
            agent.begin(visit)
            starts.append(agent.params.clone())
            while visit.remaining:
                agent.improve(visit)
            ends.append(agent.params.clone())
            agent.end()
    return agent, starts, ends


def test_the_start_moves_by_epsilon_towards_where_the_visit_ended():
    agent, starts, ends = lived(ReptileOnline(outer_rate=0.25), 3)
    assert torch.equal(starts[0], agent.learner.theta.detach()[None])
    for start, end, after in zip(starts, ends, starts[1:], strict=False):
        torch.testing.assert_close(after, 0.75 * start + 0.25 * end)
        assert not torch.equal(start, end)


def test_epsilon_may_fall_as_visits_go_by():
    agent, starts, ends = lived(ReptileOnline(outer_rate=0.8, halving_visits=2.0), 3)
    torch.testing.assert_close(starts[1], 0.2 * starts[0] + 0.8 * ends[0])
    share = 0.8 * 2 / 3
    torch.testing.assert_close(starts[2], (1 - share) * starts[1] + share * ends[1])
    assert isinstance(agent, ReptileOnline) and agent.epsilon == pytest.approx(0.8 * 2 / 5)


def test_epsilon_one_is_fine_tuning_and_zero_stands_still():
    first, tuned = lived(ReptileOnline(outer_rate=1.0), 2), lived(Finetune(), 2)
    torch.testing.assert_close(first[1][1], tuned[1][1])  # the second start: the first end
    _, starts, _ = lived(ReptileOnline(outer_rate=0.0), 2)
    assert torch.equal(starts[0], starts[1])


def test_an_evaluation_is_of_the_start_not_of_the_last_policy():
    agent, starts, ends = lived(ReptileOnline(), 2)
    contract = TestContract()
    task = contract.make_family().sample(1, generator(0, "tasks"))[0]
    segment, rng = Segment(0, "A", task, 12), generator(0, "visit", 0)
    with Visit(contract.make_family(), [segment], agent.learner.policy, rng) as visit:
        shown = agent.actor(visit).params
    torch.testing.assert_close(shown, moved_towards(starts[1], ends[1], 0.25))


def test_the_meta_learned_step_is_for_the_meta_initialisation():
    agent = ReptileOnline()
    lived(agent, 0)
    with pytest.MonkeyPatch.context() as patch:
        steps: list[int] = []
        step = type(agent.learner).step

        def spy(self: Any, params: Tensor, episodes: Any, n: int, *more: Any) -> Tensor:
            steps.append(n)
            return step(self, params, episodes, n, *more)

        patch.setattr(type(agent.learner), "step", spy)
        lived(agent, 2)
    assert steps == [0, 1, 1, 2]
