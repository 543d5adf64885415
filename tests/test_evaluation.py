"""Being measured: it teaches nothing, depends on the policy alone, and is not paid for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.adapter import Pull
from agent.continual.agents import Finetune, StreamAgent
from agent.continual.engram import Engram
from agent.continual.evaluation import Actor, Evaluator, ImpureEvaluationError, digest
from agent.continual.lifetime import Watch, World, live
from agent.continual.visit import Hint, Visit
from agent.policy import DiagonalGaussian, Policy
from agent.run import Run
from envs.half_cheetah import HalfCheetah, HalfCheetahTasks
from tests import test_continual
from tests.test_continual import Born, believing, lived, world

family, born = test_continual.family, test_continual.born
EPISODES = 2


@pytest.fixture
def around(family: HalfCheetah, born: Born) -> World:
    """A stream of two tasks, with seed 0."""
    return world(family, born[0])


def evaluator(around: World, seed: int = 0) -> Evaluator:
    return Evaluator(around.family, around.policy, EPISODES, seed)


def test_what_is_measured_follows_from_policy_task_and_seed_alone(around: World, born: Born):
    a, b = around.plan.tasks["A"], around.plan.tasks["B"]
    one = Actor(born[0].policy, born[0].theta.detach()[None])
    other = Actor(born[0].policy, one.params + 0.1)

    def rewards(*asked: Any, seed: int = 0) -> Tensor:
        with evaluator(around, seed) as own:
            return [own.measure(task, actor).reward for task, actor in asked][-1]

    wanted = rewards((a, one))
    # Whatever was measured before it, and on whichever simulators.
    assert torch.equal(wanted, rewards((a, one), (b, one), (a, other), (a, one)))
    assert torch.equal(wanted, rewards((b, one), (a, other), (a, one)))
    assert torch.equal(wanted, rewards((a, other), *[(a, other)] * 3, (a, one)))
    for change in (((a, other),), ((b, one),)):
        assert not torch.equal(wanted, rewards(*change))
    assert not torch.equal(wanted, rewards((a, one), seed=1))


def test_returns_are_those_of_the_deterministic_policy(around: World, born: Born):
    task, params = around.plan.tasks["A"], born[0].theta.detach()[None]
    louder = params.clone()
    louder[:, -around.family.action_size :] = 0.4  # the log-stds
    with evaluator(around) as own:
        quiet, loud = (own.measure(task, Actor(born[0].policy, p)) for p in (params, louder))
        chance = own.measure(task, Actor(born[0].policy, louder, deterministic=False))
    assert torch.equal(quiet.reward, loud.reward) and not torch.equal(loud.reward, chance.reward)


def test_every_policy_starts_where_the_others_do(
    around: World, born: Born, monkeypatch: pytest.MonkeyPatch
):
    """At starts of the lifetime and the task."""
    seeds: list[int] = []
    reset = HalfCheetahTasks.reset
    monkeypatch.setattr(
        HalfCheetahTasks, "reset", lambda self, seed: seeds.append(seed) or reset(self, seed)
    )
    policy, params = born[0].policy, born[0].theta.detach()[None]
    a, b = around.plan.tasks["A"], around.plan.tasks["B"]
    with evaluator(around) as own, evaluator(around, 1) as later:
        own.measure(a, Actor(policy, params))
        own.measure(a, Actor(policy, params + 0.1))
        own.measure(b, Actor(policy, params))
        later.measure(a, Actor(policy, params))
    assert seeds[0] == seeds[1] and len(set(seeds[1:])) == 3


def test_what_was_measured_before_is_not_paid_for_again(tmp_path: Path, around: World, born: Born):
    agent = believing()
    lived(agent, around, born, tmp_path)
    tasks = around.plan.tasks
    with evaluator(around) as own:
        first = [own.evaluate(agent, name, tasks[name], 4, None) for name in "AB"]
        again = [own.evaluate(agent, name, tasks[name], 4, None) for name in "AB"]
    # Two episodes of the policy and two of the probe, on each.
    assert [e.env_steps for e in first] == [4 * 20] * 2
    assert [e.env_steps for e in again] == [0] * 2
    for name, known in zip("AB", again, strict=True):
        with evaluator(around) as fresh:
            anew = fresh.evaluate(agent, name, tasks[name], 4, None)
        assert anew.returns == known.returns and anew.env_steps == 4 * 20


def test_a_guarded_trial_is_the_same_when_made_again(tmp_path: Path, around: World, born: Born):
    """Trials may be stopped, by bounds and by evidence: known or new, they end the same."""
    agent = believing()
    agent.reader = {"_target_": "agent.memory.reader.guarded.Guarded"}
    lived(agent, around, born, tmp_path)
    found = []
    for _ in range(2):
        with evaluator(around) as own:
            for _ in range(2):
                for name, task in around.plan.tasks.items():
                    found.append((name, own.evaluate(agent, name, task, 4, None).returns))
    assert len(found) == 8 and found[:2] * 4 == found


class Forgetful(Finetune):
    """Begins the visit itself when asked how it would."""

    def begin(self, visit: Visit) -> dict[str, Any]:
        """From a policy of this visit's own."""
        self.params = self.params + 0.01
        return super().begin(visit)

    def actor(self, visit: Visit) -> Actor:
        """Not on a copy."""
        self.begin(visit)
        return self.acting


