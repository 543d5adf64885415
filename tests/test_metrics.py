"""Every definition on lifetimes small enough to compute it by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agent.continual.life import Life, Recalled
from agent.continual.metrics import change, recall, retrieval, transfer
from agent.continual.metrics.catalog import HEADLINES, METRICS, RAW, measure, notes
from agent.continual.metrics.forgetting import cora_matrix
from agent.continual.metrics.metric import slope
from agent.continual.metrics.performance import coom_performance
from agent.continual.metrics.references import References
from agent.continual.metrics.scores import curve_of, normalise, scores_of
from tests.lives import make_episodes, make_life, make_references

NAN = math.nan


def measured(life: Life, references: dict[str, Life] | None = None) -> dict[str, float]:
    return measure(life, make_episodes(life), References(**(references or {})))


def flat(order: str, values: list[float], **more: Any) -> Life:
    """Visits whose curves are flat, on scores between 0 and 1."""
    matrix = {task: [0.0] * (len(order) + 1) for task in dict.fromkeys(order)}
    return make_life(order=order, matrix=matrix, curves=[[value] * 4 for value in values], **more)


# The areas of the lifetime on which reference/continual_rl.md, section 3 compares definitions.
AREAS, SCRATCH_AREAS = [0.931, 0.620, 0.853, 0.185], [0.931, 0.450, 0.781, 0.169]
ZOO = {
    "ft.auc_diff": 0.086,
    "ft.cw2021": 0.164,
    "ft.componet": 0.219,
    "ft.coom2023": 0.155,
    "ft.meal2026": 0.141,
    "ft.libero": 0.647,
}


def zoo(low: float = 0.0, high: float = 1.0) -> dict[str, float]:
    curves = [[low + (high - low) * area] * 4 for area in SCRATCH_AREAS]
    life = flat("ABCD", [low + (high - low) * area for area in AREAS])
    return measured(life, make_references(life, low, high, curves=curves))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-300.0, 900.0)])
def test_one_lifetime_has_as_many_forward_transfers_as_there_are_definitions(
    low: float, high: float
):
    found = zoo(low, high)
    assert {key: found[key] for key in ZOO} == pytest.approx(ZOO, abs=5e-4)
    # Of returns, only what needs no zero and no one has a number.
    assert found["ft.auc_diff.raw"] == pytest.approx((0.170 + 0.072 + 0.016) / 3 * (high - low))
    assert "ft.cw2021.raw" not in found


FORGOTTEN = {
    "A": [0.0, 0.75, 0.8, 0.1],
    "B": [0.0, 0.1, 0.6, 0.3],
    "C": [0.0, 0.0, 0.1, 0.9],
}


def test_one_lifetime_has_as_many_forgettings_as_there_are_definitions():
    life = make_life(order="ABC", matrix=FORGOTTEN, ends=[0.7, 0.6, 0.9])
    found = measured(life, make_references(life, 0, 1))
    expected = {
        "forget.end": (0.6 + 0.3) / 2,
        "forget.peak": (0.7 + 0.3) / 2,
        "forget.cora": (-0.05 + 0.7 + 0.3) / 3,
        "forget.cw2021": (0.6 + 0.3 + 0) / 3,
        "forget.coom2023": (0.6 + 0.3) / 2,
        "forget.libero": ((-0.1 + 0.6) / 2 + 0.3 + 0) / 3,
        "bwt": -(0.6 + 0.3) / 2,
        "ap.final": (0.1 + 0.3 + 0.9) / 3,
        "ap.anytime": (0.75 + (0.8 + 0.6) / 2 + (0.1 + 0.3 + 0.9) / 3) / 3,
        "ap.worst": 0.1,
        "ap.coom2023": (0.75 + 0.8 + 0.6 + 0.1 + 0.3 + 0.9) / 6,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    raw = {key + RAW: value for key, value in expected.items()}
    assert {key: found[key] for key in raw} == pytest.approx(raw)
    matrix = cora_matrix(scores_of(life))
    absent = np.isnan(matrix)
    assert absent.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert matrix[~absent] == pytest.approx([-0.05, 0.7, 0.3])


def test_a_task_that_comes_back_is_forgotten_from_its_last_visit_or_as_often_as_it_was_learned():
    matrix = {"A": [0.0, 0.8, 0.4, 1.0, 0.5], "B": [0.0, 0.0, 0.6, 0.2, 0.8]}
    found = measured(make_life(order="ABAB", matrix=matrix))
    assert found["forget.end.raw"] == pytest.approx(1.0 - 0.5)  # B was last
    assert found["forget.coom2023.raw"] == pytest.approx((0.3 - 0.2 + 0.5) / 3)
    assert found["forget.cw2021.raw"] == pytest.approx((0.3 - 0.2 + 0.5 + 0) / 4)
    assert found["forget.peak.raw"] == pytest.approx(1.0 - 0.5)
    # Two visits to B hurt A, one to A hurts B: the mean is over pairs of tasks.
    assert found["forget.cora.raw"] == pytest.approx(((0.4 + 0.5) / 2 + 0.4) / 2)
    libero = [(0.4 - 0.2 + 0.3) / 3, (0.4 - 0.2) / 2, 0.5, 0]
    assert found["forget.libero.raw"] == pytest.approx(sum(libero) / 4)


def test_what_is_thrown_away_right_after_a_visit_is_forgotten():
    life = make_life(order="AB", matrix={"A": [0, 0, 0], "B": [0, 0, 0]}, ends=[100, 100])
    assert measured(life)["forget.end.raw"] == 100


def test_the_peak_is_not_taken_from_the_last_checkpoint():
    life = make_life(order="AB", matrix={"A": [0.0, 0.5, 0.9], "B": [0.0, 0.0, 1.0]})
    found = measured(life)
    assert found["forget.peak.raw"] == pytest.approx(-0.4)
    assert found["bwt.raw"] == pytest.approx(0.4)


def test_zeros_count_where_the_published_code_drops_them():
    life = make_life(order="AB", matrix={"A": [0.0, 0.75, 0.0], "B": [0.0, 0.0, 0.5]})
    assert measured(life)["ap.coom2023.raw"] == pytest.approx(0.417, abs=5e-4)
    assert coom_performance([0.75, 0.0, 0.5], as_published=True) == pytest.approx(0.625)
    assert measured(life)["forget.end.raw"] == 0.75


@pytest.mark.parametrize("order", ["ABAB", "ABCABC", "AABB"])
def test_an_agent_that_isolates_forgets_exactly_nothing(order: str):
    matrix = {}
    for n, task in enumerate(dict.fromkeys(order)):
        first = order.index(task)
        matrix[task] = [-5.3] * (first + 1) + [17.1 + n / 3] * (len(order) - first)
    life = make_life(order=order, matrix=matrix)
    found = measured(life, make_references(life, -7, 31))
    for key in METRICS:
        if key.startswith("forget.") or key.startswith("regret"):
            assert found[key] == 0 or (key.startswith("regret") and math.isnan(found[key])), key


# A learns from 0 to 10 in ten episodes and B from 20 to 40; both come back half forgotten.
CURVES = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10],
    [20, 22, 24, 26, 28, 30, 32, 34, 36, 40],
    [5, 8, 9.1, 9.6, 10, 10, 10, 10, 10, 10],
    [30, 30, 30, 30, 30, 30, 30, 30, 30, 30],
]
BACK = {"A": [0, 10, 4, 10, 10], "B": [18, 20, 40, 34, 30]}


def back(**more: Any) -> Life:
    return make_life(order="ABAB", curves=CURVES, matrix=BACK, batch=1, **more)


def test_what_a_revisit_finds_is_measured_from_where_the_first_visit_began():
    found = measured(back())
    # A: from 0 to 10, found at 4. B: from 20 to 40, found at 34.
    assert found["recall.0.raw"] == pytest.approx((4 + 14) / (10 + 20))
    assert found["recall.1.raw"] == pytest.approx((8 + 10) / (10 + 20))
    assert found["recall.5.raw"] == pytest.approx((10 + 10) / (10 + 20))
    assert math.isnan(found["recall.10.raw"])  # the visits have ten episodes: 0 to 9
    assert math.isnan(found["recall.0"])  # there is no random agent


def test_what_a_revisit_finds_is_measured_from_the_random_agent_where_there_is_one():
    life = back()
    found = measured(life, make_references(life, -10, 90))
    assert found["recall.0"] == pytest.approx((0.14 + 0.44) / (0.2 + 0.5))
    assert found["kshot.1.first"] == pytest.approx((0.11 + 0.32) / 2)
    assert found["kshot.5.revisit.raw"] == pytest.approx((10 + 30) / 2)


def test_savings_and_latency_are_in_episodes():
    found = measured(back())
    # To 90 %: A in 9 and then 1.. (9.1 is the first of at least 9); B in 9 and then never: 10.
    assert found["recall.savings"] == pytest.approx(1 - (2 + 10) / (9 + 9))
    # To 95 %: A at its fourth episode; B never, which counts as all ten.
    assert found["recall.latency"] == pytest.approx((3 + 10) / 2)


def test_recalling_at_once_saves_everything_and_learning_anew_nothing():
    at_once = measured(make_life(matrix={"A": [0, 9, 9, 9, 9], "B": [0, 0, 9, 9, 9]}))
    assert at_once["recall.savings"] == at_once["recall.0.raw"] == 1
    assert at_once["recall.latency"] == 0
    anew = measured(make_life(matrix={"A": [0, 0, 0, 0, 0], "B": [0] * 5}, ends=[9, 9, 9, 9]))
    assert anew["recall.savings"] == anew["recall.0.raw"] == 0


def test_a_visit_that_learned_nothing_leaves_nothing_to_recall():
    matrix = {"A": [5, 5, 7, 7, 7], "B": [0, 0, 10, 6, 10]}
    found = measured(make_life(matrix=matrix))
    assert found["recall.0.raw"] == pytest.approx(0.6)  # of B alone
    # A's first curve does not rise: no criterion. B is back within its first batch at 60 %.
    assert found["recall.savings"] == pytest.approx(1 - 15 / 20)
    only = measured(make_life(order="AA", matrix={"A": [5, 5, 5]}))
    assert [only[k] for k in ("recall.0.raw", "recall.savings", "recall.latency")] == [
        pytest.approx(NAN, nan_ok=True)
    ] * 3


def test_what_is_recalled_is_what_the_last_visit_led_to_and_relearning_is_against_the_first():
    curves = [[0, 2, 4, 6, 8], [9, 9, 9, 14, 20], [15, 16, 17, 20, 20]]
    found = measured(
        make_life(
            order="AAA",
            curves=curves,
            matrix={"A": [0, 9, 15, 0]},
            ends=[10, 30, 20],
            batch=1,
            recalled={2: {"rows": 1}},
        )
    )
    assert found["recall.0.raw"] == pytest.approx((9 + 15) / (10 + 30))
    assert found["regret.raw"] == pytest.approx(30 - 15)
    assert found["recall.savings"] == 1  # 90 % of 8 is there from the start, both times
    assert found["recall.latency"] == pytest.approx((0 + 3) / 2)  # 95 % of 8, then of 20


def test_the_slope_is_least_squares():
    points = [(0.0, -3.0), (1.0, 1.0), (4.0, -2.0)]
    assert slope(points) == pytest.approx(np.polyfit([0, 1, 4], [-3, 1, -2], 1)[0])
    assert math.isnan(slope(points[:1]))
    assert math.isnan(slope([(1, 2), (1, 3)]))
    assert math.isnan(slope([]))


def test_the_forgetting_curve_over_gaps():
    order = "ABABBA"
    matrix = {"A": [0, 10, 8, 10, 9, 6, 10], "B": [0, 0, 10, 10, 10, 10, 10]}
    life = make_life(order=order, matrix=matrix)
    points = recall.gap_points(scores_of(life))
    assert points == [(1, 0.8), (1, 1.0), (0, 1.0), (2, pytest.approx(0.6))]
    expected = np.polyfit([1, 1, 0, 2], [0.8, 1.0, 1.0, 0.6], 1)[0]
    assert measured(life)["recall.gap.raw"] == pytest.approx(expected)


def test_faster_than_scratch():
    rising = [n / 10 for n in range(10)]
    scratch = [rising, rising, [0] * 10, rising]
    life = make_life(
        order="ABCA",
        curves=[[1] * 10, [0.5] + [0.9] * 9, [1] * 10, [1] * 10],
        matrix={task: [0] * 5 for task in "ABC"},
        batch=1,
    )
    references = make_references(life, 0, 1, curves=scratch, batch=1)
    # Of the later first visits, scratch rises in B alone: to .81 in nine episodes, not in one.
    assert measured(life, references)["ft.steps_to_threshold"] == pytest.approx(1 / 9)


def test_jump_start_on_new_tasks():
    matrix = {"A": [0, 9, 9], "B": [2, 5, 9], "H": [1, NAN, 4]}
    life = make_life(order="AB", matrix=matrix, held_out="H")
    references = make_references(life, 0, 10, matrix={"A": [0, 0, 0], "B": [0, 1, 0]})
    found = measured(life, references)
    assert found["zs"] == pytest.approx(0.3)
    assert found["zs.scratch.raw"] == pytest.approx(4)
    assert found["zs.held_out.raw"] == pytest.approx(3)
    assert found["ap.held_out"] == pytest.approx(0.4)
    assert found["ap.final.raw"] == pytest.approx(9)  # held-out tasks are not in it


def test_adding_a_constant_to_all_returns_changes_no_normalised_metric():
    def run(shift: float, scale: float) -> dict[str, float]:
        matrix = {t: [shift + scale * r for r in row] for t, row in BACK.items()}
        curves = [[shift + scale * r for r in curve] for curve in CURVES]
        life = make_life(order="ABAB", curves=curves, matrix=matrix, batch=1)
        slow = [[shift + scale * (r - 1) for r in curve] for curve in CURVES]
        bounds = shift - 10 * scale, shift + 90 * scale
        return measured(life, make_references(life, *bounds, curves=slow, batch=1))

    one, other, scaled = run(0, 1), run(-1000, 1), run(-1000, 8)
    raw = {key for key in METRICS if METRICS[key].unit in ("return", "return/visit")}
    assert len([key for key in METRICS if key not in raw and not math.isnan(one[key])]) > 40
    for key in METRICS:
        if key not in raw:
            assert other[key] == pytest.approx(one[key], nan_ok=True), key
            assert scaled[key] == pytest.approx(one[key], nan_ok=True), key
    assert other["forget.end.raw"] == pytest.approx(one["forget.end.raw"])
    assert other["ap.final.raw"] == pytest.approx(one["ap.final.raw"] - 1000)
    assert scaled["ft.auc_diff.raw"] == pytest.approx(8 * one["ft.auc_diff.raw"])


def test_online_counts_every_episode_once():
    life = make_life(order="A", curves=[[2, 4]], batch=2, probes=1, matrix={"A": [0, 5]})
    lines = make_episodes(life)
    for n, value in enumerate([-3.0, 1, 3, 4, 4]):
        lines[n].value = value
    curve = curve_of(life.visits[0], lines)
    assert curve.tolist() == [-3, 2, 2, 4, 4]  # the probe is its own batch
    lines[2].diverged = True
    lines[0].diverged = True
    curve = curve_of(life.visits[0], lines[::-1])
    assert curve[1:].tolist() == [1, 1, 4, 4]
    assert math.isnan(curve[0])
    found = measure(life, lines, References())
    assert found["online.raw"] == pytest.approx(10 / 4)
    assert found["diverged"] == pytest.approx(2 / 5)
    assert curve_of(life.visits[0], []).tolist() == [2, 2, 2, 4, 4]


def test_the_end_of_a_curve_is_its_last_tenth():
    life = make_life(order="A", curves=[[*range(30)]], batch=1, matrix={"A": [0, 0]})
    assert scores_of(life).visits[0].tail == pytest.approx((27 + 28 + 29) / 3)


def test_starts_and_ends_of_first_visits_and_revisits_are_returns():
    life = back(ends=[11, 41, 12, 32])
    found = measured(life, make_references(life, 0, 50))
    assert found["first.start"] == pytest.approx((0 + 20) / 2)
    assert found["first.end"] == pytest.approx((11 + 41) / 2)
    assert found["revisit.start"] == pytest.approx((4 + 34) / 2)
    assert found["revisit.end"] == pytest.approx((12 + 32) / 2)


def test_a_number_that_is_missing_is_never_left_out_of_a_mean():
    holes = {"A": [0, 10, 8, 10, NAN], "B": [0, 0, 10, 9, 10]}
    found = measured(make_life(matrix=holes))
    for key in ("ap.final", "ap.worst", "ap.anytime", "ap.coom2023", "forget.end", "forget.cora"):
        assert math.isnan(found[key + RAW]), key
    assert found["recall.0.raw"] == pytest.approx(17 / 20)
    found = measured(make_life(matrix={"A": [0, 10, NAN, 10, 9], "B": holes["B"]}))
    assert math.isnan(found["recall.0.raw"])
    assert math.isnan(measured(make_life(ends=[10, NAN, 10, 10]))["recall.0.raw"])


def test_an_episode_that_diverged_is_left_out_of_its_evaluation():
    life = make_life(order="A", matrix={"A": [0, 10]}, spread=2)
    last = next(e for e in life.evaluations if e.checkpoint == 1)
    last.returns = [NAN, 12]
    assert measured(life)["ap.final.raw"] == 12
    last.returns = [NAN, NAN]
    assert math.isnan(measured(life)["ap.final.raw"])


def test_without_references_there_are_returns_and_a_reason():
    life = make_life()
    found = measured(life)
    assert math.isnan(found["ap.final"])
    assert found["ap.final.raw"] == 95
    said = " / ".join(notes(life, References()))
    assert all(kind in said for kind in ("random", "scratch", "expert"))
    full = make_references(life)
    lacking = {kind: made for kind, made in full.items() if kind != "expert"}
    found = measured(life, lacking)
    assert math.isnan(found["ap.final"])
    assert not math.isnan(found["ft.auc_diff.raw"])
    assert "expert" in " / ".join(notes(life, References(**lacking)))


def test_an_expert_that_is_no_better_than_chance_makes_scores_nan_and_says_so():
    life = make_life()
    full = make_references(life, 5, 100)
    full["expert"].visits[1].end = [5.0, 5.0]  # of task B
    assert math.isnan(measured(life, full)["ap.final"])
    said = notes(life, References(**full))
    assert len(said) == 1
    assert "task B" in said[0]
    low, high, _ = References(**full).bounds(life)
    row = normalise(scores_of(life), low, high).matrix
    assert np.isfinite(row["A"]).all()
    assert np.isnan(row["B"]).all()


def test_the_random_agent_is_what_it_was_at_the_start():
    life = make_life()
    full = make_references(life, 20, 100)
    for entry in full["random"].evaluations:
        if entry.checkpoint:
            entry.returns = [90.0, 90.0]
    assert measured(life, full)["ap.final"] == pytest.approx((95 - 20) / 80)


def test_a_reference_that_crashed_is_no_reference():
    life = make_life()
    full = make_references(life)
    full["random"].status = "crashed"
    assert math.isnan(measured(life, full)["ap.final"])
    assert "random" in notes(life, References(**full))[0]


def test_references_are_matched_by_what_the_task_is_not_by_its_name():
    life = make_life()
    full = make_references(life)
    expert = full["expert"]
    tasks = expert.protocol.tasks
    full["expert"].visits[0].end = [200.0, 200.0]  # of A
    usual = measured(life, full)["ap.final"]
    tasks["A"], tasks["B"] = tasks["B"], tasks["A"]
    swapped = References(**full).bounds(life)[1]
    assert swapped == {"A": 100, "B": 200}
    assert measured(life, full)["ap.final"] != usual


def test_scratch_on_another_schedule_is_no_reference():
    life = make_life()
    full = make_references(life)
    full["scratch"].protocol.schedule[2].episodes += 1
    assert math.isnan(measured(life, full)["ft.auc_diff"])
    assert "schedule" in notes(life, References(**full))[0]


def test_transfer_divided_by_next_to_nothing_is_doubted():
    life = flat("AB", [0.5, 0.99])
    good = make_references(life, 0, 1, curves=[[0.2] * 4, [0.95] * 4])
    said = notes(life, References(**good))
    assert len(said) == 1
    assert "ft.cw2021" in said[0]
    assert "task B" in said[0]


@pytest.mark.parametrize(
    ("life", "why"),
    [
        (make_life(status="crashed"), "ZeroDivisionError"),
        (make_life(status="stopped"), "3 of 4"),
        (make_life(deviations=["visit 2: 4 episodes, declared 25"]), "visit 2"),
    ],
)
def test_a_lifetime_that_was_not_lived_as_declared_has_no_numbers(life: Life, why: str):
    found = measured(life, make_references(make_life()))
    assert set(found) == set(METRICS)
    assert all(math.isnan(value) for value in found.values())
    assert why in notes(life, References())[0]


def test_steps_of_a_drift_are_lived_and_not_scored():
    matrix = {"A": [0, 10, NAN, 8], "B": [0, 0, 0, 5], "x": [NAN] * 4}
    life = make_life(order="AxB", matrix=matrix, drifting=[1], ends=[10, 3, 5], batch=1)
    scores = scores_of(life)
    assert [visit.number for visit in scores.visits] == [0, 2]
    found = measured(life, make_references(life, 0, 10))
    assert found["ap.final"] == pytest.approx(0.65)
    assert found["ap.anytime"] == pytest.approx((1 + 0.65) / 2)
    assert found["forget.libero"] == pytest.approx(0.1)
    assert found["env_steps.total"] == 3 * 5 * 100
    only = make_life(order="xy", drifting=[0, 1], matrix={"x": [0] * 3, "y": [0] * 3})
    assert math.isnan(measured(only)["ap.final.raw"])
    assert measured(only)["env_steps.total"] == 2 * 25 * 100


def test_an_evaluation_of_nothing_that_was_declared_is_named():
    life = make_life()
    life.evaluations[0].task = "Z"
    with pytest.raises(ValueError, match=r"engram-0: task 'Z'.*\['A', 'B'\]"):
        scores_of(life)


def believed(weights: dict[str, float], null: float) -> dict[str, Any]:
    return {"weights": weights, "null": null, "ranked": list(weights), "rows": 3}


def test_whether_the_memory_knew():
    recalled = {
        0: {"rows": 0},  # nothing to ask
        1: believed({"A": 0.3}, 0.7),  # B is new, and known as new
        2: believed({"B": 0.2, "A": 0.5, "C": 0.1}, 0.2),  # A, found
        3: believed({"A": 0.5, "B": 0.3}, 0.2),  # C is new, taken for A
        4: believed({"A": 0.4, "C": 0.3, "B": 0.05}, 0.25),
        5: believed({"A": 1.0}, 0.0),  # C, of which nothing is left
    }
    found = measured(make_life(order="ABACBC", recalled=recalled))
    assert found["p_at_1"] == pytest.approx(2 / 5)
    assert found["p_at_1.first"] == pytest.approx(1 / 2)
    assert found["p_at_1.revisit"] == pytest.approx(1 / 3)
    assert found["p_at_3"] == pytest.approx(1 / 3)  # B is fourth, after none
    assert found["p_at_5"] == pytest.approx(2 / 3)
    assert found["mrr"] == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert found["weight_on_true"] == pytest.approx((0.5 + 0.05 + 0) / 3)
    assert found["null_on_new"] == pytest.approx((0.7 + 0.2) / 2)


@pytest.mark.parametrize(
    ("recalled", "expected"),
    [
        ({"row": 4, "of_task": "A"}, ["A"]),
        ({"row": None}, [None]),
        ({"ranked": ["B", "A", "B"]}, ["B", "A"]),
        ({"weights": {"A": 0.5, "B": 0.5}, "ranked": ["B", "A"], "null": 0.0}, ["B", "A"]),
        ({"weights": {"A": 0.5}, "null": 0.5}, ["A", None]),
        ({"weights": {"A": 0.0}, "null": 1.0}, [None]),
    ],
)
def test_answers_of_memories_that_say_less(recalled: dict[str, Any], expected: list[str | None]):
    assert retrieval.answers(Recalled.model_validate(recalled)) == expected


def test_regret_is_what_bringing_back_its_own_policy_would_have_added():
    recalled = {2: {"rows": 2}}
    found = measured(back(recalled=recalled))
    assert found["regret.raw"] == pytest.approx(10 - 4)
    assert math.isnan(measured(back())["regret.raw"])


def test_harm_is_worse_than_scratch_by_more_than_chance():
    recalled = {v: {"rows": 1} for v in (1, 2, 3)}
    matrix = {"A": [0, 9, 4, 9, 9], "B": [0, 3, 9, 9, 5]}
    life = make_life(matrix=matrix, recalled=recalled)
    starts = {"A": [0, 0, 6, 0, 0], "B": [0, 3, 0, 7, 0]}
    # Both episodes alike: B equal, A worse by 2 both times, B better.
    same = make_references(life, 0, 9, matrix=starts)
    assert measured(life, same)["harm"] == pytest.approx(1 / 3)
    # Worse by 2 on average, but by 6 and then better by 2: a standard error of 4.
    apart = make_references(life, 0, 9, matrix=starts, spread=4)
    assert measured(life, apart)["harm"] == 0
    for entry in same["scratch"].evaluations:
        entry.returns = entry.returns[:1]
    assert math.isnan(measured(life, same)["harm"])


def hidden(order: str, detected: list[int], **more: Any) -> Life:
    return make_life(
        order=order, told={"boundary": False}, knew={"boundary": False}, detected=detected, **more
    )


def test_changes_that_are_noticed_missed_and_imagined():
    # 25 episodes a visit: changes after 25, 75 and 100; at 50 the task stays.
    life = hidden("ABBAC", [10, 25, 28, 30, 101])
    assert change.changes(life) == [25, 75, 100]
    assert change.delays(life) == [3, None, 1]
    found = measured(life)
    assert found["change.delay"] == pytest.approx(2)
    assert found["change.misses"] == pytest.approx(1 / 3)
    # At 10 and at 25 nothing had changed yet, at 30 it was known: 3 in 12,500 steps.
    assert found["change.false_alarms"] == pytest.approx(3 / 1.25)
    silent = measured(hidden("AB", []))
    assert silent["change.misses"] == 1
    assert silent["change.false_alarms"] == 0
    assert math.isnan(silent["change.delay"])
    assert change.delays(hidden("ABA", [50])) == [25, None]  # after the last episode of B
    for told, knew in ((True, False), (False, True)):
        life = make_life(told={"boundary": told}, knew={"boundary": knew}, detected=[30])
        assert math.isnan(measured(life)["change.misses"])


def test_a_drift_is_one_change_from_its_first_step_on():
    life = hidden("AxyBA", [60], drifting=[1, 2])
    assert change.changes(life) == [25, 100]
    assert change.delays(life) == [35, None]


def test_what_the_task_was_taken_for():
    inferred = [0] * 25 + [1] * 20 + [0] * 5
    found = measured(hidden("AB", [], inferred=inferred))
    assert found["change.purity"] == pytest.approx(45 / 50)
    # Pairs together: 300 + 190 + 10 in both; 435 + 190 inferred, 300 + 300 true, of 1225.
    chance = 625 * 600 / 1225
    assert found["change.ari"] == pytest.approx((500 - chance) / ((625 + 600) / 2 - chance))
    assert math.isnan(measured(hidden("AB", [], inferred=inferred[:-1]))["change.purity"])
    drift = measured(hidden("AxB", [], drifting=[1], inferred=[0] * 25 + [7] * 25 + [0] * 25))
    assert drift["change.purity"] == pytest.approx(0.5)


def test_the_adjusted_rand_index_is_the_textbook_one():
    assert change.adjusted_rand_index([0, 0, 1, 2], [0, 0, 1, 1]) == pytest.approx(4 / 7)
    assert change.adjusted_rand_index("aabb", [1, 1, 0, 0]) == 1
    assert change.adjusted_rand_index("aaaa", [1, 1, 1, 1]) == 1
    assert change.adjusted_rand_index("abab", "aabb") == pytest.approx(-0.5)


def test_plasticity_is_the_slope_against_scratch():
    life = flat("ABC", [0.9, 0.6, 0.5])
    found = measured(life, make_references(life, 0, 1, curves=[[0.5] * 4, [0.4] * 4, [0.3] * 4]))
    assert found["plasticity.auc"] == pytest.approx((0.2 - 0.4) / 2)
    life = make_life(visits={"plasticity": {"dormant": 0.25}})
    life.visits[3].plasticity["dormant"] = 0.75
    assert measured(life)["plasticity.dormant"] == pytest.approx(0.375)
    assert math.isnan(measured(life)["plasticity.saturated"])


def test_what_it_cost():
    recalled = {2: {"rows": 1}, 3: {"rows": 2}}
    facts = {
        "act_ms": {"p50": 1.0, "p95": 4.0},
        "state_bytes": {"policy": 100, "memory": 30, "key": 2, "draws": 5},
        "written": {"rows": 6},
    }
    life = make_life(probes=5, visits=facts, recalled=recalled, evaluation_env_steps=600)
    for visit, begin_s in zip(life.visits, [9.0, 9.0, 0.1, 0.3], strict=True):
        visit.begin_s = begin_s
    life.visits[0].state_bytes = {"policy": 1}
    life.visits[1].act_ms = {"p50": 3.0, "p95": 4.0}
    found = measured(life)
    expected = {
        "bytes.total": 137,
        "bytes.policy": 100,
        "bytes.memory": 30,
        "bytes.other": 7,
        "peak_memory_mib": 200,
        "env_steps.total": 12000,
        "env_steps.probe": 2000,
        "env_steps.trial": 0,
        "env_steps.learn": 10000,
        "seconds": 8,
        "cpu_seconds": 12,
        "act_p50_ms": 1.5,
        "act_p95_ms": 4,
        "recall_s": 0.2,
        "evaluation.env_steps": 0.05,
        "evaluation.seconds": 0.05,
        "rows_per_task": 3,
        "diverged": 0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_the_catalog_says_what_everything_is():
    found = measured(make_life())
    assert set(found) == set(METRICS)
    for key, metric in METRICS.items():
        assert metric.id == key
        assert metric.what.endswith((".", "change.ari."))
        assert metric.unit
    assert HEADLINES[:3] == ["ap.final", "forget.end", "ft.auc_diff"]
    assert {"recall.0", "recall.savings", "p_at_1"} <= set(HEADLINES)
    assert all(not METRICS[key].id.endswith(RAW) for key in HEADLINES)
    assert METRICS["recall.0.raw"].unit == "ratio"
    assert METRICS["plasticity.auc.raw"].unit == "return/visit"
    issue = """ap.final ap.anytime ap.worst online forget.end forget.peak forget.cora forget.cw2021
        forget.coom2023 forget.libero bwt ft.auc_diff ft.cw2021 ft.componet ft.steps_to_threshold zs
        recall.0 recall.savings recall.latency recall.gap p_at_1 mrr regret harm weight_on_true"""
    assert set(issue.split()) <= set(METRICS)


def test_a_criterion_needs_a_curve_that_rises():
    life = make_life(order="A", curves=[[3, 2, 1]], matrix={"A": [0, 0]})
    assert math.isnan(transfer.criterion(scores_of(life).visits[0]))
    for point in life.visits[0].curve:
        point.value = 2
    assert math.isnan(transfer.criterion(scores_of(life).visits[0]))
    life.visits[0].curve = []
    assert math.isnan(transfer.criterion(scores_of(life).visits[0]))
