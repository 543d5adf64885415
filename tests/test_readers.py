"""Readers: what they try, what they conclude, and what it costs on tasks with and without a row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agent.memory.candidates import Candidates, LineageError, corrupt
from agent.memory.reader.bandits import Bpr, GpUcb, Thompson, expected_returns
from agent.memory.reader.base import Reader, Trial, attempts
from agent.memory.reader.guarded import Guarded
from agent.memory.reader.rounds import Halving, TTest
from agent.memory.reader.simple import Average, SeedLiteral, SoftmaxTopK, Top1
from agent.types import Trajectories
from scripts.reader_rates import conditions, live, make_world

ALL: list[Reader] = [
    Top1(), SoftmaxTopK(), Average(), SeedLiteral(), Thompson(), Bpr(), GpUcb(), Halving(), TTest(),
    Guarded(),
]  # fmt: skip
HORIZON = 5


def rows(
    weight: list[list[float]],
    null: list[float],
    mean: float = 10.0,
    baseline: float = 0.0,
    home: float | None = None,
) -> Candidates:
    """Rows 100, 101, ... with policies 1, 2, ..., all with returns ``mean`` +- 1."""
    w = torch.tensor(weight)
    t, k = w.shape
    so_far = torch.linspace(mean / HORIZON, mean, HORIZON).expand(t, k, -1)
    return Candidates(
        index=100 + torch.arange(k).expand(t, -1),
        weight=w,
        null=torch.tensor(null),
        params=1 + torch.arange(k).float()[:, None].expand(t, k, 2),
        mean=torch.full((t, k), mean),
        sd=torch.ones(t, k),
        n=torch.full((t, k), 20.0),
        so_far=so_far,
        so_far_sd=torch.linspace(0.4, 1, HORIZON).expand(t, k, -1),
        affinity=torch.eye(k).expand(t, -1, -1),
        baseline=torch.full((t, k), baseline),
        anchor=torch.zeros(2),
        home_so_far=None if home is None else torch.full((t, HORIZON), home),
    )


def episode(returns: list[float]) -> Trajectories:
    """One episode per task with these returns; NaN diverged."""
    total = torch.tensor(returns)
    reward = (total.nan_to_num() / HORIZON)[:, None, None].expand(-1, 1, HORIZON)
    t = len(returns)
    return Trajectories(
        obs=torch.zeros(t, 1, HORIZON, 1),
        action=torch.zeros(t, 1, HORIZON, 1),
        log_prob=torch.zeros(t, 1, HORIZON),
        reward=reward,
        mask=torch.ones(t, 1, HORIZON),
        final_obs=torch.zeros(t, 1, 1),
        terminated=torch.zeros(t, 1, dtype=torch.bool),
        diverged=total.isnan()[:, None],
    )


def opened(reader: Any, candidates: Candidates, seed: int = 0) -> Any:
    return reader.open(candidates, torch.Generator().manual_seed(seed))


def see(trial: Any, returns: list[float], tripped: list[bool] | None = None) -> list[int]:
    """Propose, observe; the rows that were proposed."""
    proposed = trial.propose().row.tolist()
    trial.observe(episode(returns), torch.tensor(tripped or [False] * len(returns)))
    return proposed


def acted(trial: Trial, worth: Tensor, budget: int = 60) -> list[list[int]]:
    """Run a trial where place k returns ``worth [T, K + 1]``, the last the meta-init's."""
    generator = torch.Generator().manual_seed(7)

    def collect(params: Tensor, guard: object) -> Trajectories:
        place = params[:, 0].round().long() - 1  # policies are 1, 2, ..., the anchor 0
        noise = 0.5 * torch.randn(len(worth), generator=generator)
        return episode((worth[torch.arange(len(worth)), place] + noise).tolist())

    return [attempt.row.tolist() for attempt in attempts(trial, collect, budget)]