def test_an_agent_that_evaluation_changes_is_caught(tmp_path: Path, around: World, born: Born):
    agent = Forgetful()
    agent.setup(*born, 0)
    with pytest.raises(ImpureEvaluationError, match=r"evaluated on 'A' changed .* actor\(\) must"):
        live(agent, around, Run(tmp_path), "forgetful")


AGENTS: dict[str, Any] = {
    "finetune": Finetune,
    "engram": Engram,
    "believing": believing,
    "posterior": lambda: believing(pull=Pull(kind="posterior")),
    "function": lambda: believing(pull=Pull(kind="function")),
}


@pytest.mark.parametrize("name", AGENTS)
def test_in_the_middle_of_a_visit_too_evaluation_leaves_an_agent_alone(
    name: str, tmp_path: Path, around: World, born: Born
):
    """Its memory, its generators, what it knows of the visit, and all that it does next."""
    whole = AGENTS[name]()
    wanted = lived(whole, around, born, tmp_path / "alone")
    agent: StreamAgent = AGENTS[name]()
    agent.setup(*born, 0)

    def measure(diary: Any) -> None:
        before = digest(agent.state_dict())
        acting = agent.acting.params
        with evaluator(around, seed=7) as own:
            for task_name, task in around.plan.tasks.items():
                own.evaluate(agent, task_name, task, 0, None)
        assert digest(agent.state_dict()) == before and torch.equal(agent.acting.params, acting)

    life = live(agent, around, Run(tmp_path / "watched"), "agent", Watch(measure))
    assert life is not None
    assert [e.returns for e in life.evaluations] == [e.returns for e in wanted.evaluations]
    assert [v.curve for v in life.visits] == [v.curve for v in wanted.visits]
    assert digest(agent.state_dict()) == digest(whole.state_dict())


class Asking(Finetune):
    """Remembers what it was told when it was asked how it would act."""

    def actor(self, visit: Visit) -> Actor:
        """Looks twice, as long as it likes."""
        one, other = visit.collect(self.params, 2), visit.collect(self.params, 2)
        assert not torch.equal(one.obs, other.obs)
        return Actor(Shifted(float((one.reward + other.reward).sum())), self.params)


class Shifted(Policy):
    """A policy of another make: always the same action."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, params: Tensor, obs: Tensor) -> DiagonalGaussian:
        """The action, for each observation."""
        mean = torch.full((*obs.shape[:-1], 6), self.by).tanh()
        return DiagonalGaussian(mean, torch.zeros(6))


def test_a_look_at_the_task_costs_the_agent_nothing_and_is_the_same_each_time(
    around: World, born: Born
):
    agent = Asking()
    agent.setup(*born, 0)
    task = around.plan.tasks["A"]
    with evaluator(around) as own:
        entries = [own.evaluate(agent, "A", task, c, Hint("A")) for c in (0, 1)]
    assert entries[0].returns == entries[1].returns and len(entries[0].returns) == EPISODES
    # The look is known the second time; a policy that was made anew is nobody's old one.
    assert [e.env_steps for e in entries] == [(2 + 2 + EPISODES) * 20, EPISODES * 20]


def test_a_digest_tells_tensors_apart_by_all_that_they_are():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    assert digest(base) == digest({"b": torch.ones(1), "a": torch.zeros(2, 3)})
    changed = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.float64)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(()) * 2},
        {"a": torch.zeros(2, 3)},
    ]
    assert len({digest(each) for each in [base, *changed]}) == 6
