"""Agents of one's own: what they are shown and charged, and that the contract finds what is wrong.

The shipped example keeps the contract in its own folder (``test_examples``).
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass

import tests.my_gym_envs  # noqa: F401 (registers them)
from agent.config import ConfigError
from agent.continual.agents import Finetune
from agent.continual.engram import Engram
from agent.continual.evaluation import Evaluator, ImpureEvaluationError
from agent.continual.step_agent import Body, Transition, arrays, tensors
from agent.continual.stepwise import Stepwise
from agent.continual.testing import AgentContract
from agent.continual.visit import Hint, Segment, Visit
from agent.learners.maml import Maml
from agent.memory.memory import MemoryConfig
from agent.policy import GaussianMlp, PolicyConfig
from agent.train import new_learner
from envs.gym_tasks import GymTasks
from envs.navigation import NavigationSquare, SquareTasks
from envs.param import Param
from envs.task import TaskDistribution, TaskError


@dataclass(kw_only=True, config={"extra": "forbid"})
class Plain:
    """Pushes as it is told, which ``shift`` makes a little more each batch; remembers all."""

    push: list[float]
    fault: str = ""

    def setup(self, body: Body) -> None:
        """Be born."""
        self.body, self.seen, self.told, self.ends = body, [], [], 0
        self.shift, self.weights = np.zeros(()), torch.zeros(2)

    def begin(self, hint: str | None) -> None:
        """Remember."""
        self.told.append(hint)

    def act(self, obs: np.ndarray, deterministic: bool) -> np.ndarray:
        """Push."""
        if self.fault == "learns when evaluated" and deterministic:
            self.shift += 1
        return np.tile(np.array(self.push) * (1 + 0.01 * self.shift), (len(obs), 1))

    def observe(self, transition: Transition) -> None:
        """Change."""
        self.seen.append(transition)
        if self.fault == "global randomness":
            self.weights += torch.rand(2)
        if self.fault == "python's randomness":
            self.shift = self.shift + random.random()
        self.shift = self.shift + 0.1
        self.weights += 1.0 if self.fault == "lends its memory" else 0.0

    def end(self) -> None:
        """Count."""
        self.ends += 1

    def state_dict(self) -> dict[str, Any]:
        """What changes."""
        if self.fault == "forgets":
            return {"weights": self.weights}
        weights = self.weights if self.fault == "lends its memory" else self.weights.clone()
        return {"shift": self.shift.copy(), "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.shift = state.get("shift", self.shift)
        self.weights = state["weights"]


def plain(push: list[float], episodes: int = 4, fault: str = "") -> Stepwise:
    node = {"_target_": f"{__name__}.Plain", "push": push, "fault": fault}
    return Stepwise(agent=node, episodes=episodes)


def born(agent: Stepwise, family: TaskDistribution) -> Any:
    policy = GaussianMlp(family.obs_size, family.action_size, PolicyConfig(hidden=[4]))
    agent.setup(new_learner(Maml(), policy, 0), None, 7)  # type: ignore[arg-type]
    return agent._own


def square(**settings: Any) -> NavigationSquare:
    return NavigationSquare(name="square", **{"horizon": 4, **settings})


def visit_to(
    family: TaskDistribution, budgets: list[int], values: list[dict[str, float]], hint: str = ""
) -> Visit:
    """A visit to one task after the other."""
    policy = GaussianMlp(family.obs_size, family.action_size, PolicyConfig(hidden=[4]))
    segments = [
        Segment(number, "ABC"[number], family.task(each), budget)
        for number, (budget, each) in enumerate(zip(budgets, values, strict=True))
    ]
    told = Hint(hint) if hint else None
    return Visit(family, segments, policy, np.random.default_rng(0), told)


def test_an_agent_is_shown_what_happened_and_charged_for_it():
    # The goal is 3 steps of 0.1 away along x: the episodes end there, one step before the horizon.
    family, agent = square(), plain([1.0, 0.0])
    own = born(agent, family)
    with visit_to(family, [11], [{"x": 0.3, "y": 0.0}], hint="A") as visit:
        agent.begin(visit)
        while visit.remaining:
            agent.improve(visit)
        agent.end()
        assert [e.length for e in visit.episodes] == [3] * 11
        assert [e.episode for e in visit.episodes] == list(range(11))
        assert visit.env_steps == {"learn": 33} and len(visit.act_s) == 6
        assert all(e.terminated and e.success and not e.diverged for e in visit.episodes)
        assert [e.value for e in visit.episodes] == pytest.approx([-0.2 - 0.1] * 11, abs=1e-6)
    assert own.told == ["A"] and own.ends == 1
    assert [len(t.row) for t in own.seen] == [4] * 3 + [7] * 3  # 3 left over would be few
    first, _, last = own.seen[:3]
    assert first.obs == pytest.approx(0.0) and first.obs.dtype == np.float32
    assert first.next_obs == pytest.approx(np.tile([0.1, 0.0], (4, 1)))
    assert last.next_obs == pytest.approx(np.tile([0.3, 0.0], (4, 1)))
    assert last.reward == pytest.approx(0.0, abs=1e-6) and first.reward == pytest.approx(-0.2)
    assert not first.terminated.any() and last.terminated.all() and not last.truncated.any()
    assert agent.score == pytest.approx(-0.3, abs=1e-6)


def test_actions_are_in_the_simulators_units():
    family = GymTasks(
        name="pendulum",
        env_id="Pendulum-v1",
        horizon=3,
        params={"g": Param(to="attr:g", low=9.0, high=10.0)},
    )
    agent = plain([1.5])
    own = born(agent, family)
    with visit_to(family, [4], [{"g": 10.0}]) as visit:
        agent.begin(visit)
        assert own.body.action_high == pytest.approx(2.0) and own.body.horizon == 3
        own.shift = np.zeros(())
        agent.improve(visit)
        for step in own.seen:
            # gymnasium's reward: the squares of angle, speed and torque before the step
            angle = np.arctan2(step.obs[:, 1], step.obs[:, 0])
            cost = angle**2 + 0.1 * step.obs[:, 2] ** 2 + 0.001 * step.action[:, 0] ** 2
            assert step.reward == pytest.approx(-cost, rel=1e-4)
        assert own.seen[2].action == pytest.approx(1.5 * 1.002)
        own.shift = np.zeros(())
        actor = agent.acting
        mean = actor.policy(actor.params, torch.zeros(1, 5, 3)).mean
        assert mean.shape == (1, 5, 1) and mean == pytest.approx(0.75)


def test_episodes_side_by_side_may_be_of_either_side_of_a_hidden_boundary():
    family = square(ends_at_goal=False)
    goals = [{"x": 0.3, "y": 0.4}, {"x": 0.0, "y": 0.1}]
    with visit_to(family, [5, 4], goals) as visit:
        for episodes in (3, 6):
            with visit.lend(episodes, "probe") as loan:
                while loan.running.any():
                    loan.step(np.zeros((episodes, 2)))
        assert [e.task for e in visit.episodes] == [*"AAAAABBBB"]
        assert [e.episode for e in visit.episodes] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
        # four steps at the origin, at the distances of the goals
        expected = [-2.0] * 5 + [-0.4] * 4
        assert [e.value for e in visit.episodes] == pytest.approx(expected, abs=1e-5)
        assert visit.env_steps == {"probe": 36} and visit.remaining == 0 and visit.segment == 2
        assert visit.settle(0) == {"probe": 20} and visit.settle(1) == {"probe": 16}


def test_rows_that_are_over_wait_or_go_on_with_the_next_episode():
    family = square(horizon=6)
    with visit_to(family, [4, 1], [{"x": 0.3, "y": 0.0}, {"x": 0.0, "y": 0.2}]) as visit:
        with visit.lend(2) as loan:
            push = np.array([[1.0, 0.0], [0.5, 0.0]])
            for _ in range(3):
                loan.step(push)
            assert loan.running.tolist() == [False, True]
            waited = loan.step(push)
            assert waited.reward[0] == 0.0 and waited.obs[0] == pytest.approx([0.3, 0.0])
            assert waited.reward[1] == pytest.approx(-0.1) and not waited.over[0]
            loan.start()
            assert waited.obs[0] == pytest.approx([0.3, 0.0])  # what was said stays said
            assert loan.running.all() and loan.obs == pytest.approx(
                np.array([[0.0, 0.0], [0.2, 0.0]])
            )
            while len(loan.finished) < 5:
                loan.start()
                loan.step(push)
            loan.start()
            assert not loan.running.any()
        # fast, slow, fast, slow at A; the last is at B, whose goal lies elsewhere
        assert [e.length for e in visit.episodes] == [3, 6, 3, 6, 6]
        assert [e.task for e in visit.episodes] == [*"AAAAB"]
        assert visit.settle(0) == {"learn": 18} and visit.settle(1) == {"learn": 6}


def test_budgets_cannot_be_overdrawn_or_left_in_the_middle():
    family = square()
    with visit_to(family, [3], [{"x": 0.3, "y": 0.0}]) as visit:
        with (
            pytest.raises(ValueError, match="asked for 4 episodes, but the visit has 3"),
            visit.lend(4),
        ):
            pass
        with pytest.raises(RuntimeError, match="2 of the episodes lent were not acted to"):
            with visit.lend(2) as loan:
                loan.step(np.zeros((2, 2)))


class Breaking(SquareTasks):
    """Points that blow up at the third step, each family in its own way."""

    def step(self, action: np.ndarray) -> Any:
        """Break."""
        obs, reward, ended, cut = super().step(action)
        now = self._steps[..., 0] == 3
        obs[now & (self.family.name == "nan")] = np.nan
        reward[now & (self.family.name == "reward")] = np.inf
        return obs, reward, ended, cut

    @property
    def diverged(self) -> np.ndarray:
        """As the simulator itself says."""
        return (self._steps == 3) & (self.family.name == "flag")


@dataclass(kw_only=True, config={"extra": "forbid"})
class Breaks(NavigationSquare):
    """A family of them."""

    SIMULATORS = Breaking


@pytest.mark.parametrize("how", ["nan", "reward", "flag"])
def test_what_a_broken_simulation_said_is_shown_to_nobody(how: str):
    family, agent = Breaks(name=how, horizon=5), plain([0.1, 0.0], episodes=2)
    own = born(agent, family)
    with visit_to(family, [2], [{"x": 0.3, "y": 0.0}]) as visit:
        agent.begin(visit)
        agent.improve(visit)
        told = [(e.diverged, e.length, e.terminated) for e in visit.episodes]
        assert told == [(True, 0, False)] * 2
        assert all(math.isnan(e.value) for e in visit.episodes) and math.isnan(agent.score)
        assert visit.env_steps == {"learn": 6}
    last = own.seen[-1]
    assert len(own.seen) == 3 and last.truncated.all() and not last.terminated.any()
    assert last.reward.tolist() == [0.0, 0.0] and (last.next_obs == last.obs).all()
    assert own.seen[1].reward == pytest.approx(-0.28, abs=1e-4)


def fragile() -> GymTasks:
    """Episodes of a given length."""
    return GymTasks(
        name="fragile",
        env_id="engram-test/Fragile-v0",
        horizon=5,
        params={"life": Param(to="attr:life", choices=[2, 3, 7])},
    )


def test_simulators_that_cannot_restart_single_rows_restart_all():
    with visit_to(fragile(), [2, 2], [{"life": 2}, {"life": 7}]) as visit:
        with visit.lend(2) as loan:
            for _ in range(2):
                loan.step(np.zeros((2, 2)))
            loan.start()
            for _ in range(5):
                loan.step(np.zeros((2, 2)))
        assert [(e.length, e.terminated) for e in visit.episodes] == [(2, True)] * 2 + [
            (5, False)
        ] * 2
    with visit_to(fragile(), [1, 4], [{"life": 2}, {"life": 7}]) as visit:
        with pytest.raises(TaskError, match="cannot restart single"):
            with visit.lend(2) as loan:
                for _ in range(2):
                    loan.step(np.zeros((2, 2)))
                loan.start()


def test_being_evaluated_is_a_frozen_copys_affair_and_costs_nothing_twice():
    family, agent = square(), plain([1.0, 0.0])
    own = born(agent, family)
    with Evaluator(family, GaussianMlp(2, 2), 3, 0) as evaluator:
        task = family.task({"x": 0.3, "y": 0.0})
        first = evaluator.evaluate(agent, "A", task, 0, None)
        assert not hasattr(own, "body")  # even its birth was its copy's
        assert first.returns == pytest.approx([-0.3] * 3, abs=1e-6)
        with visit_to(family, [8], [{"x": 0.3, "y": 0.0}]) as visit:
            agent.begin(visit)
            assert evaluator.evaluate(agent, "A", task, 0, None).env_steps == 0
            agent.improve(visit)
            before = agent.acting
            mean = before.policy(before.params, torch.zeros(1, 3, 2)).mean
            agent.improve(visit)
            assert torch.equal(before.policy(before.params, torch.zeros(1, 3, 2)).mean, mean)
        assert before is not agent.acting and agent.acting is agent.acting
        assert evaluator.evaluate(agent, "A", task, 1, None).env_steps > 0


def test_states_keep_the_kind_of_their_arrays():
    state = {"a": np.arange(3), "b": torch.arange(3.0), "c": np.array(2.5), "d": np.array(True)}
    stored = tensors(state)
    assert all(isinstance(value, torch.Tensor) for value in stored.values())
    back = arrays(stored)
    for name, value in state.items():
        assert type(back[name]) is type(value) and back[name].dtype == value.dtype
        assert (back[name] == value).all()
    with pytest.raises(TypeError, match="'x' is a float; expected an array or a tensor"):
        tensors({"x": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"'adapter\.low' is a name of the adapter's"):
        tensors({"adapter.low": np.zeros(1)})


def test_mistakes_are_named():
    with pytest.raises(TypeError, match=r"GaussianMlp|lacks setup, begin, act"):
        born(Stepwise(agent={"_target_": "agent.policy.PolicyConfig"}), square())
    with pytest.raises(ConfigError, match=r"agent\.agent\.pusj: unknown key; did you mean 'push'"):
        born(Stepwise(agent={"_target_": f"{__name__}.Plain", "pusj": [1.0]}), square())
    agent = plain([1.0])  # one action where two are expected
    born(agent, square())
    with visit_to(square(), [4], [{"x": 0.3, "y": 0.0}]) as visit:
        agent.begin(visit)
        with pytest.raises(
            ValueError, match=r"Plain\.act: expected finite actions of shape \(4, 2"
        ):
            agent.improve(visit)


class TestFinetune(AgentContract):
    """A shipped agent."""

    def make_agent(self) -> Any:
        """As it is."""
        return Finetune()


class TestEngram(AgentContract):
    """The shipped agent."""

    def make_agent(self) -> Any:
        """As it is."""
        return Engram(memory=MemoryConfig())


class TestPlain(AgentContract):
    """An agent that says nothing wrong."""

    fault = ""

    def make_agent(self) -> Any:
        """Which changes with what it observes."""
        return plain([0.3, -0.2], episodes=6, fault=self.fault)


@pytest.mark.parametrize(
    ("fault", "test", "complaint"),
    [
        ("forgets", "test_it_goes_on_from_any_moment", "has other episodes"),
        ("global randomness", "test_the_same_seed_is_the_same_life", "has other state"),
        ("python's randomness", "test_the_same_seed_is_the_same_life", "has other"),
        ("learns when evaluated", "test_being_evaluated_teaches_nothing", "measured twice"),
    ],
)
def test_the_contract_finds(fault: str, test: str, complaint: str):
    contract = TestPlain()
    contract.fault = fault
    with pytest.raises(AssertionError, match=complaint):
        getattr(contract, test)()


class Spendthrift(Finetune):
    """Writes down an episode that it did not act in."""

    def improve(self, visit: Visit) -> None:
        """Cheat."""
        number = visit.segment
        super().improve(visit)
        visit._charge(number, "learn", 1)


class Lender(Finetune):
    """What it saves is what it goes on working with."""

    def improve(self, visit: Visit) -> None:
        """Cheat."""
        before = self.params
        super().improve(visit)
        before.copy_(self.params)
        self.params = before


class Impure(Finetune):
    """Learns from being evaluated."""

    def actor(self, visit: Visit) -> Any:
        """Cheat."""
        self.params = self.params + 1.0
        return self.acting


@pytest.mark.parametrize(
    ("kind", "test", "error"),
    [
        (Spendthrift, "test_budgets_are_spent_exactly", AssertionError),
        (Lender, "test_what_was_saved_stays_as_it_was", AssertionError),
        (Impure, "test_being_evaluated_teaches_nothing", ImpureEvaluationError),
    ],
)
def test_the_contract_finds_cheats(kind: type[Finetune], test: str, error: type[Exception]):
    contract = AgentContract()
    contract.make_agent = kind  # type: ignore[method-assign]
    with pytest.raises(error):
        getattr(contract, test)()