@pytest.mark.parametrize("reader", ALL, ids=lambda r: type(r).__name__)
def test_an_empty_memory_is_exactly_the_meta_initialisation(reader: Reader):
    anchor = torch.tensor([0.1, 0.2, 0.3])
    trial = opened(reader, Candidates.none(3, HORIZON, anchor, places=2))
    assert trial.done.all()
    assert torch.equal(trial.start(), anchor.expand(3, -1))
    assert torch.equal(trial.propose().params, anchor.expand(3, -1))
    assert trial.propose().row.tolist() == [-1] * 3
    assert not trial.recall().accepted.any() and (trial.recall().index >= 0).all()
    assert not trial.recall().pull(torch.ones(3, 3)).any()


@pytest.mark.parametrize("reader", ALL, ids=lambda r: type(r).__name__)
def test_a_lone_right_row_is_recalled_and_a_lone_wrong_one_costs_no_more_than_it_must(
    reader: Reader,
):
    for worth, right in ((10.0, True), (-10.0, False)):
        trial = opened(reader, rows([[0.9, 0.0, 0.0]], [0.1]))
        assert acted(trial, torch.tensor([[worth, 99.0, 99.0, 0.0]])) is not None
        assert trial.done.all()
        if right:
            assert trial.recall().weights.tolist() == [[1.0, 0.0, 0.0]]
            if not isinstance(reader, SeedLiteral):
                assert trial.start().tolist() == [[1.0, 1.0]]
        elif isinstance(reader, Bpr | Halving | TTest | Guarded):
            assert trial.start().tolist() == [[0.0, 0.0]]
            assert not trial.recall().accepted.any()


@pytest.mark.parametrize(
    "reader", [Bpr(), Thompson(trials=10), GpUcb(), Halving(), TTest(), Guarded()]
)
def test_trying_finds_the_right_row_whatever_the_key_says(reader: Reader):
    trial = opened(reader, rows([[0.5, 0.3, 0.1], [0.5, 0.3, 0.1]], [0.1, 0.1]))
    acted(trial, torch.tensor([[-5.0, 10.0, -5.0, 0.0], [10.0, -5.0, -5.0, 0.0]]))
    assert trial.done.all()
    assert trial.recall().weights.argmax(-1).tolist() == [1, 0]


def test_simple_weights_are_their_formulas():
    offered = rows([[0.6, 0.2, 0.1]], [0.1])
    posterior = torch.tensor([[0.6, 0.2, 0.1]])
    for t in (0.5, 1.0, 3.0):
        raised = posterior ** (1 / t)
        weights = opened(SoftmaxTopK(temperature=t), offered).recall().weights
        torch.testing.assert_close(weights, raised / raised.sum())
    assert opened(SoftmaxTopK(temperature=0), offered).recall().weights.tolist() == [[1, 0, 0]]
    for flat in (SoftmaxTopK(temperature=math.inf), Average()):
        torch.testing.assert_close(
            opened(flat, offered).recall().weights, torch.full((1, 3), 1 / 3)
        )
    mixed = opened(SoftmaxTopK(), offered)
    torch.testing.assert_close(mixed.start(), torch.full((1, 2), (0.6 + 0.4 + 0.3) / 0.9))
    seed = opened(SeedLiteral(), offered)  # pulls, but does not jump
    assert seed.start().tolist() == [[0, 0]] and seed.propose().row.tolist() == [-1]
    torch.testing.assert_close(seed.recall().pull(torch.zeros(1, 2)), mixed.start())


def test_the_gate_is_a_setting_of_those_that_do_not_try():
    offered = rows([[0.3, 0.1]], [0.6])
    for kind in (Top1, SoftmaxTopK, Average):
        assert not opened(kind(gated=True), offered).recall().accepted.any()
        assert opened(kind(gated=False), offered).recall().accepted.all()


