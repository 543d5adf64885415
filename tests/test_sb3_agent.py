"""stable-baselines3 in the stream: what it learns from is what happened, and all of it is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import tests.my_gym_envs  # noqa: F401 (registers them)
from agent.config import ConfigError, build
from agent.continual.diary import bytes_by_kind
from agent.continual.evaluation import digest
from agent.continual.sb3_agent import Sb3Agent
from agent.continual.sb3_state import own_randomness
from agent.continual.testing import AgentContract
from agent.continual.visit import Segment, Visit
from agent.learners.maml import Maml
from agent.policy import GaussianMlp, PolicyConfig
from agent.sb3 import TaskVecEnv
from agent.seeding import generator
from agent.train import new_learner
from envs.citizens import NativeVectorEnv
from envs.gym_tasks import GymTasks
from envs.navigation import NavigationSquare
from envs.param import Param
from envs.task import TaskDistribution, TaskError

SMALL = {"net_arch": [8]}
PPO_SETTINGS = {"batch_size": 16, "n_epochs": 2, "policy_kwargs": SMALL}
OFF_POLICY = {
    "learning_starts": 24,
    "batch_size": 8,
    "buffer_size": 1000,
    "policy_kwargs": SMALL,
}
GOAL = {"x": 0.2, "y": 0.0}


def agent_of(algorithm: str, **settings: Any) -> Sb3Agent:
    kwargs = PPO_SETTINGS if algorithm == "PPO" else OFF_POLICY  # shared: it must not be changed
    return Sb3Agent(
        **{
            "algorithm": f"stable_baselines3.{algorithm}",
            "kwargs": kwargs,
            "parallel": 4,
            **settings,
        }
    )


def born(agent: Sb3Agent, family: TaskDistribution) -> Sb3Agent:
    policy = GaussianMlp(family.obs_size, family.action_size, PolicyConfig(hidden=[4]))
    agent.setup(new_learner(Maml(), policy, 0), None, 5)  # type: ignore[arg-type]
    return agent


def square(**settings: Any) -> NavigationSquare:
    """Points that start anywhere; their episodes end in a box of 0.15 around the goal."""
    return NavigationSquare(name="square", **{"horizon": 8, "start": 0.4, "box": 0.15, **settings})


def visit_to(family: TaskDistribution, budget: int, values: dict[str, float]) -> Visit:
    policy = GaussianMlp(family.obs_size, family.action_size, PolicyConfig(hidden=[4]))
    segment = Segment(0, "A", family.task(values), budget)
    return Visit(family, [segment], policy, np.random.default_rng(0))


def lived(agent: Sb3Agent, visit: Visit) -> None:
    agent.begin(visit)
    while visit.remaining:
        agent.improve(visit)


class TestPpo(AgentContract):
    """On-policy."""

    order = "AB"

    def make_agent(self) -> Any:
        """Two of 14 episodes are left over."""
        return agent_of("PPO")


class TestSac(AgentContract):
    """Off-policy, with entropy coefficient and replay; episodes end early."""

    order = "AA"

    def make_agent(self) -> Any:
        """With a buffer that fills up."""
        return agent_of("SAC", waves=2, kwargs={**OFF_POLICY, "buffer_size": 80})

    def make_family(self) -> TaskDistribution:
        """Points that start at random."""
        return square()


class TestTd3(AgentContract):
    """With noise on actions and a delayed policy, made anew in each visit."""

    def make_agent(self) -> Any:
        """Seven at once."""
        return agent_of("TD3", parallel=7, action_noise=0.2, reset_each_visit=True)


def test_it_is_stable_baselines3_and_nothing_else():
    family, values = square(start=0.0, ends_at_goal=False), {"x": 0.3, "y": -0.1}
    agent = born(agent_of("PPO", waves=2), family)
    with visit_to(family, 16, values) as visit:
        lived(agent, visit)
        assert visit.steps_used == 2 * 64 == agent.model.num_timesteps
    # The same algorithm on an ordinary environment of the same task, drawing the same numbers.
    native = NativeVectorEnv(family, 4, task=values, autoreset_mode="SameStep")
    with own_randomness(generator(5, "init"), torch.device("cpu")):
        plain = PPO("MlpPolicy", TaskVecEnv(native), n_steps=16, device="cpu", **PPO_SETTINGS)
    started = digest(plain.policy.state_dict())
    for batch in range(2):
        with own_randomness(generator(5, "adaptation", batch), torch.device("cpu")):
            plain._last_obs = None
            plain.learn(64, reset_num_timesteps=False)
    assert digest(agent.model.policy.state_dict()) == digest(plain.policy.state_dict()) != started


@pytest.mark.parametrize("algorithm", ["SAC", "TD3"])
def test_what_is_replayed_is_what_happened(algorithm: str):
    family = square()
    agent = born(agent_of(algorithm, waves=3), family)
    with visit_to(family, 50, GOAL) as visit:
        lived(agent, visit)
        lengths = [e.length for e in visit.episodes]
        assert len(lengths) == 50 and min(lengths) < 8 == max(lengths)
        assert visit.steps_used == sum(lengths) and visit.remaining == 0
        assert [e.terminated for e in visit.episodes if e.length < 8] == [True] * sum(
            length < 8 for length in lengths
        )
    buffer: Any = agent.model.replay_buffer  # type: ignore[attr-defined]
    n = buffer.pos
    obs, following, action = (
        x[:n] for x in (buffer.observations, buffer.next_observations, buffer.actions)
    )
    assert 0.6 * sum(lengths) < 4 * n <= sum(lengths)
    assert following == pytest.approx(obs + 0.1 * action, abs=1e-6)
    away = following - np.array([0.2, 0.0])
    assert buffer.rewards[:n] == pytest.approx(-np.linalg.norm(away, axis=-1), abs=1e-6)
    # An episode is over at the goal or, for learning no end, at the horizon.
    inside = (np.abs(away) < 0.15).all(-1)
    assert (buffer.dones[:n].astype(bool) == inside | buffer.timeouts[:n].astype(bool)).all()
    assert inside.any() and not (inside & buffer.timeouts[:n].astype(bool)).any()
    # Where none is over, the next row is the next step of the same episode.
    goes_on = ~buffer.dones[: n - 1].astype(bool)
    jumps = (obs[1:] != following[:-1]).any(-1) & goes_on
    assert set(np.flatnonzero(jumps.any(-1))) <= set(range(23, n, 24))  # batches of 3 horizons


def test_too_few_episodes_are_acted_and_not_learned_from():
    agent = born(agent_of("SAC"), family := square(ends_at_goal=False))
    with visit_to(family, 6, GOAL) as visit:
        agent.improve(visit)
        before = digest(agent.model.policy.state_dict())
        agent.improve(visit)
        assert visit.remaining == 0 and visit.steps_used == 6 * 8
        assert agent.score == pytest.approx(np.mean([e.value for e in visit.episodes[4:]]))
    assert digest(agent.model.policy.state_dict()) == before
    assert agent.model.replay_buffer.pos == 8  # type: ignore[attr-defined]


def test_rollouts_that_the_budget_cuts_short_are_not_learned_from():
    # The goal is under the start: every episode is one step, and four are never eight.
    family = square(start=0.0, horizon=8)
    agent = born(agent_of("PPO"), family)
    with visit_to(family, 7, {"x": 0.0, "y": 0.0}) as visit:
        before = digest(agent.model.policy.state_dict())
        lived(agent, visit)
        assert visit.steps_used == 7
    assert digest(agent.model.policy.state_dict()) == before
    with visit_to(family, 32, {"x": 0.0, "y": 0.0}) as visit:
        lived(agent, visit)
        assert visit.steps_used == 32
    assert digest(agent.model.policy.state_dict()) != before


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "TD3"])
def test_it_acts_as_the_model_predicts(algorithm: str):
    agent = born(agent_of(algorithm), square())
    obs = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    actor = agent.acting
    mean = actor.policy(actor.params, obs).mean
    predicted, _ = agent.model.predict(obs[0].numpy(), deterministic=True)
    assert mean[0].clamp(-1, 1).numpy() == pytest.approx(predicted, abs=1e-6)
    assert mean.abs().max() > 1e-4 and actor.params.shape[0] == 1
    # The parameters decide: an actor of before goes on as it was.
    with visit_to(square(), 12, GOAL) as visit:
        lived(agent, visit)
    assert torch.equal(actor.policy(actor.params, obs).mean, mean)
    now = agent.acting
    assert now.policy is actor.policy and not torch.equal(now.policy(now.params, obs).mean, mean)


def test_a_model_made_anew_is_the_untrained_one():
    for reset in (True, False):
        agent = born(agent_of("SAC", reset_each_visit=reset), family := square())
        newborn = agent.acting.params
        with visit_to(family, 8, GOAL) as visit:
            lived(agent, visit)
            assert not torch.equal(agent.acting.params, newborn)
            assert torch.equal(agent.actor(visit).params, newborn) == reset
            agent.begin(visit)
        assert torch.equal(agent.acting.params, newborn) == reset
        assert (agent.model.replay_buffer.pos == 0) == reset  # type: ignore[attr-defined]


def test_what_is_carried_is_told_by_kind():
    agent = born(agent_of("SAC"), family := square())
    with visit_to(family, 8, GOAL) as visit:
        lived(agent, visit)
    size = bytes_by_kind(agent.state_dict())
    assert size.keys() == {"policy", "optimiser", "variable", "replay", "counter", "score"}
    steps = agent.model.replay_buffer.pos + 1  # type: ignore[attr-defined]
    # obs, next obs and action of two numbers; reward, done and time-out of one; for four rows
    assert size["replay"] == steps * 4 * 4 * (2 + 2 + 2 + 3) + 16


def test_families_that_cannot_restart_single_rows_go_one_by_one():
    lives = {"life": Param(to="attr:life", choices=[2, 3])}
    family = GymTasks(name="fragile", env_id="engram-test/Fragile-v0", horizon=6, params=lives)
    with visit_to(family, 6, {"life": 3}) as visit:
        lived(born(agent_of("SAC", parallel=1), family), visit)
        assert [e.length for e in visit.episodes] == [3] * 6


def test_rows_that_cannot_be_restarted_are_explained(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: object, *args: object) -> None:
        raise TaskError("X cannot restart single simulations")

    monkeypatch.setattr("envs.points.PointTasks.restart", refuse)
    agent = born(agent_of("SAC", waves=3), family := square())
    with visit_to(family, 40, GOAL) as visit:
        with pytest.raises(TaskError, match="set the agent's parallel to 1"):
            lived(agent, visit)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "stable_baselines3.PPOO"}, "'stable_baselines3.PPOO': cannot be imported"),
        ({"algorithm": "agent.policy.GaussianMlp"}, "is no algorithm of stable-baselines3"),
        ({"kwargs": {"seed": 1}}, r"kwargs\.seed: is set by the harness"),
        ({"kwargs": {"n_steps": 100}}, r"kwargs\.n_steps: is set by the harness"),
        ({"paralel": 3}, "unknown key; did you mean 'parallel'"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        build({"_target_": "agent.continual.sb3_agent.Sb3Agent", **settings}, "agent.mine")
    build(
        {
            "_target_": "agent.continual.sb3_agent.Sb3Agent",
            "algorithm": "stable_baselines3.SAC",
            "kwargs": {"n_steps": 3},
        },
        "agent.mine",
    )
