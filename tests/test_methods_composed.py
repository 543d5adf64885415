"""Methods that compose, select or distil policies: of each, what defines it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from agent.config import build
from agent.continual.agents import MetaInit, PolicyAgent
from agent.continual.lifetime import Watch, World, live
from agent.continual.methods import csp, fame
from agent.continual.methods.cka import Cka
from agent.continual.methods.column import Column
from agent.continual.methods.compo import Compo
from agent.continual.methods.composed import Composed, attention, composed, places
from agent.continual.methods.csp import Csp, mixed, worth_keeping
from agent.continual.methods.fame import Fame, proven_better
from agent.continual.methods.parts import Distilling
from agent.continual.methods.pool import Pool
from agent.continual.methods.progress_compress import ProgressCompress
from agent.continual.methods.regularised import fisher
from agent.continual.stream import Stream
from agent.continual.visit import Hint, Segment, Visit
from agent.files import read_yaml
from agent.learners.maml import Maml
from agent.memory.probes import TrainingProbes
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig
from agent.run import Run
from agent.seeding import generator
from agent.train import make_policy, new_learner
from envs.navigation import Navigation
from envs.task import Param

CONFIGS = Path(__file__).parent.parent / "configs" / "agent"
BUDGET = 14
QUICK = Distilling(steps=20)
SMALL: dict[str, Any] = {
    "progress_compress": lambda: ProgressCompress(distilling=QUICK),
    "csp": lambda: Csp(candidates=2, trial_episodes=1),
    "cka": lambda: Cka(rows=2),
    "fame": lambda: Fame(distilling=QUICK),
    "compo": Compo,
}
INF = math.inf


@pytest.fixture(scope="module")
def family() -> Navigation:
    """Goals on the unit circle, 20 steps."""
    angle = Param(to="attr:angle", low=0.0, high=2 * math.pi)
    return Navigation(name="navigation", horizon=20, params={"angle": angle})


@pytest.fixture(scope="module")
def born(family: Navigation) -> tuple[Maml, TrainingProbes]:
    """An untrained meta-initialisation; none of these agents looks at the probes."""
    learner = new_learner(Maml(), make_policy(family, PolicyConfig(hidden=[6]), False, "cpu"), 0)
    assert isinstance(learner, Maml)
    return learner, cast(TrainingProbes, None)


class Lives:
    """Visits to tasks by name, without the runner."""

    def __init__(self, family: Navigation, born: tuple[Maml, TrainingProbes]) -> None:
        self.family, self.born, self.number = family, born, 0
        self.ends: list[Tensor] = []
        self.learned_from: list[int] = []
        self.spent: list[dict[Any, int]] = []

    def visit(self, name: str, episodes: int = BUDGET, told: bool = True) -> Visit:
        """To a task, which is told or not."""
        task = self.family.task({"angle": float(ord(name) - ord("A"))})
        segment, rng = Segment(0, name, task, episodes), generator(0, "visit", self.number)
        return Visit(self.family, [segment], self.born[0].policy, rng, Hint(name) if told else None)

    def make(self, name: str, **settings: Any) -> Any:
        """The agent as its YAML file says, but for some settings."""
        agent = build(read_yaml(CONFIGS / f"{name}.yaml") | settings, name)
        agent.setup(*self.born, 0)
        return agent

    def through(self, agent: Any, order: str) -> None:
        """Visits in this order."""
        for name in order:
            with self.visit(name) as visit:
                agent.begin(visit)
                while visit.remaining > 0 or agent.pending:
                    agent.improve(visit)
                self.ends.append(agent.params.clone())
                self.spent.append(dict(visit.env_steps))
                agent.end()
            self.number += 1

    def policy_of(self, agent: PolicyAgent, name: str) -> Tensor:
        """What it does on a task when it comes to it now, at some observations."""
        with self.visit(name) as visit:
            actor = agent.actor(visit)
        return actor.policy(actor.params, observations()).mean


@pytest.fixture
def lives(family: Navigation, born: tuple[Maml, TrainingProbes]) -> Lives:
    return Lives(family, born)


def observations(n: int = 40) -> Tensor:
    return torch.randn(1, n, 2, generator=torch.Generator().manual_seed(0))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# What all of them owe the harness.


@pytest.mark.parametrize("name", SMALL)
def test_stopped_after_every_step_and_continued_equals_uninterrupted(
    name: str, tmp_path: Path, family: Navigation, born: tuple[Maml, TrainingProbes]
):
    stream = Stream(name="s", order=list("ABA"), budget_episodes=24, eval_episodes=2)
    world = World.of(stream, family, born[0].policy, 0)

    def lived(folder: str, watch: Watch) -> Any:
        agent = SMALL[name]()
        agent.setup(*born, 0)
        return live(agent, world, Run(tmp_path / folder), name, watch)

    whole = lived("whole", Watch())  # the harness checks that evaluation changes nothing
    stops, life = 0, None
    while life is None:
        life, stops = lived("parts", Watch(should_stop=lambda: True)), stops + 1
    assert stops > 6 and life.deviations == whole.deviations == []
    # What was measured before need not be simulated again, unless that was forgotten.
    assert [e.returns for e in life.evaluations] == [e.returns for e in whole.evaluations]
    assert [v.curve for v in life.visits] == [v.curve for v in whole.visits]
    assert [sum(v.env_steps.values()) for v in whole.visits] == [24 * 20] * 3
    ends = [Run(tmp_path / folder).checkpoints.load() for folder in ("whole", "parts")]
    assert ends[0] is not None and ends[1] is not None
    assert same(ends[0][0], ends[1][0])


@pytest.mark.parametrize("name", ["csp", "cka", "compo"])
def test_told_ids_a_task_is_not_touched_by_others_to_the_last_bit(name: str, lives: Lives):
    agent = lives.make(name)
    for own, others in (("AB", "CB"), ("A", "BD")):  # at a first visit, and at one more
        lives.through(agent, own)
        acts = lives.policy_of(agent, "A")
        lives.through(agent, others)
        assert torch.equal(lives.policy_of(agent, "A"), acts)
        assert not torch.equal(lives.policy_of(agent, "B"), acts)


@pytest.mark.parametrize("name", ["csp", "cka", "compo"])
def test_a_task_starts_where_its_last_visit_ended(name: str, lives: Lives):
    agent = lives.make(name)
    lives.through(agent, "ABCA")
    with lives.visit("B") as visit:
        agent.begin(visit)
    assert torch.equal(agent.params, lives.ends[1])
    with (
        lives.visit("A", told=False) as visit,
        pytest.raises(ValueError, match="must be told which task it is in"),
    ):
        agent.begin(visit)


@pytest.mark.parametrize("name", ["progress_compress", "csp", "cka", "compo"])
def test_a_first_visit_is_that_of_the_meta_initialisation(name: str, lives: Lives):
    ends = []
    for agent in (lives.make(name), MetaInit()):
        agent.setup(*lives.born, 0)
        start = agent.acting
        theta = lives.born[0].theta[None]
        expected = lives.born[0].policy(theta, observations()).mean
        assert torch.equal(start.policy(start.params, observations()).mean, expected)
        with lives.visit("A") as visit:
            agent.begin(visit)
            agent.improve(visit)  # the meta-learned rule
            ends.append(agent.acting.policy(agent.params, observations()).mean)
    torch.testing.assert_close(*ends)


# Progress & Compress.


def test_the_lateral_connection_by_hand():
    network = GaussianMlp(1, 1, PolicyConfig(hidden=[1]))  # w1 b1 w2 b2 log_std
    frozen, own = (
        torch.tensor([[0.5, 0.1, 9.0, 9.0, 0.0]]),
        torch.tensor([[1.0, 0.0, 2.0, 3.0, 0.0]]),
    )
    column = Column(network, frozen, units=1)
    lateral = torch.tensor([[0.7, 0.2, 1.5, -0.4]])  # V c U a
    x = 0.8
    got = column(torch.cat([own, lateral], 1), torch.tensor([[[x]]])).mean
    seen = network.normalizer(torch.tensor(x)).item()
    known = math.tanh(0.5 * seen + 0.1)
    by_hand = 2 * math.tanh(seen) + 3 - 0.4 * 1.5 * math.tanh(0.7 * known + 0.2)
    assert got.item() == pytest.approx(by_hand, rel=1e-5)
    wide = column.widened(own, torch.Generator().manual_seed(0))
    assert torch.equal(
        column(wide, torch.ones(1, 3, 1)).mean, network(own, torch.ones(1, 3, 1)).mean
    )
    assert wide[0, -1] == wide[0, -3] == 0 and wide[0, -2] * wide[0, -4] != 0  # can be learned


def test_the_knowledge_base_moves_only_when_the_visit_is_over_and_towards_the_column(lives: Lives):
    agent = lives.make("progress_compress", distilling={"steps": 300, "rate": 5e-3})
    with lives.visit("A") as visit:
        agent.begin(visit)
        while visit.remaining:
            agent.improve(visit)
        assert torch.equal(agent.knowledge, agent._meta_init())

    def apart() -> float:
        obs = agent._seen[None]
        return float(
            agent._column(agent.params, obs).kl(agent.learner.policy(agent.knowledge, obs)).mean()
        )

    column, before = agent._column, apart()
    agent.end()
    agent._column = column
    assert apart() < 0.05 * before
    actor = agent.actor(lives.visit("B"))
    assert actor.params is agent.knowledge and actor.policy is agent.learner.policy


def test_online_ewc_holds_the_knowledge_base(lives: Lives):
    agent = lives.make("progress_compress", discount=0.5, strength=3.0)
    lives.through(agent, "A")
    assert agent.information.mean().item() == pytest.approx(1.0)
    delta = drawn(*agent.knowledge.shape)
    expected = 1.5 * (agent.information * delta.square()).sum(1)
    torch.testing.assert_close(agent.penalty(agent.knowledge + delta), expected)
    assert agent.penalty(agent.knowledge) == 0
    first, held = agent.information, agent.knowledge
    agent.strength = 1e9
    lives.through(agent, "B")
    important = first > first.median()
    assert (agent.knowledge - held)[important].abs().max() < 5e-3
    here = fisher(
        agent.learner.policy, agent.knowledge[0], agent._seen[:: -(-len(agent._seen) // 256)]
    )
    torch.testing.assert_close(agent.information[0], 0.5 * first[0] + here / here.mean())


def test_distilling_has_the_teachers_actions_as_its_fixed_point(small_policy: GaussianMlp):
    theta, obs = drawn(1, small_policy.num_params, seed=1) * 0.3, drawn(50, 3)
    out = small_policy(theta, obs[None])
    teacher = DiagonalGaussian(out.mean[0].detach(), out.log_std[0].expand(50, -1))
    taught = Distilling(steps=30, batch=20).distilled(small_policy, theta, obs, teacher)
    torch.testing.assert_close(taught, theta, atol=2e-3, rtol=0)
    other = theta + 0.1 * drawn(*theta.shape, seed=2)
    learned = Distilling(steps=400, batch=20, rate=5e-3).distilled(
        small_policy, other, obs, teacher
    )

    def apart(params: Tensor) -> Tensor:
        return out.kl(small_policy(params, obs[None])).mean()

    assert apart(learned) < 0.02 * apart(other)


def test_distilling_covers_what_the_teacher_does_everywhere():
    policy = GaussianMlp(1, 1, PolicyConfig(hidden=[]))
    teacher = DiagonalGaussian(torch.zeros(2, 1), torch.tensor([[0.5], [1.0]]).log())
    settings = Distilling(steps=1000, batch=1, rate=2e-3)
    taught = settings.distilled(policy, torch.zeros(1, 3), torch.zeros(2, 1), teacher)
    # KL(teacher || student) is least at the mean variance, the other one at the harmonic mean, 0.4.
    assert (2 * taught[0, -1]).exp().item() == pytest.approx((0.25 + 1.0) / 2, abs=0.03)


# Continual subspace of policies.


def test_a_point_is_a_convex_combination_that_later_anchors_do_not_touch():
    anchors = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert torch.equal(mixed(anchors, torch.tensor([0.25, 0.75])), torch.tensor([[2.5, 3.0]]))
    many, alpha = drawn(7, 1000), torch.softmax(drawn(3, seed=1), 0)
    assert torch.equal(mixed(many, alpha), mixed(many[:3].clone(), alpha))


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (100.0, 109.0, False),
        (100.0, 111.0, True),
        (-100.0, -105.0, False),  # 1.1 times the old one is less than that
        (-100.0, -95.0, False),
        (-100.0, -85.0, True),
        (0.0, 0.5, True),
        (0.0, 0.0, False),
        (-INF, -100.0, True),
        (-100.0, -INF, False),
    ],
)
def test_an_anchor_stays_if_it_gains_the_margin_whatever_the_sign(
    old: float, new: float, kept: bool
):
    def returns(mean: float) -> Tensor:
        return torch.full((3,), mean if math.isfinite(mean) else math.nan)

    assert worth_keeping(returns(new), returns(old), 0.1) is kept


def test_near_zero_a_gain_within_the_noise_is_none():
    noisy = torch.tensor([-10.0, 0.0, 10.0])  # sd 10
    assert not worth_keeping(noisy + 0.9, noisy, 0.1) and worth_keeping(noisy + 1.1, noisy, 0.1)


def test_points_are_drawn_from_the_simplex_and_its_new_corner(lives: Lives):
    agent = lives.make("csp")
    points = torch.stack([agent._drawn(4, 0.0) for _ in range(2000)])
    torch.testing.assert_close(points.sum(1), torch.ones(2000))
    assert points.min() >= 0
    torch.testing.assert_close(points.mean(0), torch.full((4,), 0.25), atol=0.02, rtol=0)
    # uniform on the simplex (Dirichlet of ones): variance 3 / (16 * 5)
    torch.testing.assert_close(points.var(0), torch.full((4,), 0.0375), atol=0.004, rtol=0)
    corners = torch.stack([agent._drawn(4, 0.3) for _ in range(2000)])[:, -1] == 1
    assert 0.26 < corners.float().mean() < 0.34


def test_only_the_new_anchor_learns_from_the_midpoint_on_and_by_its_share(lives: Lives):
    agent = lives.make("csp", margin=0.0)
    lives.through(agent, "AB")
    agent.anchors = torch.cat([agent.anchors[:1], agent.anchors[:1] + 1])
    frozen = agent.anchors.clone()
    with lives.visit("C") as visit:
        agent.begin(visit)
        torch.testing.assert_close(agent._anchor, frozen.mean(0, keepdim=True))
        start, episodes = agent._anchor, visit.collect(agent.params, 2)
        agent._train(episodes, torch.tensor([0.5, 0.5, 0.0]))
        assert torch.equal(agent._anchor, start)  # it had no part in what was done
        agent._train(episodes, torch.tensor([0.0, 0.5, 0.5]))
        assert not torch.equal(agent._anchor, start)
    assert torch.equal(agent.anchors, frozen)


def test_the_subspace_grows_only_where_it_pays_and_trials_are_charged(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
):
    agent = lives.make("csp", margin=1e9)
    lives.through(agent, "ABAB")
    assert len(agent.anchors) == 1 and agent.anchors.shape[0] < len(agent.points) == 2
    assert [spent.get("trial", 0) for spent in lives.spent] == [0, 240, 240, 240]
    assert [sum(spent.values()) for spent in lives.spent] == [BUDGET * 20] * 4
    assert torch.equal(lives.ends[-1], agent.anchors)
    monkeypatch.setattr(csp, "worth_keeping", lambda new, old, margin: True)
    lives.through(agent, "CA")
    assert len(agent.anchors) == 3 and len(agent.points["A"]) == 3 and len(agent.points["B"]) == 1
    with lives.visit("A", episodes=12) as visit, pytest.raises(ValueError, match="keeps 12 for"):
        agent.begin(visit)


# CKA-RL.


def test_a_policy_is_theta_0_plus_weighted_vectors_plus_its_own(lives: Lives):
    agent = lives.make("cka")
    lives.through(agent, "AB")
    agent.pool.vectors = drawn(*agent.pool.vectors.shape)
    one, two = agent.pool.vectors
    with lives.visit("C") as visit:
        agent.begin(visit)
    theta = agent.learner.theta.detach()
    torch.testing.assert_close(agent.params[0], theta + (one + two) / 2)
    learned = torch.cat([drawn(len(one), seed=3), torch.tensor([math.log(3), 0.0])])[None]
    agent.weight_rate = 1.0
    expected = theta + 0.75 * one + 0.25 * two + learned[0, : len(one)]
    torch.testing.assert_close(agent.combined(learned)[0], expected)


def test_both_weights_and_vector_are_learned(lives: Lives):
    agent = lives.make("cka")
    lives.through(agent, "ABC")
    assert torch.isneginf(agent.pool.betas["A"]).all()  # there was nothing to combine
    assert agent.pool.betas["C"][:2].isfinite().all() and torch.isneginf(agent.pool.betas["C"][2])
    assert agent.pool.betas["C"][0] != agent.pool.betas["C"][1] and agent.pool.own["C"] == 2
    assert agent.pool.vectors[2].abs().max() > 0 and agent.pool.makers == [[0], [1], [2]]


def pool_of(rows: list[list[float]]) -> Pool:
    pool = Pool(len(rows[0]))
    for visit, row in enumerate(rows):
        beta = drawn(visit, seed=visit)
        pool.add("ABCDEF"[visit], torch.tensor(row), beta, visit)
    return pool


def policies(pool: Pool) -> list[Tensor]:
    return [
        torch.softmax(beta, 0).nan_to_num(0.0) @ pool.vectors + pool.vectors[pool.own[name]]
        for name, beta in pool.betas.items()
    ]


def test_the_most_similar_whole_vectors_are_merged_with_their_provenance():
    # By the first two parts alone 0 and 1 are most alike, as wholes 1 and 3.
    pool = pool_of([[1, 0, -3], [1, 0, 3], [-1, -1, 0], [0.5, 0.4, 3.2]])
    before = pool.vectors.clone()
    beta = pool.betas["D"].clone()
    pool.merge_most_similar()
    assert pool.makers == [[0], [1, 3], [2]] and pool.own == {"A": 0, "B": 1, "C": 2, "D": 1}
    torch.testing.assert_close(pool.vectors[1], (before[1] + before[3]) / 2)
    assert torch.equal(pool.betas["D"], beta[:3])
    pool.vectors[2] = pool.vectors[1] * 2
    merged = (2 * pool.vectors[1] + pool.vectors[2]) / 3  # of two visits and of one
    pool.merge_most_similar()
    torch.testing.assert_close(pool.vectors[1], merged)
    assert pool.makers == [[0], [1, 3, 2]]


def test_merging_equal_vectors_changes_no_policy():
    pool = pool_of([[1, 2, 3], [-1, 0, 2], [1, 2, 3], [0, 1, -4], [2, 2, -1]])
    before = policies(pool)
    pool.merge_most_similar()
    assert pool.makers[0] == [0, 2] and len(pool.vectors) == 4
    for one, other in zip(policies(pool), before, strict=True):
        torch.testing.assert_close(one, other)


def test_what_no_task_uses_is_dropped_and_the_pool_is_bounded(lives: Lives):
    agent = lives.make("cka", rows=2)
    lives.through(agent, "AA")
    assert agent.pool.makers == [[1]]  # nobody but A used its first vector
    lives.through(agent, "BCDAB")
    assert len(agent.pool.vectors) == 2 and set(agent.pool.own) == set("ABCD")
    assert all(len(beta) == 2 for beta in agent.pool.betas.values())


# FAME.


def test_the_one_sided_test_by_hand():
    high, low = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])
    # t = 2 / sqrt(1/3 + 1/3) = 2.449 with 4 degrees of freedom: p = 0.0352
    assert proven_better(high, low, 0.036) and not proven_better(high, low, 0.035)
    assert not proven_better(low, high, 0.5)
    sure = torch.ones(3)
    assert proven_better(sure + 1, sure, 0.05) and not proven_better(sure, sure, 0.05)
    assert proven_better(torch.cat([high, torch.tensor([math.nan])]), low, 0.036)
    assert not proven_better(torch.tensor([9.0, math.nan]), low, 0.05)


@pytest.mark.parametrize(
    ("init", "fast", "meta", "chosen"),
    [
        (0.0, 5.0, 9.0, "meta"),
        (0.0, 5.0, 5.5, "fast"),  # better, but not significantly
        (5.0, 0.0, 5.5, "meta_init"),
        (0.0, 5.0, -9.0, "fast"),
        (0.0, math.nan, -9.0, "meta_init"),
    ],
)
def test_the_meta_policy_must_be_proven_better(init: float, fast: float, meta: float, chosen: str):
    spread = torch.tensor([-1.0, 0.0, 0.0, 1.0])
    returns = {"meta_init": init + spread, "fast": fast + spread, "meta": meta + spread}
    assert Fame().chosen(returns) == chosen


def test_the_chosen_start_is_taken_and_its_trials_are_learned_from(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
):
    agent = lives.make("fame")
    lives.through(agent, "A")
    assert lives.spent == [{"learn": 280}]
    monkeypatch.setattr(fame, "proven_better", lambda ours, others, level: True)
    with lives.visit("B", 40) as visit:
        agent.begin(visit)
        assert visit.used == 12 and visit.env_steps == {"trial": 240}
        assert torch.equal(agent.params, agent.meta) and agent._step == agent.learner.meta_steps
        assert agent.pending
        agent.improve(visit)
        assert visit.env_steps == {"trial": 240, "learn": 40} and not agent.pending  # 4 + 2
    assert torch.equal(agent.fast, lives.ends[0])
    with lives.visit("B", 5) as visit:  # too short to try anything
        agent.begin(visit)
        assert torch.equal(agent.params, agent._meta_init()) and visit.used == 0


def test_the_meta_policy_imitates_the_ends_of_all_visits(lives: Lives):
    agent = lives.make("fame", distilling={"steps": 400, "rate": 5e-3}, kept_episodes=3)
    lives.through(agent, "ABC")
    obs, mean, log_std = agent._replay
    assert len(obs) == 3 * 3 * 20  # of every visit
    network = agent.learner.policy
    for visit, end in enumerate(lives.ends):
        part = slice(60 * visit, 60 * visit + 60)
        torch.testing.assert_close(mean[part], network(end, obs[None, part]).mean[0])
    shown = DiagonalGaussian(mean[None], log_std[None])
    from_init, from_meta = (
        shown.kl(network(p, obs[None])).mean() for p in (agent._meta_init(), agent.meta)
    )
    assert from_meta < 0.5 * from_init


# CompoNet.


def test_attention_by_hand():
    query, keys = torch.tensor([2.0, 0.0, 0.0, 0.0]), torch.eye(4)[:2] * math.log(3)
    weights = attention(query, keys)  # scores log 3 and 0
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]))
    many = attention(drawn(5, 4), drawn(5, 7, 4, seed=1))
    torch.testing.assert_close(many.sum(-1), torch.ones(5))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    shuffled = attention(drawn(5, 4), drawn(5, 7, 4, seed=1)[:, order])
    torch.testing.assert_close(shuffled, many[:, order])
    expected = [[0, 1, 0], [math.sin(1), math.cos(1), math.sin(10_000 ** (-2 / 3))]]
    torch.testing.assert_close(places(2, 3), torch.tensor(expected))


def heads_of(policy: Composed, params: Tensor, network: GaussianMlp) -> list[Tensor]:
    return policy._shaped(params[:, network.num_params :])


def test_a_module_is_the_sum_of_tentative_and_internal_action(small_policy: GaussianMlp):
    below = [(drawn(1, small_policy.num_params, seed=n) * 0.5, ()) for n in range(2)]
    module = Composed(small_policy, below, (0, 1), width=4)
    own = drawn(1, small_policy.num_params, seed=9) * 0.5
    params, obs = module.widened(own, torch.Generator().manual_seed(0)), drawn(1, 6, 3)
    assert torch.equal(module(params, obs).mean, small_policy(own, obs).mean)
    gain, reader, *heads = heads_of(module, params, small_policy)
    actions = torch.stack([small_policy(p, obs).mean for p, _ in below], 2)
    x = small_policy.normalizer(obs)
    found, action = composed(x, actions, heads)
    assert found.shape == (1, 6, 4)
    gain.fill_(1.0)
    expected = small_policy(own, obs).mean + action
    torch.testing.assert_close(module(params, obs).mean, expected)
    heads[2].zero_()
    heads[3].zero_()  # equal keys: the tentative action is the mean of those below
    torch.testing.assert_close(composed(x, actions, heads)[1], actions.mean(2))
    heads[6].zero_()
    heads[7].zero_()  # so is what the input head found, of those below and the tentative action
    every = torch.cat([actions, actions.mean(2, keepdim=True)], 2).mean(2)
    torch.testing.assert_close(composed(x, actions, heads)[0], every @ heads[8] + heads[9])
    reader.fill_(0.3)
    before = small_policy(own, obs).mean + actions.mean(2)
    assert not torch.allclose(module(params, obs).mean, before)  # what the input head found is read


def test_a_module_composes_only_those_that_it_sees(small_policy: GaussianMlp):
    own = [drawn(1, small_policy.num_params, seed=n) * 0.5 for n in range(4)]
    middle = Composed(small_policy, [(own[0], ()), (own[1], ())], (0, 1), width=4)
    below = middle.widened(own[2], torch.Generator().manual_seed(0))
    heads_of(middle, below, small_policy)[0].fill_(0.5)
    modules = [(own[0], ()), (own[1], ()), (below, (0, 1))]
    top = Composed(small_policy, modules, (2,), width=4)
    params, obs = top.widened(own[3], torch.Generator().manual_seed(1)), drawn(1, 6, 3)
    heads_of(top, params, small_policy)[0].fill_(1.0)
    expected = small_policy(own[3], obs).mean + middle(below, obs).mean  # all weight on the one
    torch.testing.assert_close(top(params, obs).mean, expected)


def test_modules_below_are_computed_once_each_and_never_trained(small_policy: GaussianMlp):
    made: list[tuple[Tensor, tuple[int, ...]]] = []
    for n in range(12):  # with each computed anew for every one above: 4096 times
        sees = tuple(range(n))
        own = (drawn(1, small_policy.num_params, seed=n) * 0.3).requires_grad_(True)
        policy = Composed(small_policy, made, sees, width=4)
        made.append((policy.widened(own, torch.Generator().manual_seed(n)) if n else own, sees))
    top, calls = Composed(small_policy, made[:-1], made[-1][1], width=4), []
    inner = top._mean
    top._mean = lambda *args: calls.append(1) or inner(*args)  # type: ignore[method-assign]
    mean = top(made[-1][0], drawn(1, 3, 3)).mean
    assert len(calls) == 12
    assert len({params.shape[1] for params, _ in made[1:]}) == 1  # linear in the modules
    gradients = torch.autograd.grad(mean.sum(), [p for p, _ in made], allow_unused=True)
    assert [g is None for g in gradients] == [True] * 11 + [False]


def test_what_others_build_on_is_copied_what_nobody_builds_on_is_replaced(lives: Lives):
    agent = lives.make("compo")
    lives.through(agent, "ABC")
    assert [sees for _, sees in agent.modules] == [(), (0,), (0, 1)]
    frozen = [params.clone() for params, _ in agent.modules]
    lives.through(agent, "C")
    assert len(agent.modules) == 3 and not torch.equal(agent.modules[2][0], frozen[2])
    lives.through(agent, "A")
    assert agent.module_of == {"A": 3, "B": 1, "C": 2} and agent.modules[3][1] == ()
    assert all(torch.equal(agent.modules[n][0], frozen[n]) for n in (0, 1))
    lives.through(agent, "AAD")
    assert len(agent.modules) == 5 and agent.modules[4][1] == (1, 2, 3)


def test_a_policy_kept_for_an_unknown_task_does_not_outlive_the_module_it_is_made_of(lives: Lives):
    agent = lives.make("compo")
    lives.through(agent, "A")
    lives.policy_of(agent, "Z")
    lives.through(agent, "A")
    with lives.visit("Z") as visit:
        agent.begin(visit)
    assert torch.equal(agent.policy._modules[0][0], agent.modules[0][0])
