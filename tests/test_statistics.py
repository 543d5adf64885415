"""Intervals, aggregates, tests and power against closed forms, hand sums and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from agent.continual.statistics import aggregates
from agent.continual.statistics.comparison import (
    compare,
    corrected,
    holm,
    sign_flip_p,
    sign_p,
)
from agent.continual.statistics.estimate import (
    Interval,
    Sample,
    aggregate,
    aggregate_of_two,
    estimate,
    sample,
)
from agent.continual.statistics.intervals import (
    Array,
    bca_interval,
    bootstrap_t_interval,
    expanded_interval,
    percentile_interval,
    resample,
    t_interval,
    wilson_interval,
)
from agent.continual.statistics.power import cautious_sd, power_of, seeds_needed

# Three runs of four tasks. Sorted: -.2 0 .1 .2 .3 .4 .5 .6 .8 1. 1.2 3.
SCORES = np.array([[0.0, 0.5, 1.2, 0.3], [0.2, 0.4, 3.0, 0.1], [-0.2, 0.6, 1.0, 0.8]])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_aggregates_are_those_of_rliable():
    # Three of twelve are cut off at either end: (.2 + .3 + .4 + .5 + .6 + .8) / 6.
    assert aggregates.iqm(SCORES) == pytest.approx(2.8 / 6)
    assert aggregates.iqm(SCORES) == pytest.approx(stats.trim_mean(SCORES.ravel(), 0.25))
    # Of 9 values int(9 / 4) = 2 go at either end, not 2.25.
    nine = SCORES[:, :3]
    assert aggregates.iqm(nine) == pytest.approx((0.2 + 0.4 + 0.5 + 0.6 + 1.0) / 5)
    assert aggregates.mean(SCORES) == pytest.approx(7.9 / 12)
    # Those above 1 count as 1: the sum falls from 7.9 to 7.9 - .2 - 2.
    assert aggregates.optimality_gap(SCORES) == pytest.approx(1 - 5.7 / 12)
    assert aggregates.optimality_gap(SCORES, 0.5) == pytest.approx(0.5 - 3.8 / 12)
    thresholds = np.array([-1.0, 0.1, 0.5, 1.0, 3.0])
    above = aggregates.profile(SCORES, thresholds)
    assert above == pytest.approx([1, 9 / 12, 5 / 12, 2 / 12, 0])  # above, not at


def test_aggregates_of_many_resamples_at_once_are_those_of_each():
    many = SCORES[rng().integers(3, size=(7, 3))]
    for statistic in (aggregates.iqm, aggregates.mean, aggregates.optimality_gap):
        assert statistic(many) == pytest.approx([float(statistic(scores)) for scores in many])


def test_improvement_counts_pairs_with_ties_half():
    first, second = np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[1.0, 0.0], [3.0, 9.0], [0.0, 5]])
    # Task 1: of 1 against 1 3 0: tie, lost, won; of 2: won, lost, won. Task 2: won lost tie, twice.
    assert aggregates.improvement(first, second) == pytest.approx((3.5 / 6 + 3 / 6) / 2)
    whole = aggregates.improvement(first, second) + aggregates.improvement(second, first)
    assert whole == pytest.approx(1)
    u = stats.mannwhitneyu(first[:, 0], second[:, 0]).statistic
    assert aggregates.improvement(first[:, :1], second[:, :1]) == pytest.approx(u / 6)
    paired = aggregates.paired_improvement(np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 4, 0]))
    assert paired == pytest.approx(2.5 / 4)


def test_a_score_that_is_not_there_is_not_left_out():
    holed = SCORES.copy()
    holed[1, 2] = np.nan
    for statistic in (aggregates.iqm, aggregates.mean, aggregates.optimality_gap):
        assert math.isnan(float(statistic(holed)))
        assert math.isnan(aggregate(statistic, holed, rng()).low)
    assert np.isnan(aggregates.profile(holed, np.zeros(1))).all()
    assert math.isnan(aggregates.improvement(SCORES, holed))
    assert "1 lifetimes without a score" in aggregate(aggregates.iqm, holed, rng()).note


def test_students_interval_in_closed_form():
    # Mean 3, SD sqrt(2.5), n 5; t of 4 degrees at .975 is 2.776445.
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert t_interval(np.arange(1.0, 6)) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    of_two = t_interval(np.array([0.0, 1.0]), level=0.5)  # t of 1 degree at .75 is 1
    assert of_two == pytest.approx((0, 1))
    assert np.isnan(t_interval(np.ones(1))).all()
    assert t_interval(np.zeros(4)) == (0, 0)


def test_resampled_intervals_of_values_that_leave_little_choice():
    two_valued = np.array([0.0] * 5 + [1.0] * 5)[:, None]
    drawn = resample(aggregates.mean, two_valued, rng(), 20000)
    # The mean of a resample is binomial(10, .5) / 10: quantiles .2 and .8.
    assert percentile_interval(drawn) == pytest.approx((0.2, 0.8))
    assert bca_interval(aggregates.mean, two_valued, drawn) == pytest.approx((0.2, 0.8), abs=0.1)
    wider = expanded_interval(drawn, 10)
    far = stats.norm.cdf(math.sqrt(10 / 9) * stats.t.ppf(0.025, 9))  # .0085
    assert wider[0] == stats.binom.ppf(far, 10, 0.5) / 10 == 0.1
    same = np.full((6, 2), 0.3)
    assert bca_interval(aggregates.mean, same, resample(aggregates.mean, same, rng())) == (
        pytest.approx((0.3, 0.3))
    )


def test_bca_agrees_with_scipy():
    values = np.random.default_rng(3).lognormal(size=25)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="BCa", rng=rng()
    ).confidence_interval
    scores = values[:, None]
    ours = bca_interval(aggregates.mean, scores, resample(aggregates.mean, scores, rng(), 20000))
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.01)
    assert ours != pytest.approx(t_interval(values), rel=0.05)  # skewed, so unlike Student's


def test_bootstrap_t_leans_to_the_long_tail_and_says_where_it_cannot_be():
    values = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 2.0, 4.0])
    low, high = bootstrap_t_interval(values, rng())
    assert high - values.mean() > 1.5 * (values.mean() - low)
    mirrored = bootstrap_t_interval(-values, rng())
    assert mirrored == pytest.approx((-high, -low))
    assert np.isnan(bootstrap_t_interval(values[:3], rng())).all()
    nearly_equal = estimate(by_seed([0.0] * 9 + [1.0]), rng(), interval="bootstrap_t")
    assert nearly_equal.high == math.inf and "too equal" in nearly_equal.note


def test_wilsons_interval_is_the_published_one():
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_estimates_say_how_much_they_are_worth():
    assert estimate(by_seed([1.0, 2, 3]), rng()).note == "smoke, no claim"
    assert estimate(by_seed([1.0, 2, 3, 4]), rng()).note == "exploratory"
    assert estimate(by_seed([1.0] * 9), rng()).note == "exploratory"
    assert estimate(by_seed([1.0] * 10), rng()).note == ""
    nothing = estimate({}, rng())
    assert nothing.n == 0 and math.isnan(nothing.mean) and nothing.note == "no lifetimes"
    one = estimate({4: 2.0}, rng())
    assert one.mean == 2 and math.isnan(one.low) and math.isnan(one.high)


@pytest.mark.parametrize("interval", ["t", "bootstrap_t", "expanded", "percentile", "bca"])
def test_estimates_are_repeatable_and_hold_their_mean(interval: Interval):
    values = by_seed([0.3, 0.1, 0.4, 0.15, 0.9, 0.26])
    first = estimate(values, rng(), interval=interval)
    assert first == estimate(values, rng(), interval=interval)
    assert first.low < first.mean < first.high
    assert first.mean == pytest.approx(2.11 / 6)
    narrower = estimate(values, rng(), level=0.5, interval=interval)
    assert narrower.high - narrower.low < 0.7 * (first.high - first.low)


def test_a_crashed_lifetime_is_counted_not_dropped():
    values = {0: 0.8, 1: math.nan, 2: 0.6, 3: 0.7}
    without = sample(values, crashed=[1])
    row = estimate(without, rng())
    assert (row.n, row.failed) == (4, 1) and math.isnan(row.mean) and math.isnan(row.high)
    assert "1 of 4 crashed, counted with no value" in row.note
    # What it said before it crashed is not looked at, and the random policy's .1 counts.
    half_said = sample(values | {1: 0.9}, [1], stand_in={1: 0.1})
    row = estimate(half_said, rng())
    assert row.mean == pytest.approx((0.8 + 0.1 + 0.6 + 0.7) / 4) and row.failed == 1
    assert "stand-in's score" in row.note
    # To crash never pays: the agent's own worst counts if it is worse still.
    assert sample(values, [1], {1: 5.0}).values[1] == 0.6
    assert sample(values, [1], {1: 0.0}, better="low").values[1] == 0.8
    assert math.isnan(sample(values, [1], {1: 0.0}, better="").values[1])
    assert math.isnan(sample(values, [1], {0: 0.5}).values[1])
    undefined = sample({0: 1.0, 1: math.nan})
    assert undefined.failed == 0 and undefined.notes == ("not defined in 1 of 2",)


def test_paired_comparison_by_hand():
    first = Sample(by_seed([5.0, 6.0, 9.0, 8.0]) | {9: 3.0})
    second = Sample(by_seed([4.0, 6.0, 6.0, 4.0]) | {7: 1.0})
    done = compare(first, second, rng())
    # Differences 1 0 3 4: mean 2, SD sqrt(10 / 3), t of 3 degrees 3.182446.
    half = 3.182446 * math.sqrt(10 / 3 / 4)
    assert done.difference.mean == 2 and done.difference.n == 4
    assert (done.difference.low, done.difference.high) == pytest.approx((2 - half, 2 + half))
    assert done.better.mean == 3.5 / 4  # one tie
    assert (done.first.n, done.first.mean) == (5, pytest.approx(31 / 5))
    assert "2 seeds of one agent only" in done.difference.note
    assert "cannot be below 0.12" in done.difference.note
    # As large a sum needs + + + (the zero's sign is free), or all minus: 2 * 2 of 16.
    assert done.p == 4 / 16
    lower = compare(first, second, rng(), better="low")
    assert lower.better.mean == pytest.approx(0.5 / 4) and lower.difference == done.difference
    back = compare(second, first, rng())
    assert back.difference.mean == -2 and back.p == done.p


def test_pairing_sees_what_the_seeds_hide():
    seeds = np.arange(10.0) * 10
    first, second = Sample(by_seed(list(seeds + 1))), Sample(by_seed(list(seeds)))
    noise = Sample(by_seed(list(seeds + 1 + np.tile([0.1, -0.1], 5))))
    paired, unpaired = compare(noise, second, rng()), compare(first, second, rng(), paired=False)
    assert paired.p == 2 / 2**10 and paired.difference.low > 0.9
    assert unpaired.p > 0.9 and unpaired.difference.low < -20
    welch = stats.ttest_ind(first.array, second.array, equal_var=False)
    assert unpaired.p == pytest.approx(welch[1])
    # 10 s above t, 9 x 10 / 2 pairs of the others: 10 + 45 of 100.
    assert unpaired.better.mean == 0.55 and "not paired" in unpaired.difference.note


def test_a_missing_partner_makes_no_difference_up():
    first, second = Sample(by_seed([1.0, math.nan, 2.0]), failed=1), Sample(by_seed([0.0, 1, 2]))
    for paired in (True, False):
        done = compare(first, second, rng(), paired=paired)
        assert math.isnan(done.difference.mean) and math.isnan(done.p)
        assert done.difference.failed == 1 and math.isnan(done.better.mean)


def test_sign_flips_by_enumeration():
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.4, -0.05])
    signs = np.array(list(itertools.product([1, -1], repeat=6)))
    as_far = np.abs((signs * differences).sum(1)) >= differences.sum() - 1e-12
    assert sign_flip_p(differences, rng()) == as_far.mean()
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=2**6
    )
    assert sign_flip_p(differences, rng()) == pytest.approx(theirs.pvalue)
    assert sign_flip_p(np.array([0.1, 0.2, 0.3]), rng()) == 2 / 8
    assert sign_flip_p(np.zeros(5), rng()) == 1
    tenths = np.array([3.0, 7, -6, 1, 4])  # divided by ten, equal sums differ in the last bits
    assert sign_flip_p(tenths / 10, rng()) == sign_flip_p(tenths, rng()) == 14 / 32
    many = np.random.default_rng(1).normal(0.3, 1, 40)
    assert sign_flip_p(many, rng()) == pytest.approx(stats.ttest_1samp(many, 0)[1], abs=0.015)
    assert sign_flip_p(np.full(30, 1.0), rng()) == pytest.approx(1 / 20001)  # never zero


def test_sign_test_is_binomial_without_ties():
    # 7 up, 1 down: 2 (1 + 8) / 256.
    assert sign_p(np.array([1.0] * 7 + [-9.0, 0.0])) == pytest.approx(18 / 256)
    assert sign_p(np.zeros(3)) == 1 and math.isnan(sign_p(np.array([math.nan])))


def test_holm_textbook_example():
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and none less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1, 1] and holm([]) == [] and holm([0.02]) == [0.02]
    with_hole = holm([0.01, math.nan, 0.02])
    assert with_hole[0] == pytest.approx(0.03) and with_hole[2] == pytest.approx(0.04)
    assert math.isnan(with_hole[1])
    done = compare(Sample(by_seed([1.0, 2, 3])), Sample(by_seed([0.0, 0, 0])), rng())
    assert [c.p_holm for c in corrected({"a": done, "b": done}).values()] == [0.5, 0.5]


def test_seeds_needed_are_the_published_ones():
    # G*Power and Cohen's tables: 64 and 17 a group for d = .5 and 1; 34 pairs for d = .5.
    assert seeds_needed(1.0, 0.5, paired=False) == 64
    assert seeds_needed(1.0, -1.0, paired=False) == 17
    assert seeds_needed(1.0, 0.5, paired=True) == 34
    assert seeds_needed(0.0, 0.5, paired=True) == 2
    assert power_of(64, 0.5, 1.0, paired=False) == pytest.approx(0.8015, abs=1e-4)
    assert power_of(20, 1e-12, 1.0, paired=True) == pytest.approx(0.05)  # no effect: the level
    # The reference's table took the SD for known: 63 16 4 and 13 4 1.
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    deltas = (0.05, 0.10, 0.20)
    for sd, normal, ours in ((0.10, [63, 16, 4], [64, 17, 6]), (0.045, [13, 4, 1], [14, 5, 3])):
        assert [math.ceil(2 * (z * sd / delta) ** 2) for delta in deltas] == normal
        assert [seeds_needed(sd, delta, paired=False) for delta in deltas] == ours


def test_power_refuses_what_makes_no_sense():
    for sd, delta, power, word in (
        (-1.0, 0.1, 0.8, "sd=-1"),
        (math.nan, 0.1, 0.8, "sd=nan"),
        (1.0, 0.0, 0.8, "delta=0"),
        (1.0, 0.1, 1.0, "power=1"),
        (1.0, 1e-6, 0.8, "too small"),
    ):
        with pytest.raises(ValueError, match=word):
            seeds_needed(sd, delta, paired=True, power=power)


def test_cautious_sd_is_above_the_true_one_as_often_as_it_says():
    pilots = np.random.default_rng(0).normal(0, 2.0, (20000, 5)).std(axis=1, ddof=1)
    assert np.mean([cautious_sd(1.0, 4) * pilots >= 2.0]) == pytest.approx(0.8, abs=0.01)
    assert math.isnan(cautious_sd(1.0, 0))


def test_shared_references_do_not_become_certain_by_many_runs():
    generator = rng()
    runs, references = generator.normal(1, 1, (200, 3)), generator.normal(0, 1, (4, 3))

    def gain(first: Array, second: Array) -> float:
        return float(first.mean() - second.mean())

    with_both = aggregate_of_two(gain, runs, references, rng())
    known = aggregate(lambda s: aggregates.mean(s) - references.mean(), runs, rng())
    assert with_both.mean == pytest.approx(known.mean)
    assert with_both.n == 4 and "exploratory" in with_both.note
    assert with_both.high - with_both.low > 3 * (known.high - known.low)


def test_profile_band_draws_whole_runs():
    # Runs agree with themselves wholly: the profile's spread is that of two runs, not of 2 x 50.
    scores = np.repeat([[0.0], [1.0], [0.0], [1.0], [1.0], [0.0]], 50, axis=1)
    low, high = aggregates.profile_band(scores, np.array([-1.0, 0.5, 2.0]), rng())
    assert low.tolist()[::2] == high.tolist()[::2] == [1, 0]
    assert low[1] <= 1 / 6 and high[1] >= 5 / 6
    assert np.isnan(aggregates.profile_band(scores[:1], np.zeros(2), rng())[0]).all()


def test_complete_separation_is_not_taken_for_certainty():
    first, second = np.arange(4.0)[:, None] + 10, np.arange(5.0)[:, None]
    better = aggregate_of_two(aggregates.improvement, first, second, rng())
    assert better.mean == 1 and "the interval says nothing" in better.note
    paired = compare(Sample(by_seed([11.0, 12, 13, 14])), Sample(by_seed([1.0, 2, 3, 4])), rng())
    assert paired.better.mean == 1 and paired.better.low == pytest.approx(0.5101, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10])
def test_coverage(n: int):
    """Ten tasks, a fifth of the variance common to a lifetime, as in the table of intervals.py."""
    generator, repeats, covered = np.random.default_rng(n), 2000, {}
    tasks, task_means = 10, np.arange(10) / 10
    for _ in range(repeats):
        common, own = generator.normal(size=(n, 1)), generator.normal(size=(n, tasks))
        scores = task_means + np.sqrt(0.2) * common + np.sqrt(0.8) * own
        drawn = resample(aggregates.mean, scores, generator, 1000)
        one_by_one = scores[generator.integers(n, size=(1000, n, tasks)), np.arange(tasks)]
        intervals = {
            "t": t_interval(scores.mean(axis=1)),
            "bootstrap_t": bootstrap_t_interval(scores.mean(axis=1), generator, draws=1000),
            "expanded": expanded_interval(drawn, n),
            "percentile": percentile_interval(drawn),
            "bca": bca_interval(aggregates.mean, scores, drawn),
            "stratified": percentile_interval(one_by_one.mean(axis=(1, 2))),
        }
        for name, (low, high) in intervals.items():
            covered[name] = covered.get(name, 0) + (low <= 0.45 <= high) / repeats
    assert 0.93 <= covered["t"] <= 0.97 and 0.93 <= covered["bootstrap_t"] <= 0.97
    assert 0.90 <= covered["expanded"] <= 0.96
    assert covered["percentile"] < 0.915 and covered["bca"] < 0.915
    assert covered["stratified"] < 0.77


@pytest.mark.slow
def test_coverage_with_shared_references():
    """Ten runs against five reference runs: to take the references for known is to claim much."""
    generator, repeats, both, runs_only = np.random.default_rng(0), 300, 0, 0

    def gain(first: Array, second: Array) -> float:
        return float(first.mean() - second.mean())

    for _ in range(repeats):
        runs, references = generator.normal(0.3, 1, (10, 1)), generator.normal(0, 1, (5, 1))
        row = aggregate_of_two(gain, runs, references, generator)
        both += row.low <= 0.3 <= row.high
        low, high = t_interval(runs[:, 0] - references.mean())
        runs_only += low <= 0.3 <= high
    assert 0.92 <= both / repeats <= 0.99
    assert runs_only / repeats < 0.85
