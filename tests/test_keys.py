"""Keys on made-up linear robots, of which everything is known; evidence against brute force."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from agent.memory.evidence import Head, log_ratio
from agent.memory.key.base import (
    IndistinguishableTasksError,
    Key,
    NotFittedError,
    same_task,
    score_rows,
)
from agent.memory.key.fisher import Fisher, reliable, told_apart
from agent.memory.key.given import Descriptor, NoKey, OracleId
from agent.memory.key.handmade import HandMade
from agent.memory.key.likelihood import Likelihood, _factors
from agent.memory.key.stats import Stats
from agent.memory.key.summed import Seen
from agent.memory.scoring import precision_at
from agent.memory.sums import Sums
from agent.policy import ObsNormalizer
from agent.types import Trajectories

OBS, ACTIONS = 3, 2
NORMALIZER = ObsNormalizer(OBS)


@dataclasses.dataclass(frozen=True)
class Robots:
    """M linear robots: ``ds = A s + B a + noise``, ``reward = w's + v'a + b + noise``."""

    pull: Tensor
    push: Tensor
    paid: Tensor
    base: float = 0.0
    noise: float = 0.05

    @classmethod
    def draw(cls, tasks: int, seed: int, dynamics: float = 1.0, reward: float = 1.0) -> Robots:
        """Robots that differ so much in what moves them, and in what they are paid for."""
        g = torch.Generator().manual_seed(seed)
        pull = -0.5 * torch.eye(OBS) + 0.1 * dynamics * torch.randn(tasks, OBS, OBS, generator=g)
        push = 0.5 + 0.3 * dynamics * torch.randn(tasks, OBS, ACTIONS, generator=g)
        return cls(pull, push, 1 + reward * torch.randn(tasks, OBS + ACTIONS, generator=g))

    def probe(self, seed: int, horizon: int = 40, episodes: int = 1) -> Trajectories:
        """Episodes of random actions, all from the same state."""
        g, tasks = torch.Generator().manual_seed(seed), len(self.pull)
        state = torch.ones(tasks, episodes, OBS)  # always the same start
        columns = []
        for _ in range(horizon):
            action = torch.randn(tasks, episodes, ACTIONS, generator=g).clamp(-1, 1)
            seen = torch.cat([state, action], -1)
            reward = (seen @ self.paid[..., None])[..., 0] + self.base
            reward = reward + self.noise * torch.randn(tasks, episodes, generator=g)
            columns.append((state, action, reward))
            change = state @ self.pull.mT + action @ self.push.mT
            state = state + change + self.noise * torch.randn(state.shape, generator=g)
        obs, action, reward = (torch.stack(c, 2) for c in zip(*columns, strict=True))
        none = torch.zeros(tasks, episodes, dtype=torch.bool)
        mask = torch.ones_like(reward)
        return Trajectories(obs, action, torch.zeros_like(mask), reward, mask, state, none, none)


TRAIN, HELD = Robots.draw(24, seed=0), Robots.draw(20, seed=1)
PROBES = [TRAIN.probe(seed) for seed in (1, 2)]
IDS = torch.arange(24.0)[:, None]
KINDS: dict[str, Callable[[], Any]] = {
    "likelihood": Likelihood,
    "fisher": Fisher,
    "stats": Stats,
    "descriptor": Descriptor,
    "oracle_id": OracleId,
    "none": NoKey,
}


def fitted(kind: str = "likelihood", probes: list[Trajectories] = PROBES, **settings: Any) -> Any:
    key = KINDS[kind](**settings)
    key.fit(probes, NORMALIZER, IDS)
    return key


LIKELIHOOD: Likelihood = fitted()


def blown_up(episodes: Trajectories, task: int) -> Trajectories:
    mask = episodes.mask.clone()
    mask[task] = 0
    return dataclasses.replace(episodes, mask=mask)


def first_tasks(episodes: Trajectories, n: int) -> Trajectories:
    columns = {f.name: getattr(episodes, f.name) for f in dataclasses.fields(episodes)}
    kept: dict[str, Any] = {k: v[:n] for k, v in columns.items() if v is not None}
    return Trajectories(**kept)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Sums.


def test_sums_add_up_and_come_back_from_their_packed_form():
    x, y = normal(2, 9, 4), normal(2, 9, 3, seed=1)
    mask = torch.ones(2, 9)
    mask[:, 5] = 0
    spoiled = x.clone()
    spoiled[:, 5] = torch.nan
    whole = Sums.of(spoiled, y, mask)
    kept = [i for i in range(9) if i != 5]
    torch.testing.assert_close(whole.gram, x[:, kept].mT @ x[:, kept])
    torch.testing.assert_close(whole.cross, x[:, kept].mT @ y[:, kept])
    halves = Sums.of(x[:, :4], y[:, :4], mask[:, :4]) + Sums.of(x[:, 4:], y[:, 4:], mask[:, 4:])
    assert whole.packed().shape == (2, Sums.packed_size(4, 3)) == (2, 22)
    torch.testing.assert_close(halves.packed(), whole.packed())
    back = Sums.unpacked(whole.packed(), 4, 3)
    assert torch.equal(back.gram, whole.gram) and torch.equal(back.cross, whole.cross)


# Evidence.


def some_head() -> Head:
    unit = torch.ones(3, dtype=torch.float64)
    return Head(
        middle=normal(3, seed=2),
        spread=unit * 2,
        target_spread=torch.tensor([0.5, 3.0]).double(),
        average=normal(3, 2, seed=3),
        precision=torch.tensor([0.5, 2.0, 7.0]).double(),
        noise=torch.tensor([0.3, 1.7]).double(),
    )


def marginal(head: Head, x: Tensor, y: Tensor) -> Tensor:
    """Log-density of the targets with all linear models integrated out, by brute force."""
    units, total = (x - head.middle) / head.spread, torch.zeros(())
    for m, noise in enumerate(head.noise):
        target = y[:, m] / head.target_spread[m] - units @ head.average[:, m]
        spread = noise * (torch.eye(len(x)) + units @ torch.diag(1 / head.precision) @ units.T)
        total = total + MultivariateNormal(torch.zeros(len(x)).double(), spread).log_prob(target)
    return total


def test_log_ratio_against_the_gaussian_marginal():
    head = some_head()
    one, other = (normal(6, 3, seed=4), normal(6, 2, seed=5)), (normal(4, 3), normal(4, 2, seed=6))
    both = [torch.cat(pair) for pair in zip(one, other, strict=True)]
    expected = marginal(head, *both) - marginal(head, *one) - marginal(head, *other)
    sums = [head.sums(x, y, torch.ones(len(x))) for x, y in (one, other)]
    assert float(log_ratio(head, *sums)) == pytest.approx(float(expected), rel=1e-9)
    assert float(log_ratio(head, *sums[::-1])) == pytest.approx(float(expected), rel=1e-9)
    probes = Sums(*(torch.stack([getattr(s, n) for s in sums])[:, None] for n in ("gram", "cross")))
    assert _factors(head, probes).flatten().tolist() == pytest.approx([float(expected)] * 2)
    nothing = head.sums(*one, torch.zeros(6))
    assert float(head.log_evidence(nothing)) == pytest.approx(0.0, abs=1e-12)


def test_coefficients_are_the_posterior_mean():
    head, x, y = some_head(), normal(50, 3), normal(50, 2, seed=1)
    sums = head.sums(x, y, torch.ones(50))
    rhs = torch.linalg.solve(sums.gram + torch.diag(head.precision), sums.cross)
    torch.testing.assert_close(head.coefficients(sums), rhs)


def test_the_prior_is_learned_from_the_tasks():
    tasks, steps = 400, 60
    size = torch.tensor([1.0, 0.3, 3.0]).double()  # sd of the coefficients, in units of the noise
    noise = torch.tensor([0.2, 0.5]).double()
    weights = 1.5 + normal(1, tasks, 3, 2) * (size[:, None] * noise)
    x = normal(2, tasks, steps, 3, seed=1)
    y = x @ weights + noise * normal(2, tasks, steps, 2, seed=2)
    head = Head.fit(x, y, torch.ones(2, tasks, steps), floor=1e-6)
    found_size = head.precision.rsqrt() / head.spread
    torch.testing.assert_close(found_size, size, rtol=0.1, atol=0)
    torch.testing.assert_close(head.noise.sqrt() * head.target_spread, noise, rtol=0.05, atol=0)
    average = head.average * head.target_spread / head.spread[:, None]
    torch.testing.assert_close(average, torch.full_like(average, 1.5), rtol=0, atol=0.1)
    floored = Head.fit(x, y, torch.ones(2, tasks, steps), floor=0.25)
    assert (floored.noise >= 0.25).all()


def test_noise_is_what_two_probes_differ_by_not_what_a_line_leaves_over():
    # Each probe has a line of its own, without any noise about it.
    own = normal(2, 50, 1, 1)
    x = normal(2, 50, 30, 1, seed=1)
    y = x @ own
    head = Head.fit(x, y, torch.ones(2, 50, 30), floor=1e-9)
    variance = (own[1] - own[0]).square().mean() * 30 / 2  # v (1/30 + 1/30) = its square
    assert float(head.noise * head.target_spread**2) == pytest.approx(float(variance), rel=0.35)


# All kinds of key.


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_goes_and_comes_back_and_knows_its_version(kind: str):
    with pytest.raises(NotFittedError):
        _ = KINDS[kind]().size
    key: Key = fitted(kind)
    other = KINDS[kind]()
    other.load_state_dict({name: value.clone() for name, value in key.state_dict().items()})
    assert other.version == key.version and other.size == key.size
    rows, query = (key.encode(probe, IDS) for probe in PROBES)
    assert rows.shape == (24, key.size) and rows.dtype == torch.float32
    assert torch.equal(other.encode(PROBES[0], IDS), rows)
    assert torch.equal(other.score(query, rows), key.score(query, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_known_has_no_score(kind: str):
    key: Key = fitted(kind)
    rows, query = (key.encode(blown_up(p, 2 + i), IDS) for i, p in enumerate(PROBES))
    if kind in ("descriptor", "oracle_id"):
        assert torch.isfinite(rows).all()
        rows[2], query[3] = torch.nan, torch.nan
    assert torch.isnan(rows[2]).all() and torch.isfinite(rows[3]).all()
    score = key.score(query, rows)
    assert torch.isneginf(score[:, 2]).all() and torch.isneginf(score[3]).all()
    kept = [i for i in range(24) if i not in (2, 3)]
    assert torch.isfinite(score[kept][:, kept]).all()
    joined = key.joined(rows, query)  # nothing adds nothing
    assert torch.equal(joined[2], query[2]) and torch.equal(joined[3], rows[3])
    assert key.score(query, rows[:0]).shape == (24, 0)


@pytest.mark.parametrize(("kind", "least"), [("likelihood", 1.0), ("fisher", 1.0), ("stats", 0.8)])
def test_tasks_never_met_are_told_apart(kind: str, least: float):
    key: Key = fitted(kind)
    rows, query = (key.encode(HELD.probe(seed)) for seed in (3, 4))
    assert precision_at(key.score(query, rows), torch.arange(20), 1) >= least


@pytest.mark.parametrize("kind", ["likelihood", "fisher", "stats"])
def test_sums_of_a_stream_are_those_of_the_whole(kind: str):
    key: Key = fitted(kind)
    whole = HELD.probe(3, episodes=3)
    parts = [key.encode(whole.episodes(slice(i, i + 1))) for i in range(3)]
    one_way = key.joined(key.joined(parts[0], parts[1]), parts[2])
    other_way = key.joined(parts[2], key.joined(parts[1], parts[0]))
    torch.testing.assert_close(one_way, other_way, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(one_way, key.encode(whole), rtol=1e-3, atol=1e-2)
    rows = key.encode(HELD.probe(4))
    score = key.score(key.encode(whole), rows)
    torch.testing.assert_close(key.score(one_way, rows), score, rtol=1e-3, atol=1e-2)


def test_more_episodes_are_more_evidence():
    rows = LIKELIHOOD.encode(HELD.probe(4))
    one, five = (LIKELIHOOD.encode(HELD.probe(5, episodes=e)) for e in (1, 5))
    own = [LIKELIHOOD.score(q, rows).diagonal().mean() for q in (one, five)]
    assert own[1] > own[0] > 0


@pytest.mark.parametrize("kind", ["likelihood", "fisher", "stats"])
def test_the_level_of_the_reward_makes_no_difference(kind: str):
    scores = []
    for level in (0.0, -50.0):
        train, held = (dataclasses.replace(r, base=level) for r in (TRAIN, HELD))
        key: Key = fitted(kind, [train.probe(seed) for seed in (1, 2)])
        rows, query = (key.encode(held.probe(seed)) for seed in (3, 4))
        scores.append(key.score(query, rows))
    torch.testing.assert_close(scores[0], scores[1], rtol=2e-2, atol=0.2)


def test_what_changed_is_said():
    rows, query = LIKELIHOOD.encode(HELD.probe(3)), HELD.probe(4)
    own = torch.arange(20)
    moved = dataclasses.replace(HELD, paid=HELD.paid.roll(1, 0)).probe(4)
    broken = dataclasses.replace(HELD, pull=HELD.pull.roll(1, 0), push=HELD.push.roll(1, 0))
    reward, dynamics = LIKELIHOOD.reward_score, LIKELIHOOD.dynamics_score
    for episodes, paid, robot in ((query, 1, 1), (moved, 0, 1), (broken.probe(4), 1, 0)):
        evidence = LIKELIHOOD.encode(episodes)
        assert precision_at(reward(evidence, rows), own, 1) == pytest.approx(paid, abs=0.16)
        assert precision_at(dynamics(evidence, rows), own, 1) == pytest.approx(robot, abs=0.16)
        both = reward(evidence, rows) + dynamics(evidence, rows)
        torch.testing.assert_close(both, LIKELIHOOD.score(evidence, rows))
    # every robot starts in the very same state
    assert torch.equal(query.obs[:, :, 0], torch.ones(20, 1, 3))


def test_among_many_rows_the_shortlist_is_scored_exactly_and_nothing_else():
    many = Robots.draw(200, seed=7)
    rows, query = (LIKELIHOOD.encode(many.probe(seed)) for seed in (3, 4))
    rows[5] = torch.nan
    exact = dataclasses.replace(LIKELIHOOD, exact_up_to=1000)
    exact.load_state_dict(LIKELIHOOD.state_dict())
    full, short = exact.score(query, rows), LIKELIHOOD.score(query, rows)
    scored = torch.isfinite(short)
    assert (scored.sum(-1) == LIKELIHOOD.shortlist).all() and not scored[:, 5].any()
    torch.testing.assert_close(short[scored], full[scored])
    known = [i for i in range(200) if i != 5]
    assert torch.equal(short[known].argmax(-1), full[known].argmax(-1))
    few = dataclasses.replace(LIKELIHOOD, shortlist=3)
    few.load_state_dict(LIKELIHOOD.state_dict())
    assert precision_at(few.score(query, rows)[known], torch.tensor(known), 3) >= 0.95
    query[0] = torch.nan
    assert torch.isneginf(LIKELIHOOD.score(query, rows)[0]).all()


def test_rows_of_another_version_are_never_compared():
    other: Likelihood = fitted(noise_floor=0.01)
    squares: Likelihood = fitted(features=HandMade(squares=True))
    elsewhere = Likelihood()
    elsewhere.fit(PROBES[::-1], NORMALIZER)
    versions = [k.version for k in (LIKELIHOOD, other, squares, elsewhere)]
    assert len(set(versions)) == 4 and fitted().version == LIKELIHOOD.version
    same, other = Likelihood(shortlist=3), Likelihood(noise_floor=0.2)
    for key in (same, other):
        key.load_state_dict(LIKELIHOOD.state_dict())
    assert same.version == LIKELIHOOD.version != other.version  # the first only reads differently
    rows = LIKELIHOOD.encode(PROBES[0])[:4]
    wide = torch.cat([rows, torch.full((4, 7), torch.nan)], -1)  # of a memory of several encoders
    score = score_rows(LIKELIHOOD, rows, wide, versions)
    assert torch.isneginf(score[:, 1:]).all()
    torch.testing.assert_close(score[:, :1], LIKELIHOOD.score(rows, rows[:1]))
    assert torch.isneginf(score_rows(LIKELIHOOD, rows, wide, ["x"] * 4)).all()
    with pytest.raises(ValueError, match="4 rows, but 1 versions"):
        score_rows(LIKELIHOOD, rows, wide, ["x"])


def test_the_normaliser_goes_on_and_the_key_does_not():
    mine = ObsNormalizer(OBS)
    key = Likelihood()
    key.fit(PROBES, mine)
    before, version = key.encode(PROBES[0]), key.version
    mine.mean += 1
    mine.update(PROBES[0].obs * 10, PROBES[0].mask)
    assert torch.equal(key.encode(PROBES[0]), before) and key.version == version


def test_squares_see_what_lines_do_not():
    def strange(seed: int, sign: Tensor) -> Trajectories:
        probe = Robots.draw(24, 0, dynamics=0, reward=0).probe(seed, horizon=60)
        bent = probe.reward + sign[:, None, None] * (probe.obs[..., 0] ** 2 - 1)
        return dataclasses.replace(probe, reward=bent)

    bend = torch.linspace(-2, 2, 24)
    rates = []
    for squares in (False, True):
        key: Likelihood = fitted(
            probes=[strange(s, bend) for s in (1, 2)], features=HandMade(squares=squares)
        )
        rows, query = (key.encode(strange(s, bend)) for s in (3, 4))
        rates.append(precision_at(key.score(query, rows), torch.arange(24), 5))
    assert rates[1] > rates[0] + 0.1


# When tasks cannot be told apart.


@pytest.mark.parametrize("kind", ["likelihood", "fisher", "stats"])
def test_robots_that_are_all_alike_are_refused(kind: str):
    alike = Robots.draw(24, seed=0, dynamics=0, reward=0)
    with pytest.raises(IndistinguishableTasksError, match="know one from the other"):
        fitted(kind, [alike.probe(seed) for seed in (1, 2)])
    few = [first_tasks(p, 7) for p in PROBES]
    with pytest.raises(IndistinguishableTasksError, match="at least 8 tasks"):
        KINDS[kind]().fit(few, NORMALIZER)
    with pytest.raises(IndistinguishableTasksError, match="two"):
        KINDS[kind]().fit(PROBES[:1], NORMALIZER)


def test_two_tasks_are_enough_where_it_is_said_which_are_one():
    two = Robots.draw(2, seed=0)
    index = torch.arange(24) % 2
    twins = Robots(two.pull[index], two.push[index], two.paid[index])
    key = Likelihood()
    key.fit([twins.probe(seed) for seed in (1, 2)], NORMALIZER, index[:, None].double())
    score = key.score(key.encode(twins.probe(3)), key.encode(twins.probe(4)))
    same = same_task(index[:, None], torch.ones(24, dtype=torch.bool))
    assert float(score[same].min()) > float(score[~same].max())
    with pytest.raises(IndistinguishableTasksError, match="only one task"):
        key.fit(PROBES, NORMALIZER, torch.zeros(24, 1))


def test_a_task_of_which_nothing_is_known_does_not_spoil_the_fit():
    spoiled = [blown_up(PROBES[0], 23), PROBES[1]]
    clean = [first_tasks(p, 23) for p in PROBES]
    for kind in ("likelihood", "fisher", "stats"):
        one, other = KINDS[kind](), KINDS[kind]()
        one.fit(spoiled, NORMALIZER)
        other.fit(clean, NORMALIZER)
        assert one.version == other.version


# Points and what is given, by hand.


def test_reliability_by_hand():
    # coordinate 0 tells tasks apart, coordinate 1 is noise around one value
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0] * 2).double()
    tasks = torch.stack([10 * signs, 0 * signs], -1)
    noise = torch.stack([signs.roll(1), 5 * signs.roll(1)], -1)
    probes = torch.stack([tasks + noise, tasks - noise])
    # within = (2, 50); between = variance of the means less within / 2 = 800 / 7 - 1, and none
    between = 800 / 7 - 1
    expected = [between / (between + 2) / 2**0.5, 0.0]
    assert reliable(probes).tolist() == pytest.approx(expected)
    assert told_apart(probes[:, :, :1]) > 1.5 > told_apart(normal(2, 40, 20))


def test_the_unit_of_distance_is_what_95_percent_of_repeated_probes_stay_within():
    key: Fisher = fitted("fisher")
    first, second = (key.encode(p) for p in PROBES)
    same = key.distance(first, second).diagonal()
    assert float((same <= 1.001).double().mean()) == pytest.approx(0.95, abs=0.04)
    expected = -key.distance(first, second).square() / 2
    torch.testing.assert_close(key.score(first, second), expected)


def test_statistics_by_hand():
    key: Stats = fitted("stats")
    sums = key.sums(PROBES[0])
    obs, reward = PROBES[0].obs[5, 0].double(), PROBES[0].reward[5, 0].double()
    found = key.coordinates(sums)[5]
    columns = 2 * OBS + ACTIONS + 1
    expected = torch.rsqrt(torch.tensor(1 + 1e-6)) * obs.mean(0)
    torch.testing.assert_close(found[:OBS], expected)
    torch.testing.assert_close(found[columns - 1], reward.mean())
    torch.testing.assert_close(found[-1], reward.std(correction=0))


def test_given_keys_by_hand():
    descriptor: Descriptor = fitted("descriptor")
    told = descriptor.encode(PROBES[0], IDS)
    score = descriptor.score(told, told)
    assert score[4, 4:7].tolist() == pytest.approx([0.0, -4.5, -18.0])
    oracle: OracleId = fitted("oracle_id")
    assert oracle.score(told[:2], told[:2]).tolist() == [[30.0, -30.0], [-30.0, 30.0]]
    nothing: NoKey = fitted("none")
    evidence = nothing.encode(PROBES[0])
    assert nothing.score(evidence, evidence).abs().max() == 0
    for key in (descriptor, oracle):
        with pytest.raises(ValueError, match="needs to be given"):
            key.encode(PROBES[0])
        with pytest.raises(ValueError, match="expected 1 numbers for each of 24"):
            key.encode(PROBES[0], IDS[:3])
    with pytest.raises(IndistinguishableTasksError, match="not all the same"):
        Descriptor().fit(PROBES, NORMALIZER, torch.zeros(24, 2))


def test_new_steps_speak_against_the_rows_of_other_tasks_only():
    key = fitted()
    query, rows = key.encode(HELD.probe(5)), key.encode(HELD.probe(6))
    new = HELD.probe(7)
    steps = (new.obs[:, 0], new.action[:, 0], new.reward[:, 0], new.next_obs()[:, 0])
    assert torch.equal(key.residual(query, query)(*steps), torch.zeros(20, 40).double())
    own, other = (key.residual(query, r)(*steps).sum(1) for r in (rows, rows.roll(1, 0)))
    assert bool((other > own.abs()).all())
    # By hand: what the row's line leaves, less what the query's own line leaves, as it is weighed.
    said = torch.zeros(20, dtype=torch.float64)
    heads = key._inputs(seen := Seen.at(*steps, key.normalizer))
    assert seen.obs.shape == (20, 40, OBS)
    for weight, (name, head) in zip(key._weight, key._heads.items(), strict=True):
        x, y = heads[name]
        for sign, told in ((1, rows), (-1, query)):
            line = head.coefficients(key._unpacked(told[:, key.sizes[0] :].double())[name])
            left = head.targets(x, y) - ((x - head.middle) / head.spread) @ line
            said += sign * weight * (left.square() / head.noise / 2).sum((1, 2))
    torch.testing.assert_close(own, said)
    assert bool(key.residual(query, torch.full_like(rows, torch.nan))(*steps).isnan().all())
