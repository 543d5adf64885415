"""Posteriors by hand, their calibration, and the numbers that judge them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.memory.posterior import (
    Calibration,
    Posterior,
    Prior,
    fit_weights,
    log_loss,
    loss_of_chance,
)
from agent.memory.scoring import (
    auroc,
    brier,
    calibration_error,
    chosen,
    posterior_error,
    precision_at,
)


def test_posterior_of_a_gaussian_case_by_hand():
    # A reading x ~ N(centre, 1) of a task at -1 or +2, or of a new one, x ~ N(0, 10).
    def density(x: float, mean: float, variance: float) -> float:
        return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    x, rows, null = 1.5, [0.5, 0.3], 0.2
    likelihood = [density(x, -1, 1), density(x, 2, 1), density(x, 0, 10)]
    mass = [p * prior for p, prior in zip(likelihood, [*rows, null], strict=True)]
    scores = torch.tensor([[math.log(p / likelihood[2]) for p in likelihood[:2]]])
    found = Calibration().posterior(scores, torch.tensor(rows), null)
    assert found.weight[0].tolist() == pytest.approx([m / sum(mass) for m in mass[:2]])
    assert float(found.null) == pytest.approx(mass[2] / sum(mass))


def test_softmax_is_applied_once():
    # Weights of two rows are in the ratio of their likelihoods, which a second softmax would lose.
    found = Calibration().posterior(torch.tensor([[5.0, 1.0]]), torch.ones(2), 1.0)
    assert float(found.weight[0, 0] / found.weight[0, 1]) == pytest.approx(math.exp(4))


def test_scale_and_offset_are_of_the_rows_and_not_of_none():
    found = Calibration(2.0, -1.0).posterior(torch.tensor([[1.5]]), torch.tensor([0.5]), 0.5)
    assert float(found.null) == pytest.approx(1 / (1 + math.exp(2.0)))


def test_recurrence_prior_by_hand():
    prior = Prior.recurrence(torch.tensor([3, 1]), novelty=1.0)
    assert prior.rows.tolist() == [0.6, 0.2]
    assert prior.null == 0.2
    assert Prior.recurrence(torch.zeros(0), 1.0).null == 1.0
    even = Prior.even(4, null=0.2)
    assert even.rows.tolist() == pytest.approx([0.2] * 4) and even.null == 0.2
    with pytest.raises(ValueError, match="novelty=0"):
        Prior.recurrence(torch.tensor([3]), novelty=0)
    with pytest.raises(ValueError, match="negative"):
        Prior.recurrence(torch.tensor([-1]), novelty=1)


def test_unknown_queries_and_an_empty_memory_are_none_of_these():
    unknown = torch.tensor([[math.nan, -math.inf], [-math.inf, -math.inf], [3.0, math.nan]])
    found = Calibration().posterior(unknown, torch.ones(2), 1.0)
    assert found.null[:2].tolist() == [1.0, 1.0]
    assert found.weight[:2].tolist() == [[0.0, 0.0]] * 2
    assert found.weight[2].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 0.0])
    empty = Calibration().posterior(torch.zeros(2, 0), Prior.recurrence(torch.zeros(0), 1.0))
    assert empty.null.tolist() == [1.0, 1.0] and empty.weight.shape == (2, 0)
    assert empty.ranked(3)[0].shape == (2, 0)
    never_met = Calibration().posterior(torch.tensor([[9.0]]), torch.zeros(1), 1.0)
    assert never_met.null.tolist() == [1.0]


def test_priors_that_are_none_are_refused():
    with pytest.raises(ValueError, match="null_prior"):
        Calibration().posterior(torch.zeros(1, 2), torch.ones(2))
    with pytest.raises(ValueError, match="must be > 0"):
        Calibration().posterior(torch.zeros(1, 2), torch.ones(2), 0.0)


_SCORES = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=0, max_size=6)


@settings(max_examples=60, deadline=None)
@given(_SCORES, st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_weights_are_finite_and_sum_to_one(scores: list[float], scale: float, offset: float):
    query = torch.tensor([scores, scores[::-1]])
    prior = Prior.recurrence(torch.arange(len(scores)), 0.5)
    found = Calibration(scale, offset).posterior(query, prior)
    assert torch.isfinite(found.weight).all() and torch.isfinite(found.null).all()
    torch.testing.assert_close(found.weight.sum(-1) + found.null, torch.ones(2).double())
    weight, rows = found.ranked(3)
    assert weight.shape == rows.shape == (2, min(3, len(scores)))


def gaussian_scores(tasks: int, seed: int) -> torch.Tensor:
    """A reading N(1, 1) where the tasks are the same, N(-1, 1) elsewhere: the log-ratio is 2 x."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tasks, tasks, dtype=torch.float64, generator=generator)
    return noise + 2 * torch.eye(tasks) - 1


