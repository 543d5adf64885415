"""Other methods in the harness: of each, what defines it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.adapter import GradientAdapter
from agent.advantage import gae, normalize
from agent.config import build
from agent.continual.agents import Finetune, PolicyAgent
from agent.continual.lifetime import World, live
from agent.continual.methods.critic import FinetuneCritic
from agent.continual.methods.distill import Distill
from agent.continual.methods.libraries import OracleLibrary
from agent.continual.methods.memory_only import MemoryOnly
from agent.continual.methods.packnet import PackNet
from agent.continual.methods.parts import Distilling
from agent.continual.methods.regularised import L2, Ewc, Mas, Regularised, fisher, sensitivity
from agent.continual.methods.replay import Demonstrations, Replay
from agent.continual.methods.simple import Random, Scratch, SnapshotAverage, Uniform
from agent.continual.stream import Stream
from agent.continual.visit import Hint, Segment, Visit
from agent.files import read_yaml
from agent.learners.maml import Maml
from agent.memory.bank import BankConfig
from agent.memory.decide import WriteConfig
from agent.memory.memory import MemoryConfig
from agent.memory.probes import TrainingProbes
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig
from agent.run import Run
from agent.seeding import generator
from agent.train import Calibration, make_policy, new_learner, probe_twice
from envs.navigation import Navigation
from envs.task import Param
from tests.conftest import made_up_episodes

CONFIGS = Path(__file__).parent.parent / "configs" / "agent"
NAMES = (
    "random scratch snapshot_average memory_only oracle_library ewc l2 mas packnet replay distill "
    "finetune_reset_critic finetune_critic"
).split()
BUDGET = 14


@pytest.fixture(scope="module")
def family() -> Navigation:
    """Goals on the unit circle, 20 steps."""
    angle = Param(to="attr:angle", low=0.0, high=2 * math.pi)
    return Navigation(name="navigation", horizon=20, params={"angle": angle})


@pytest.fixture(scope="module")
def born(family: Navigation) -> tuple[Maml, TrainingProbes]:
    """An untrained meta-initialisation and its probes."""
    learner = new_learner(Maml(), make_policy(family, PolicyConfig(hidden=[8]), False, "cpu"), 0)
    assert isinstance(learner, Maml)
    return learner, probe_twice(learner, family, Calibration(tasks=8, episodes=2), 0)[0]


class Life:
    """Visits to tasks by name, without the runner; after each, how the agent is on every task."""

    def __init__(self, family: Navigation, born: tuple[Maml, TrainingProbes]) -> None:
        self.family, self.born = family, born
        tasks = family.sample(3, generator(0, "stream"), distinct=True)
        self.tasks = dict(zip("ABC", tasks, strict=True))
        self.told: list[dict[str, Any]] = []
        self.starts: list[Tensor] = []
        self.ends: list[Tensor] = []

    def visit(self, name: str, number: int = 0, hint: bool = True) -> Visit:
        """To one of the tasks, the same each time."""
        segment = Segment(number, name, self.tasks[name], BUDGET)
        rng = generator(0, "visit", number)
        told = Hint(name) if hint else None
        return Visit(self.family, [segment], self.born[0].policy, rng, told)

    def born_as(self, agent: Any, seed: int = 0) -> Any:
        """The agent, set up."""
        agent.setup(*self.born, seed)
        return agent

    def lives(
        self, agent: Any, order: str, between: Callable[[Any], Any] = lambda agent: agent
    ) -> Any:
        """Through the visits; ``between`` two batches the agent may be replaced."""
        for number, name in enumerate(order, len(self.ends)):
            with self.visit(name, number) as visit:
                self.told.append(agent.begin(visit))
                self.starts.append(agent.params.clone())
                while visit.remaining > 0 or agent.pending:
                    agent.improve(visit)
                    agent = between(agent)
                self.ends.append(agent.params.clone())
                agent.end()
        return agent

    def policy_on(self, agent: PolicyAgent, name: str) -> Tensor:
        """How the agent would act if it met the task now."""
        with self.visit(name) as visit:
            return agent.actor(visit).params

    def learns_by_ppo_alone(self, agent: PolicyAgent, name: str) -> bool:
        """Whether its first step in a visit is plain PPO, not the meta-learned step."""
        learner, agent = self.born[0], agent.twin()
        with self.visit(name) as visit, self.visit(name) as same:
            agent.begin(visit)
            start = agent.params
            episodes = learner.advantages(same.collect(start, agent.episodes))
            agent.improve(visit)
        plain = learner.task_adapter.step(learner.policy, start, episodes)
        return torch.equal(agent.params, plain)


@pytest.fixture
def life(family: Navigation, born: tuple[Maml, TrainingProbes]) -> Life:
    """A life to be lived."""
    return Life(family, born)


def configured(name: str) -> Any:
    built = build(read_yaml(CONFIGS / f"{name}.yaml"), f"agent.{name}")
    if isinstance(built, Distill):
        built.distilling.steps = 20  # to be quick
    return built


@pytest.mark.parametrize("name", NAMES)
def test_every_method_lives_a_stream_and_spends_its_budget_exactly(
    name: str, tmp_path: Path, family: Navigation, born: tuple[Maml, TrainingProbes]
):
    stream = Stream(name="test", order=list("ABAB"), budget_episodes=BUDGET, eval_episodes=2)
    agent = configured(name)
    agent.setup(*born, 0)
    lived = live(agent, World.of(stream, family, born[0].policy, 0), Run(tmp_path), name)
    assert lived is not None and not lived.deviations
    assert [sum(visit.env_steps.values()) for visit in lived.visits] == [BUDGET * 20] * 4
    assert [visit.curve[-1].episodes for visit in lived.visits] == [BUDGET] * 4


@pytest.mark.parametrize("name", NAMES)
def test_saved_after_every_batch_and_gone_on_with_afresh_is_the_same_life(name: str, life: Life):
    agent = life.lives(life.born_as(configured(name)), "ABA")
    whole = agent.state_dict()

    def reborn(agent: Any) -> Any:
        fresh = life.born_as(configured(name))
        fresh.load_state_dict({k: v.clone() for k, v in agent.state_dict().items()})
        return fresh

    again = Life(life.family, life.born)
    other = again.lives(again.born_as(configured(name)), "ABA", reborn)
    parts = other.state_dict()
    assert torch.equal(life.policy_on(agent, "B"), again.policy_on(other, "B"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


@pytest.mark.parametrize(
    ("agent", "isolates"),
    [(OracleLibrary(), True), (PackNet(tasks=3), True), (Finetune(), False), (Replay(), False)],
)
def test_isolating_methods_forget_exactly_nothing(agent: Any, isolates: bool, life: Life):
    agent = life.lives(life.born_as(agent), "A")
    before = life.policy_on(agent, "A")
    agent = life.lives(agent, "BCB")  # a re-visit of another task included
    assert torch.equal(life.policy_on(agent, "A"), before) == isolates
    if isolates:
        assert torch.equal(before, life.ends[0])
        assert torch.equal(life.policy_on(agent, "B"), life.ends[3])


@pytest.mark.parametrize("agent", [OracleLibrary(), PackNet()])
def test_methods_that_need_the_task_say_so(agent: Any, life: Life):
    life.born_as(agent)
    assert agent.needs.task and agent.needs.boundary
    with life.visit("A", hint=False) as visit, pytest.raises(ValueError, match="told"):
        agent.begin(visit)


# The ends of the scale


def test_random_actions_are_uniform_also_when_evaluated(life: Life):
    acts = Uniform(2)(torch.zeros(1, 0), torch.zeros(1, 3, 5))
    noise = torch.tensor([-8.0, -0.6744898, 0.0, 0.6744898, 8.0])  # quartiles of the normal
    expected = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert torch.allclose(acts.sample(noise), expected, atol=1e-6)
    assert torch.equal(acts.mean, torch.zeros(1, 3, 2))
    assert torch.allclose(acts.log_prob(torch.zeros(1, 3, 2)), torch.tensor(2 * math.log(0.5)))
    agent = life.born_as(Random())
    with life.visit("A") as visit:
        assert not agent.actor(visit).deterministic
        acted = visit.collect(agent.params, BUDGET, policy=agent.policy).action
    assert acted.abs().max() <= 1 and acted.mean().abs() < 0.1
    assert acted.var() == pytest.approx(1 / 3, rel=0.1)


def test_scratch_starts_every_visit_at_random_and_never_with_the_meta_learned_step(life: Life):
    life.lives(life.born_as(Scratch()), "AA")
    other = Life(life.family, life.born)
    other.lives(other.born_as(Scratch()), "B")
    assert torch.equal(life.starts[0], other.starts[0])  # of the seed, not of the task
    assert not torch.equal(life.starts[0], life.starts[1])
    assert not torch.equal(life.starts[0], life.born[0].theta.detach()[None])
    assert not torch.equal(life.starts[0], life.born_as(Scratch(), seed=1).params)
    assert life.learns_by_ppo_alone(other.born_as(Scratch()), "A")
    assert not life.learns_by_ppo_alone(life.born_as(Finetune()), "A")


def test_snapshot_average_starts_from_the_mean_of_all_ends(life: Life):
    agent = life.lives(life.born_as(SnapshotAverage()), "ABC")
    assert torch.equal(life.starts[0], life.born[0].theta.detach()[None])
    assert torch.equal(life.starts[1], life.ends[0])
    for name in "ABC":
        mean = torch.stack(life.ends).mean(0)
        assert torch.allclose(life.policy_on(agent, name), mean, atol=1e-6)
    assert life.learns_by_ppo_alone(agent, "A")
    assert not life.learns_by_ppo_alone(life.born_as(SnapshotAverage()), "A")


def test_memory_without_meta_learning_finds_its_rows_by_trying_them(life: Life):
    learner = life.born[0]
    memory = MemoryConfig(write=WriteConfig(when="novelty"), bank=BankConfig(codec="float32"))
    agent = life.born_as(MemoryOnly(memory=memory))
    theta, anchor = learner.theta.detach()[None], agent.params
    assert not torch.equal(anchor, theta)
    with life.visit("A") as visit, life.visit("A") as same:
        assert agent.begin(visit)["null"] == 1.0
        assert torch.equal(agent.params, anchor)
        probe = same.collect(anchor, agent.probe_episodes)
        batch = probe.joined(same.collect(anchor, agent.episodes - agent.probe_episodes))
        agent.improve(visit)
    expected = learner.task_adapter.step(learner.policy, anchor, learner.advantages(batch))
    assert torch.equal(agent.params, expected)  # not by the meta-learned rule
    agent = life.lives(life.born_as(agent), "ABC")
    assert len(agent.store) == 3
    with life.visit("B") as visit:
        told = agent.begin(visit)
        assert len(set(told["posterior"].values())) == 1  # all rows are alike to it
        assert visit.env_steps["trial"] == 20 * len(told["tried"]) > 0
    assert torch.equal(learner.theta.detach()[None], theta)


def test_the_library_goes_on_where_the_task_was_left(life: Life):
    agent = life.lives(life.born_as(OracleLibrary()), "ABAB")
    theta = life.born[0].theta.detach()[None]
    assert torch.equal(life.starts[0], theta) and torch.equal(life.starts[1], theta)
    assert torch.equal(life.starts[2], life.ends[0]) and torch.equal(life.starts[3], life.ends[1])
    assert [told.get("row") for told in life.told] == [None, None, 0, 1]
    assert life.told[3]["posterior"] == {1: 1.0}
    assert torch.equal(life.policy_on(agent, "A"), life.ends[2])
    assert life.learns_by_ppo_alone(agent, "A") and not life.learns_by_ppo_alone(agent, "C")


# Regularised fine-tuning


def linear() -> tuple[GaussianMlp, Tensor, Tensor]:
    """A linear policy of 3 inputs and 2 actions, its parameters, and states."""
    policy = GaussianMlp(3, 2, PolicyConfig(hidden=[]))
    random = torch.Generator().manual_seed(0)
    params = torch.randn(policy.num_params, generator=random)
    params[-2:] = torch.tensor([-0.5, 0.3])
    return policy, params, torch.randn(200, 3, generator=random)


def test_fisher_of_a_linear_policy_in_closed_form():
    policy, params, obs = linear()
    precision = torch.exp(-2 * params[-2:])
    weights = obs.square().mean(0)[:, None] * precision
    expected = torch.cat([weights.flatten(), precision, torch.full((2,), 2.0)])
    assert torch.allclose(fisher(policy, params, obs), expected, rtol=1e-4)
    params[-1] = 3.0  # beyond its range, where moving it changes nothing
    assert fisher(policy, params, obs)[-1] == 0


def test_fisher_is_the_mean_square_of_the_score_of_sampled_actions(small_policy: GaussianMlp):
    random = torch.Generator().manual_seed(0)
    params = small_policy.init(random)
    params += 0.3 * torch.randn(len(params), generator=random)
    obs = torch.randn(1, 3, generator=random)
    acts = small_policy(params[None], obs[None])
    action = acts.sample(torch.randn(20000, 1, 2, generator=random)).detach()

    def log_prob(theta: Tensor, taken: Tensor) -> Tensor:
        return small_policy(theta[None], obs[None]).log_prob(taken[None]).sum()

    score = torch.func.vmap(torch.func.grad(log_prob), in_dims=(None, 0))(params, action)
    found = fisher(small_policy, params, obs)
    assert torch.allclose(score.square().mean(0), found, rtol=0.1, atol=1e-3)


def test_sensitivity_of_a_linear_policy_in_closed_form():
    policy, params, obs = linear()
    mean = obs @ params[:6].view(3, 2) + params[6:8]
    slopes = 2 * mean[:, None, :] * obs[:, :, None]
    expected = torch.cat([slopes.abs().mean(0).flatten(), 2 * mean.abs().mean(0), torch.zeros(2)])
    assert torch.allclose(sensitivity(policy, params, obs), expected, rtol=1e-4, atol=1e-5)


def test_importance_is_found_in_states_spread_over_the_last_episodes(life: Life):
    agent = life.born_as(Ewc())
    assert agent._visited(7).shape == (0, life.family.obs_size)
    made = made_up_episodes(life.born[0].policy, agent.params, 1, 3, 6)
    made.mask[0, 1, 4:] = 0  # 16 valid steps
    agent._last = made
    valid = torch.cat([made.obs[0, 0], made.obs[0, 1, :4], made.obs[0, 2]])
    assert torch.equal(agent._visited(7), valid[::3]) and torch.equal(agent._visited(16), valid)


@pytest.mark.parametrize("kind", [Ewc, L2, Mas])
def test_the_penalty_is_a_parabola_around_where_the_last_visit_ended(
    kind: type[Regularised], life: Life
):
    agent = life.lives(life.born_as(kind(strength=3.0)), "A")
    weight, anchor = agent.state_dict()["importance.weight"], life.ends[0]
    assert weight.mean() == pytest.approx(1.0, abs=1e-5) and bool((weight >= 0).all())
    assert agent.penalty(anchor) == 0
    moved = anchor + torch.randn(2, anchor.shape[1], generator=torch.Generator().manual_seed(0))
    point = moved.clone().requires_grad_(True)
    penalty = agent.penalty(point)
    assert penalty.shape == (2,)
    assert torch.allclose(penalty, 1.5 * (weight * (moved - anchor) ** 2).sum(-1), rtol=1e-5)
    (slope,) = torch.autograd.grad(penalty.sum(), point)
    assert torch.allclose(slope, 3.0 * weight * (moved - anchor), rtol=1e-5, atol=1e-6)
    # And so a plain gradient step differs by just that from one without it.
    policy, rule = life.born[0].policy, GradientAdapter(torch.tensor(0.01))
    episodes = made_up_episodes(policy, moved, 2, 3, 5)
    free = rule.step(policy, moved, episodes)
    held = rule.step(policy, moved, episodes, constraint=agent.constraint())
    assert torch.allclose(held - free, -0.01 * slope, atol=1e-5)
    # Importances of visits are added; those of L2 are always one.
    agent = life.lives(agent, "B")
    total = agent.state_dict()["importance.weight"]
    assert torch.equal(agent.state_dict()["importance.anchor"], life.ends[1])
    assert total.mean() == pytest.approx(1.0 if kind is L2 else 2.0, abs=1e-5)
    assert torch.equal(total, torch.ones_like(total)) == (kind is L2)


@pytest.mark.parametrize("kind", [Ewc, L2, Mas])
def test_without_strength_it_is_fine_tuning_and_with_much_it_stands_still(
    kind: type[Regularised], life: Life
):
    lives = {}
    for strength in (0.0, 1e4):
        lives[strength] = Life(life.family, life.born)
        lives[strength].lives(life.born_as(kind(strength=strength)), "AB")
    life.lives(life.born_as(Finetune()), "AB")
    free, held = lives[0.0].ends, lives[1e4].ends
    assert all(torch.equal(a, b) for a, b in zip(life.ends, free, strict=True))
    assert torch.equal(held[0], free[0])  # nothing to hold on to yet
    probe = torch.randn(1, 50, life.family.obs_size, generator=torch.Generator().manual_seed(0))
    policy = life.born[0].policy
    apart = [policy(e[1], probe).mean - policy(e[0], probe).mean for e in (free, held)]
    assert apart[1].square().mean() < 0.1 * apart[0].square().mean()


# PackNet


def test_packnet_divides_each_layer_evenly_and_frozen_weights_never_move(life: Life):
    agent = life.born_as(PackNet(tasks=3))
    policy = life.born[0].policy
    sizes, owners, shared = policy.segments, [], []
    for name in "ABC":
        agent = life.lives(agent, name)
        owners.append(agent.state_dict()["weights.owner"])
        shared.append(agent.state_dict()["weights.values"])
    for i in range(3):
        for place in (0, 2):  # the weights of both layers
            owner = owners[i].split(sizes)[place]
            kept = [int((owner == task).sum()) for task in range(1, i + 2)]
            left, expected = sizes[place], []
            for others in (3, 2, 1)[: i + 1]:
                expected.append(math.ceil(left / others))
                left -= expected[-1]
            assert kept == expected and int((owner == 0).sum()) == left
        assert all(bool((owners[i].split(sizes)[p] == 0).all()) for p in (1, 3, 4))
    for i in (1, 2):
        frozen = owners[i - 1] > 0
        assert torch.equal(owners[i][frozen], owners[i - 1][frozen])
        assert torch.equal(shared[i][frozen], shared[i - 1][frozen])
        # The next task begins with them in place, and with the meta-initialisation elsewhere.
        start = torch.where(frozen, shared[i - 1], life.born[0].theta.detach())
        assert torch.equal(life.starts[i][0], start)
    # A task's network is its own weights, earlier ones', and zeros.
    weight = torch.cat([torch.full((n,), p in (0, 2)) for p, n in enumerate(sizes)])
    for i, name in enumerate("ABC", 1):
        params = life.policy_on(agent, name)[0]
        used = weight & (owners[2] <= i)
        assert torch.equal(params[used], shared[2][used])
        assert not params[weight & ~used].any() and torch.equal(params, life.ends[i - 1][0])


def test_packnet_keeps_the_largest_weights_and_trains_on_with_them(life: Life):
    agent = life.born_as(PackNet(tasks=2, retrain=0.5))
    with life.visit("A") as visit:
        agent.begin(visit)
        agent.improve(visit)  # 6 of 14 episodes
        before = agent.params[0]
        agent._prune()
        after = agent.params[0]
        for place in (0, 2):
            old, new = before.split(agent._sizes)[place], after.split(agent._sizes)[place]
            kept = new != 0
            assert torch.equal(new[kept], old[kept]) and 2 * int(kept.sum()) == len(old)
            assert old[kept].abs().min() >= old[~kept].abs().max()
        gone = agent._is_weight & (after == 0)
        while visit.remaining > 0:
            agent.improve(visit)
        moved = agent.params[0] != after
        assert not moved[gone].any() and moved[~gone].float().mean() > 0.9
    life.lives(life.born_as(agent), "A")  # by itself: prunes when 7 or fewer episodes are left
    assert int((life.ends[0] == 0)[0, agent._is_weight].sum()) == int(gone.sum())
    late = Life(life.family, life.born)  # without a share for it, pruning is the last that is done
    agent = late.lives(late.born_as(PackNet(tasks=2, retrain=0.0)), "A")
    kept = late.policy_on(agent, "A")
    assert late.ends[0].all() and int((kept == 0)[0, agent._is_weight].sum()) == int(gone.sum())


def test_packnet_has_no_weights_left_for_tasks_it_did_not_expect(life: Life):
    agent = life.lives(life.born_as(PackNet(tasks=1)), "AB")
    weights = agent._is_weight
    assert torch.equal(life.ends[0][0, weights], life.ends[1][0, weights])
    assert not torch.equal(life.ends[0][0, ~weights], life.ends[1][0, ~weights])


# Rehearsal


def test_demonstrations_share_the_capacity_and_say_what_was_done(small_policy: GaussianMlp):
    store, random = Demonstrations(10, 3), torch.Generator().manual_seed(0)
    seen = [torch.full((20, 3), float(v)) + torch.arange(20)[:, None] / 100 for v in range(3)]
    theirs = [small_policy.init(random)[None] + 0.1 * v for v in range(3)]
    for params, obs in zip(theirs, seen, strict=True):
        store.add(small_policy, params, obs, random)
    assert [len(rows) for rows in store.visits] == [3, 3, 3] and len(store) == 9
    for params, rows, obs in zip(theirs, store.visits, seen, strict=True):
        assert all(bool((row == obs).all(1).any()) for row in rows[:, :3])
        expected = small_policy(params, rows[None, :, :3])
        assert torch.allclose(rows[:, 3:5], expected.mean[0])
        assert torch.equal(rows[:, 5:], expected.log_std[0].expand(3, 2))
    assert not all(
        torch.equal(rows[:, :3], obs[:3]) for rows, obs in zip(store.visits, seen, strict=True)
    )  # some of them, not the first
    states, did = store.all()
    assert states.shape == (9, 3) and did.mean.shape == did.log_std.shape == (9, 2)
    drawn, _ = store.drawn(500, random)
    assert {float(x) for x in drawn[:, 0]} == {float(x) for x in states[:, 0]}


def test_replay_pulls_back_to_what_was_done_and_without_strength_is_fine_tuning(life: Life):
    agent = life.lives(life.born_as(Replay(strength=2.0)), "A")
    constraint = agent.constraint()
    point = life.ends[0].clone().requires_grad_(True)
    at_home = constraint.penalty(point)
    (slope,) = torch.autograd.grad(at_home.sum(), point)
    assert at_home.item() == pytest.approx(0.0, abs=1e-6) and slope.abs().max() < 1e-5
    # Twice the KL of means that are 0.1 apart in both actions; biases of the last layer move them.
    policy = life.born[0].policy
    bias = sum(policy.segments[:3])
    moved = life.ends[0].clone()
    moved[0, bias : bias + 2] += 0.1
    log_std = moved[0, -2:].clamp(*policy.LOG_STD_RANGE)
    expected = 2.0 * 0.5 * (0.01 * torch.exp(-2 * log_std)).sum()
    assert constraint.penalty(moved).item() == pytest.approx(float(expected), rel=1e-3)
    # And the KL of what was done then to what is done now, not the other way round.
    moved = life.ends[0].clone()
    moved[0, -2:] += 0.3
    expected = 2.0 * 2 * 0.5 * (math.exp(-0.6) - 1 + 0.6)
    assert constraint.penalty(moved).item() == pytest.approx(expected, rel=1e-3)
    moved[0, :5] += 1.0  # now it depends on the state
    agent._step += 1
    values = [float(c.penalty(moved)) for c in (constraint, agent.constraint(), agent.constraint())]
    assert values[0] != values[1] == values[2]  # another batch at each step
    ends = {}
    for kind in (Finetune(), Replay(strength=0.0), Replay(strength=100.0)):
        one = Life(life.family, life.born)
        one.lives(one.born_as(kind), "AB")
        ends[str(kind)] = one.ends
    plain, without, much = ends.values()
    assert torch.equal(plain[1], without[1])
    forgot = [float(constraint.penalty(e[1])) for e in (plain, much)]
    assert forgot[1] < 0.2 * forgot[0]


def test_a_student_learns_what_every_visit_did_and_no_visit_begins_with_it(life: Life):
    agent = life.born_as(Distill(distilling=Distilling(steps=300, rate=1e-2)))
    theta, policy = life.born[0].theta.detach()[None], life.born[0].policy
    assert torch.equal(life.policy_on(agent, "A"), theta)
    agent = life.lives(agent, "AB")
    assert all(torch.equal(start, theta) for start in life.starts)
    student = life.policy_on(agent, "A")
    assert torch.equal(student, life.policy_on(agent, "C"))
    for rows, end in zip(agent._shown.visits, life.ends, strict=True):
        obs, did = rows[:, :-4], DiagonalGaussian(*rows[:, -4:].chunk(2, -1))
        assert float(did.kl(policy(end, obs[None])).mean()) < 1e-6  # the teacher
        # Which task it is cannot be seen: the student is a compromise of both teachers.
        apart = [float(did.kl(policy(p, obs[None])).mean()) for p in (student, *life.ends)]
        assert 0 < apart[0] < 0.6 * max(apart[1:])
    agent.distilling = Distilling(steps=1, rate=1e-9)
    agent = life.lives(agent, "C")
    assert torch.allclose(life.policy_on(agent, "A"), student, atol=1e-6)  # it goes on from there
    agent.distilling = Distilling(steps=300, rate=1e-2)
    alone = Life(life.family, life.born)
    agent = alone.lives(alone.born_as(agent), "A")
    obs, did = agent._shown.all()
    assert float(did.kl(policy(alone.policy_on(agent, "A"), obs[None])).mean()) < 1e-3
    assert float(did.kl(policy(theta, obs[None])).mean()) > 1e-2


# A critic


def test_the_critic_is_reset_with_each_visit_or_goes_on(life: Life):
    for reset in (True, False):
        one, critics = Life(life.family, life.born), []
        agent = one.born_as(FinetuneCritic(reset_critic=reset))
        for name in "AB":
            with one.visit(name) as visit:
                agent.begin(visit)
                critics.append(agent.state_dict()["critic.params"])
            one.lives(agent, name)
            critics.append(agent.state_dict()["critic.params"])
            assert torch.equal(one.starts[-1], one.ends[-2] if len(one.ends) > 1 else one.starts[0])
        assert torch.equal(critics[1], critics[2]) != reset
        assert not torch.equal(critics[0], critics[2]) and not torch.equal(critics[0], critics[1])


def test_a_critic_that_knows_nothing_leaves_advantages_to_the_returns(life: Life):
    learner, agent = life.born[0], life.born_as(FinetuneCritic(critic_steps=0))
    first = life.born_as(Finetune())
    with life.visit("A") as visit, life.visit("A") as same:
        for one, where in ((agent, visit), (first, same)):
            one.begin(where)
            one.improve(where)
        assert torch.equal(agent.params, first.params)  # the meta-learned step is as it was made
        agent._value_params = torch.zeros_like(agent._value_params)
        middle, start = agent.state_dict()["critic.range"][0], agent.params
        agent.improve(visit)
        episodes = same.collect(start, 8)
    value = torch.full_like(episodes.reward, float(middle))
    advantage = gae(episodes.reward, value, episodes.mask, 0.99, 0.95)
    ready = episodes.with_advantage(normalize(advantage, episodes.mask))
    expected = learner.task_adapter.step(learner.policy, start, ready)
    assert torch.allclose(agent.params, expected, atol=1e-6)


def test_the_critic_learns_what_is_still_to_come(life: Life):
    agent = life.born_as(FinetuneCritic(gamma=1.0, critic_steps=200))
    episodes = made_up_episodes(life.born[0].policy, agent.params, 1, 4, 20)
    paid = dataclasses.replace(episodes, reward=torch.full_like(episodes.reward, -3.0))
    agent._learn(paid, None, 0.0)
    ahead = -3.0 * torch.arange(20, 0, -1.0)  # depends on nothing but the time
    assert (agent.values(paid)[0] - ahead).abs().mean() < 2.0