@given(
    weights=st.lists(
        st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 0.5, 1.0]), min_size=3, max_size=3),
        min_size=1,
        max_size=3,
    ),
    null=st.sampled_from([0.0, 1e-30, 0.4, 1.0]),
    returns=st.sampled_from([10.0, -1e6, 0.0, math.nan]),
    which=st.sampled_from(range(len(ALL))),
    temperature=st.sampled_from([0.0, 1e-3, 1.0, 1e6, math.inf]),
)
@settings(max_examples=150, deadline=None)
def test_weights_sum_to_one_or_nothing_is_recalled(
    weights: list[list[float]], null: float, returns: float, which: int, temperature: float
):
    offered = rows(weights, [null] * len(weights))
    for reader in (ALL[which], SoftmaxTopK(temperature=temperature, gated=False)):
        trial = opened(reader, offered)
        for _ in range(4):
            assert torch.isfinite(trial.propose().params).all()
            see(trial, [returns] * len(weights))
        recall = trial.recall()
        total = recall.weights.sum(-1)
        assert torch.isfinite(recall.weights).all() and (recall.weights >= 0).all()
        assert (((total - 1).abs() < 1e-5) | (total == 0)).all()
        assert not (recall.weights[~offered.known] > 0).any()
        assert (recall.index >= 0).all()


def test_guarded_accepts_within_three_deviations_of_the_record():
    scale = (1 + 1 / 20) ** 0.5 + 0.05  # the record's, and .005 of the gain
    for returned, right in ((10 - 2.95 * scale, True), (10 - 3.05 * scale, False), (99.0, True)):
        trial = opened(Guarded(), rows([[0.6, 0.3]], [0.1]))
        assert see(trial, [returned]) == [100]
        assert bool(trial.done[0]) is right and bool(trial.matched[0]) is right
        assert trial.propose().row.tolist() == [100 if right else 101]


def test_guarded_works_with_negative_returns_as_with_any():
    trial = opened(Guarded(), rows([[0.6, 0.3]], [0.1], mean=-100.0, baseline=-110.0))
    assert see(trial, [-101.0]) == [100]
    assert trial.recall().weights.tolist() == [[1.0, 0.0]]