def test_calibration_finds_the_true_log_ratio():
    scores = [gaussian_scores(200, seed) for seed in range(4)]
    found = Calibration.fit([3 * s + 5 for s in scores])  # true: 2 x = 2/3 (s - 5)
    assert found.scale == pytest.approx(2 / 3, rel=0.1)
    assert found.offset == pytest.approx(-10 / 3, abs=0.4)
    back = Calibration.from_state(found.state_dict())
    assert back == found


def test_a_calibrated_posterior_is_as_often_right_as_it_says():
    calibration = Calibration.fit([gaussian_scores(100, seed) for seed in range(4)])
    fresh, tasks = gaussian_scores(2000, seed=9)[:, :5], 5
    new = fresh[5:]  # never one of the five
    known = torch.cat([gaussian_scores(5, seed) for seed in range(10, 409)])
    truth = torch.cat([torch.arange(5).repeat(399), torch.full((len(new),), tasks)])
    found = calibration.posterior(torch.cat([known, new]), Prior.even(5, 0.5))
    assert posterior_error(found, truth) < 0.03
    boastful = calibration.posterior(torch.cat([known, new]) * 3, Prior.even(5, 0.5))
    assert posterior_error(boastful, truth) > 0.05


def test_tasks_that_are_one_task_are_left_out_together():
    # Two tasks, each four times among the training tasks, perfectly told apart.
    label = torch.tensor([0, 1] * 4)
    same = label[:, None] == label
    # Nothing known: its four rows of eight have a quarter; without them, none has a half.
    chance = log_loss(torch.zeros(1, 8, 8).double(), same)
    assert float(chance) == pytest.approx((math.log(4) + math.log(2)) / 2)
    scores = torch.where(same, 4.0, -4.0)
    knowing = Calibration.fit(scores, same)
    one_row = knowing.posterior(torch.tensor([[4.0], [-4.0]]), Prior.even(1, 0.5))
    assert float(one_row.null[0]) < 0.1 < 0.9 < float(one_row.null[1])
    unknowing = Calibration.fit(scores)
    doubtful = unknowing.posterior(torch.tensor([[4.0]]), Prior.even(1, 0.5))
    assert float(doubtful.null) > 0.3


def test_what_says_nothing_gets_no_confidence():
    scores = torch.zeros(20, 20)
    found = Calibration.fit(scores).posterior(scores, Prior.even(20, 0.5))
    assert found.null.tolist() == pytest.approx([0.5] * 20, abs=0.01)
    with pytest.raises(ValueError, match="M >= 2"):
        Calibration.fit(torch.zeros(3, 4))


def test_terms_that_say_more_weigh_more():
    generator = torch.Generator().manual_seed(1)
    noise = 5 * torch.randn(60, 60, dtype=torch.float64, generator=generator)
    weight, _ = fit_weights(torch.stack([gaussian_scores(60, 0), noise], -1)[None])
    assert float(weight[0]) > 20 * float(weight[1]) > 0
    assert loss_of_chance(16) == pytest.approx(math.log(2) + math.log(16) / 2)


def test_rates_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [-math.inf] * 3])
    own = torch.tensor([2, 0, 1])
    assert precision_at(scores, own, 1) == 0.0  # second best; a tie; unknown
    assert precision_at(scores, own, 2) == pytest.approx(2 / 3)
    assert precision_at(scores, own, 3) == pytest.approx(2 / 3)
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="both kinds"):
        auroc(torch.zeros(0), torch.zeros(2))
    confidence, correct = torch.tensor([0.95, 1.0, 0.42, 0.48]), torch.tensor([1, 0, 1, 0]).bool()
    # bin .9-1: |1.95 - 1|; bin .4-.5: |.9 - 1|
    assert calibration_error(confidence, correct) == pytest.approx((0.95 + 0.1) / 4)
    posterior = Posterior(
        torch.tensor([[0.7, 0.2], [0.1, 0.1]]).double(), torch.tensor([0.1, 0.8]).double()
    )
    answer, sure = chosen(posterior)
    assert answer.tolist() == [0, 2] and sure.tolist() == pytest.approx([0.7, 0.8])
    expected = (0.09 + 0.04 + 0.01 + 0.01 + 0.81 + 0.64) / 2
    assert brier(posterior, torch.tensor([0, 1])) == pytest.approx(expected)