def test_guarded_stops_when_none_is_likelier_than_what_is_left():
    trial = opened(Guarded(), rows([[0.6, 0.3], [0.6, 0.15], [0.2, 0.1]], [0.1, 0.25, 0.7]))
    assert trial.done.tolist() == [False, False, True]
    assert see(trial, [0.0, 0.0, 0.0]) == [100, 100, -1]
    assert trial.done.tolist() == [False, True, True]
    torch.testing.assert_close(trial.weight[0], torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(trial.null, torch.tensor([0.25, 0.625, 0.7]))
    assert see(trial, [10.0, 0.0, 0.0]) == [101, -1, -1]
    assert trial.recall().weights.tolist() == [[0, 1], [0, 0], [0, 0]]


def test_guarded_takes_the_likes_of_a_rejected_row_down_with_it():
    offered = rows([[0.4, 0.3, 0.2]], [0.1])
    alike = torch.eye(3)
    alike[0, 1] = alike[1, 0] = 0.9
    trial = opened(Guarded(), replace(offered, affinity=alike[None]))
    see(trial, [0.0])
    assert see(trial, [0.0]) == [102]
    strangers = opened(Guarded(rival=0.0), replace(offered, affinity=alike[None]))
    see(strangers, [0.0])
    assert strangers.weight[0, 0] == 0
    assert see(strangers, [0.0]) == [101]


@pytest.mark.parametrize("returned", [10.0, math.nan])
def test_what_the_guard_stopped_or_diverged_is_rejected(returned: float):
    trial = opened(Guarded(trials=2), rows([[0.5, 0.3, 0.1]], [0.1]))
    stopped = not math.isnan(returned)
    assert see(trial, [returned], [stopped]) == [100]
    assert see(trial, [returned], [stopped]) == [101]
    assert trial.done.all()  # no more than two trials
    assert torch.equal(trial.start(), torch.zeros(1, 2))
    assert trial.returns == [[[], [], [], []]] or math.isnan(trial.returns[0][0][0])


def test_guarded_knows_what_the_meta_initialisation_returns():
    worse = opened(Guarded(), rows([[0.6, 0.3]], [0.1], home=12.0))
    assert worse.done.all() and not worse.recall().accepted.any()  # 10 is not worth trying
    noisy = opened(Guarded(), rows([[0.6, 0.0]], [0.1], home=8.5))
    see(noisy, [8.0])  # within the record, but below the meta-initialisation
    assert not noisy.recall().accepted.any()
    some = opened(Guarded(), rows([[0.5, 0.3, 0.1]], [0.1], home=0.0))
    for value in (5.0, 6.0, 4.0):
        see(some, [value])
    assert some.recall().weights.tolist() == [[0, 1, 0]]  # the best that clearly beat it
    assert not some.matched.any()


def test_only_what_is_on_trial_is_guarded():
    trial = opened(Guarded(), rows([[0.9], [0.9], [0.1]], [0.1, 0.1, 0.9]))
    see(trial, [10.0, 0.0, 0.0])
    again = opened(Guarded(), rows([[0.5, 0.4]] * 3, [0.1] * 3))
    see(again, [10.0, 0.0, 0.0])
    guard = again.propose().guard
    assert guard is not None
    assert guard.lowest[0].isinf().all() and torch.isfinite(guard.lowest[1]).any()
    assert trial.done.all() and trial.propose().guard is None
    assert opened(Guarded(guard=None), rows([[0.9]], [0.1])).propose().guard is None


def test_a_decision_stays_and_observing_without_a_proposal_is_refused():
    for reader in (Guarded(), Bpr(trials=1)):
        trial = opened(reader, rows([[0.9, 0.05]], [0.05]))
        see(trial, [10.0])
        for _ in range(3):
            assert see(trial, [-99.0]) == [100]
        assert trial.recall().weights.tolist() == [[1, 0]]
    trial.propose()
    trial.observe(episode([1.0]), torch.tensor([False]))
    with pytest.raises(ValueError, match="needs a proposal"):
        trial.observe(episode([1.0]), torch.tensor([False]))
    trial.propose()
    with pytest.raises(ValueError, match="expected 1 episode of each of 1 tasks"):
        trial.observe(episode([1.0, 2.0]), torch.tensor([False, False]))


def test_bprs_belief_is_bayes_rule():
    offered = rows([[0.5, 0.3]], [0.2])
    mean, sd = (x[0] for x in expected_returns(offered, stranger=-1.0))
    own = (1 + 1 / 20) ** 0.5 + 0.02 * 10
    expected = torch.tensor([[10.0, -10, -10], [-10, 10, -10], [0, 0, 0]])
    torch.testing.assert_close(mean.float(), expected, atol=1e-3, rtol=0)
    assert sd[0, 0] == pytest.approx(own, abs=1e-3) and sd[0, 1] == pytest.approx(10, abs=1e-3)
    half = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
    alike = expected_returns(replace(offered, affinity=half), stranger=-1.0)[0][0]
    assert float(alike[0, 1]) == pytest.approx(0.5 * 10 - 0.5 * 10, abs=1e-3)
    trial = opened(Bpr(sure=1.0), offered)
    assert see(trial, [8.0]) == [-1]  # .5 x 10 - .5 x 10 is not better than 0 for certain
    first = torch.tensor([0.5, 0.3, 0.2]).double()
    normal = torch.distributions.Normal(mean[2], sd[2])
    expected = first * normal.log_prob(torch.tensor(8.0)).exp()
    torch.testing.assert_close(trial.belief[0], expected / expected.sum())


def test_the_gaussian_process_is_hand_computed_for_two_rows():
    offered = rows([[0.5, 0.4]], [0.1])
    alike = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
    trial = opened(GpUcb(enough=1.0), replace(offered, affinity=alike))
    see(trial, [4.0])
    tried = int(trial.choice[0])
    noise = ((1 + 1 / 20) ** 0.5 + 0.2) ** 2
    shrink = 100 / (100 + noise)
    assert float(trial._mean[0, tried]) == pytest.approx(10 - 6 * shrink, abs=1e-3)
    assert float(trial._mean[0, 1 - tried]) == pytest.approx(10 - 3 * shrink, abs=1e-3)
    assert float(trial._var[0, 1 - tried]) == pytest.approx(100 - 25 * shrink, abs=1e-2)


def test_halving_and_the_t_test_spend_what_they_say():
    worth = torch.tensor([[1.0, 9.0, 2.0, 0.0]])
    offered = rows([[0.5, 0.3, 0.1]], [0.1])
    assert len(acted(opened(Halving(), offered), worth)) == 4 + 2
    assert len(acted(opened(TTest(episodes=4), offered), worth)) == 3 * 4
    none = opened(TTest(), offered)
    acted(none, torch.tensor([[0.1, 0.1, 9.0, 0.0]]))
    assert not none.recall().accepted.any()  # no better than chance, and the third is not tried


def test_thompson_draws_from_its_generator_only():
    offered = rows([[0.3, 0.3, 0.2]] * 20, [0.2] * 20)
    draws = [opened(Thompson(), offered, seed).propose().row.tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) == {100, 101, 102, -1}


def test_corruption_hits_the_given_share_and_keeps_the_posterior():
    offered = rows([[0.5, 0.3, 0.1]] * 2000 + [[0.9, 0.0, 0.0]] * 50, [0.1] * 2050)
    for rate in (0.0, 0.3, 1.0):
        wrong = corrupt(offered, rate, torch.Generator().manual_seed(0))
        hit = wrong.index[:2000, 0] != 100
        assert float(hit.float().mean()) == pytest.approx(rate, abs=0.03)
        assert torch.equal(wrong.weight, offered.weight)
        assert torch.equal(wrong.index[2000:], offered.index[2000:])  # nothing to mistake it for
        assert torch.equal(wrong.params[..., 0], wrong.index.float() - 99)  # rows move as a whole
        assert wrong.index[:2000].sort(-1).values.eq(torch.tensor([100, 101, 102])).all()
    assert {101, 102} == set(wrong.index[:2000, 0].tolist())
    # rows 101 and 102 are alike, wherever in the order they come to stand
    alike = torch.tensor([[1, 0.1, 0.2], [0.1, 1, 0.7], [0.2, 0.7, 1]]).expand(2050, -1, -1)
    moved = corrupt(replace(offered, affinity=alike), 1.0, torch.Generator().manual_seed(0))
    at = moved.index - 100
    expected = alike[0][at[:, :, None], at[:, None]]
    assert torch.equal(moved.affinity, expected)


def test_rows_of_another_lineage_may_be_picked_but_not_mixed():
    foreign = replace(rows([[0.5, 0.4]], [0.1]), mixable=torch.tensor([[True, False]]))
    for reader in (SoftmaxTopK(), Average(), SeedLiteral()):
        with pytest.raises(LineageError, match=r"rows \[101\] are of another lineage"):
            opened(reader, foreign)
    assert opened(Top1(), foreign).start().tolist() == [[1, 1]]
    assert opened(SoftmaxTopK(temperature=0), foreign).start().tolist() == [[1, 1]]


def test_candidates_that_do_not_fit_together_are_refused():
    offered = rows([[0.5, 0.4]], [0.1])
    with pytest.raises(ValueError, match=r"mean must be \(1, 2\), got \(1, 3\)"):
        replace(offered, mean=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="weight must be finite"):
        replace(offered, weight=torch.tensor([[0.5, math.nan]]))


@pytest.mark.slow
def test_guarded_reading_pays_at_any_key_and_top1_does_not():
    world, regret = make_world(rows=16, steps=60), {}
    for probed in (False, True):
        cases = conditions(world, rates=(1.0, 0.3), probed=probed)
        for name in ("P@1 = 1", "P@1 = 0.3", "novel, blind"):
            outcomes = [live(world, r, *cases[name]) for r in (None, Guarded(), Top1(gated=False))]
            regret[name] = [float(outcome.regret.mean()) for outcome in outcomes]
            assert outcomes[1].worse_than(outcomes[0]) <= 1 / 16, name
        (none, guarded, top1), (_, guarded_3, top1_3), (new, guarded_new, top1_new) = (
            regret.values()
        )
        assert max(guarded, top1) < 0.05 * none
        assert guarded_3 < min(top1_3, (0.5 if probed else 0.85) * none)
        assert guarded_new < 1.1 * new and top1_new > 1.5 * new
