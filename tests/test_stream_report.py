"""The part of the report about lifetimes: its numbers and the data of its figures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D

from agent.continual.life import Life
from agent.continual.results import Results, read_results
from agent.report.stream import (
    comparison,
    costs,
    detection,
    limits,
    matrix,
    noted,
    protocol,
    recall,
    retrieval,
    section,
    tables,
    timeline,
)
from agent.report.stream.data import View, mean_matrix, task_names, view_of
from agent.report.stream.estimates import difference, score
from tests.lives import make_life, make_matrix, make_references, write_run

ABAB = {"A": [0, 80, 70, 75, 60], "B": [0, 0, 90, 50, 95]}
"""R by task: after the last checkpoint, 60 and 95."""


def results_of(run: Path, lives: list[Life], references: bool = False) -> Results:
    found = [make_references(life) for life in lives] if references else []
    return read_results(write_run(run, lives, found))


def view(run: Path, *lives: Life, references: bool = False) -> View:
    return view_of(results_of(run, list(lives), references))


def scored(agent: str, *finals: float, **changes: Any) -> list[Life]:
    """A lifetime per final return of task A, which is all that there is; seeds count up."""
    matrices = [{"A": [0.0, 50.0, final]} for final in finals]
    return [make_life(agent, s, "AA", matrix=m, **changes) for s, m in enumerate(matrices)]


def points(line: Line2D) -> list[list[float]]:
    """Those that the line goes through."""
    return np.transpose(np.array(line.get_data(), float)).tolist()


def line(axes: Axes, label: str) -> list[list[float]]:
    """Both coordinates of the line that the legend calls so."""
    (found,) = (each for each in axes.lines if each.get_label() == label)
    return [np.asarray(values).tolist() for values in found.get_data()]


def test_agents_stand_in_the_order_of_the_first_headline_metric(tmp_path: Path):
    lives = [*scored("b", 10.0), *scored("a", 10.0), *scored("best", 30.0), *scored("engram", 20.0)]
    broken = make_life("broken", 0, "AA", matrix={"A": [0, 1, 2]}, status="crashed")
    seen = view(tmp_path, *lives, broken)
    assert seen.agents == ["best", "engram", "a", "b", "broken"]
    assert seen.primary == "engram" and seen.drawn == ["engram", "best", "a", "b", "broken"]
    assert "ap.final.raw" in seen.headline and "ap.final" not in seen.headline


def test_with_references_scores_are_normalised(tmp_path: Path):
    seen = view(tmp_path, make_life(matrix=ABAB), references=True)
    assert seen.headline[0] == "ap.final"
    assert score(seen, "ap.final", "engram").estimate.mean == pytest.approx(0.775)


def test_few_agents_are_drawn_and_all_are_in_tables_and_matrices(tmp_path: Path):
    names = [f"agent{i:02d}" for i in range(18)] + ["scratch", "finetune"]
    lives = [life for i, name in enumerate(names) for life in scored(name, 50.0 - i)]
    seen = view(tmp_path, *lives)
    assert seen.primary == "agent00"  # there is no engram: the best one
    drawn = ["agent00", "agent01", "agent02", "agent03", "scratch", "finetune"]
    assert seen.drawn == drawn
    looks = {
        (look.colour, str(look.line), look.marker) for look in map(seen.looks.get, drawn) if look
    }
    assert len(looks) == len({look[0] for look in looks}) == len({look[1] for look in looks}) == 6
    assert seen.looks["agent09"].colour not in {look[0] for look in looks}
    panels = [axes for axes in matrix.return_matrices(seen).axes if axes.images]
    assert [axes.get_title("left") for axes in panels] == seen.agents
    dots = comparison.dots(seen)
    assert dots and [text.get_text() for text in dots.axes[0].get_yticklabels()] == seen.agents
    assert len(timeline.timeline(seen).axes) == 6
    assert [row.agent for row in tables.headline_rows(seen)] == seen.agents


def test_headline_cells_are_means_with_students_interval(tmp_path: Path):
    seen = view(tmp_path, *scored("engram", 10.0, 20.0), *scored("zeta", 30.0, 40.0))
    zeta, engram = tables.headline_rows(seen)
    # t(.975, 1) = 12.706; the standard error of 10 and 20 is 5.
    cell = engram.cells[seen.headline.index("ap.final.raw")]
    minus = "\N{MINUS SIGN}"
    assert (cell.text, cell.small, cell.best) == ("15.0", f"[{minus}48.5, 78.5]", False)
    assert zeta.cells[seen.headline.index("ap.final.raw")].best
    assert (engram.done, engram.failed, engram.number) == (2, 0, 2)
    assert tables.notes(seen) == ["smoke, no claim"]


def test_agents_that_were_told_the_task_are_marked_and_never_the_best(tmp_path: Path):
    told = scored("oracle_library", 99.0, knew={"task": True, "boundary": True})
    lives = [*told, *scored("random", 98.0), *scored("a", 1.0), *scored("b", 2.0)]
    results = results_of(tmp_path, lives)
    seen, column = view_of(results), view_of(results).headline.index("ap.final.raw")
    best = [row.agent for row in tables.headline_rows(seen) if row.cells[column].best]
    assert best == ["b"] and seen.label("oracle_library") == "oracle_library †"
    assert "also told the task id: oracle_library" in dict(protocol.box(seen))["agents knew"]
    assert any(text.endswith("others: oracle_library.") for text in limits.limits(seen))
    (axes, *_) = dots.axes if (dots := comparison.dots(seen)) else []
    assert [point.get_markerfacecolor() == "white" for point in axes.lines] == [True, *[False] * 3]


def test_a_crashed_lifetime_is_a_row_and_said_to_be_one(tmp_path: Path):
    crashed = make_life("engram", 2, "AA", matrix={"A": [0, 9, 9]}, status="crashed")
    seen = view(tmp_path, *scored("engram", 10.0, 20.0), crashed)
    (row,) = tables.headline_rows(seen)
    cell = row.cells[seen.headline.index("ap.final.raw")]
    assert (row.done, row.failed) == (2, 1)
    assert (cell.text, cell.small, cell.sort) == ("n/a", "15.0 in 2 of 3", "")
    said = "engram, seed 2 crashed after 1 of 2 visits: ZeroDivisionError: at x.py line 1."
    assert limits.limits(seen)[0] == said
    (axes, *_) = dots.axes if (dots := comparison.dots(seen)) else []
    assert [(each.get_marker(), points(each)[0][0]) for each in axes.lines] == [("x", 15.0)]


def test_a_crashed_lifetime_scores_as_a_random_agent_if_there_is_one(tmp_path: Path):
    crashed = make_life("engram", 2, "AA", matrix={"A": [0, 9, 9]}, status="crashed")
    lives = [*scored("engram", 10.0, 20.0), crashed, *scored("random", 0.0, 0.0, 3.0)]
    assert score(view(tmp_path, *lives), "ap.final.raw", "engram").estimate.mean == 11.0


def test_the_timeline_shows_means_starts_and_the_scratch_reference(tmp_path: Path):
    curves_of = [[[0.0, 10.0], [20.0, 30.0]], [[10.0, 30.0], [20.0, 50.0]]]
    lives = [
        make_life(seed=s, order="AB", matrix={"A": [4 + s, 80, 1], "B": [0, 0, 9]}, curves=c)
        for s, c in enumerate(curves_of)
    ]
    scratch = {"curves": [[3.0, 3.0], [30.0, 30.0]], "batch": 5}
    found = [make_references(life, **scratch) for life in lives]
    seen = view_of(read_results(write_run(tmp_path, lives, found)))
    (axes,) = timeline.timeline(seen).axes
    data = [points(each) for each in axes.lines]
    for expected in (
        [[5, 5], [10, 20]],  # the mean of the two lifetimes in the first visit
        [[15, 20], [20, 40]],  # and in the second, which begins after ten episodes
        [[5, 3], [10, 3]],
        [[15, 30], [20, 30]],
        [[0, 4.5]],  # R before the first visit
        [[10, 0]],
    ):
        assert expected in data
    shapes = [c for c in axes.collections if isinstance(c, PolyCollection)]
    gained, lost = (
        [s for s in shapes if (s.get_hatch() == "/////") == is_lost] for is_lost in (0, 1)
    )
    # The second visit starts 10 below the reference and crosses it half-way.
    (crossing,) = (s for s in lost if len(s.get_paths()))
    x = np.concatenate([p.vertices for p in crossing.get_paths()])[:, 0]
    assert (x.min(), x.max()) == (15, 17.5)
    bands = [np.concatenate([p.vertices for p in s.get_paths()]) for s in gained if s.get_paths()]
    assert any(b[:, 1].min() == 0 and b[:, 1].max() == 30 and b[:, 0].max() == 10 for b in bands)


def test_visits_are_matched_by_order_and_recall_by_task(tmp_path: Path):
    one, two = make_life(seed=0, order="ABAB"), make_life(seed=1, order="BABA")
    results = results_of(tmp_path, [one, two])
    seen = view_of(results)
    assert seen.in_order(results.lives) == [results.lives[0]]
    assert [len(turn) for turn in recall.by_turn(results.lives)] == [4, 4]
    assert (
        "2 orders over the seeds; the one above is the first's"
        in dict(protocol.box(seen))["schedule"]
    )
    assert not any("One order" in text for text in limits.limits(seen))
    assert section(results)["orders"]  # type: ignore[index]


def test_the_matrix_is_the_mean_over_lifetimes(tmp_path: Path):
    one = make_life(seed=0, matrix=ABAB, held_out="", spread=3.0)
    two = make_life(seed=1, matrix=ABAB | {"A": [20, math.nan, 70, 75, 62]})
    seen = view(tmp_path, one, two)
    expected = [[10, 80, 70, 75, 61], [0, 0, 90, 50, 95]]
    np.testing.assert_allclose(mean_matrix([one, two], ["A", "B"], 4), expected)
    axes = matrix.return_matrices(seen).axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), expected)
    texts = {(t.get_position(), t.get_text()) for t in axes.texts}
    assert ((4, 0), "61.0") in texts and ((2, 1), "90.0") in texts and len(texts) == 10
    frames = [patch.get_xy() for patch in axes.patches]  # type: ignore[attr-defined]
    assert frames == [(0.5, -0.5), (1.5, 0.5), (2.5, -0.5), (3.5, 0.5)]


def test_what_was_never_evaluated_is_blank(tmp_path: Path):
    life = make_life(
        order="AB",
        matrix={"A": [0, 80, 70], "B": [math.nan, 0, 9], "P": [1, math.nan, 2]},
        held_out="P",
    )
    assert task_names(life.protocol) == ["A", "B", "P"]
    shown = np.ma.asarray(
        matrix.return_matrices(view(tmp_path, life)).axes[0].images[0].get_array()
    )
    assert np.ma.getmaskarray(shown).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_forgetting_is_what_a_visit_to_another_task_took(tmp_path: Path):
    seen = view(tmp_path, make_life(matrix=ABAB))
    # A fell by 10 and by 15 while B was visited; B by 40 while A was, once it had been met.
    expected = [[np.nan, 12.5], [40.0, np.nan]]
    np.testing.assert_allclose(matrix.mean_lost(seen.lives("engram"), ["A", "B"]), expected)
    image = matrix.forgetting_matrices(seen).axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-40.0, 40.0)


def test_recall_panels_lay_visits_to_the_same_tasks_over_each_other(tmp_path: Path):
    r = {"A": [0, 80, 70, 75], "B": [10, 10, 90, 50]}
    life = make_life(order="ABA", matrix=r, curves=[[20.0, 40.0], [99.0, 99.0], [60.0, 70.0]])
    seen = view(tmp_path, life)
    panels = recall.recall_panels(seen, {"engram": "a note"})
    assert panels is not None
    axes = panels.axes[0]
    assert line(axes, "first visit") == [[0, 5, 10], [0, 20, 40]]  # B never comes again
    assert line(axes, "re-visit 1") == [[0, 5, 10], [70, 60, 70]]
    assert "a note" in [text.get_text() for text in axes.texts]
    assert recall.recall_panels(view(tmp_path / "b", make_life(order="AB")), {}) is None
    uneven = recall.by_turn([make_life(order="ABABAC")])  # B has no third visit to set beside A's
    assert [[visit.task for _, visit in turn] for turn in uneven] == [["A", "B"]] * 2


def test_savings_are_printed_with_the_panel(tmp_path: Path):
    seen = view(tmp_path, make_life(matrix=make_matrix("ABAB", kept=0.5)))
    printed = noted(seen, ["recall.savings", "recall.0"])["engram"]
    expected = score(seen, "recall.savings", "engram").estimate.mean
    assert printed == f"recall.savings {expected:.2f} · recall.0.raw 0.50"


def test_the_retrieval_timeline_frames_the_right_answer(tmp_path: Path):
    recalled: dict[int, dict[str, Any]] = {
        0: {"null": 1.0},
        1: {"weights": {"A": 0.4}, "null": 0.6},
        2: {"weights": {"A": 0.7, "B": 0.1}, "null": 0.2, "row": 1, "of_task": "B"},
    }
    lives = [make_life(seed=seed, order="ABA", recalled=recalled) for seed in (4, 2)]
    seen = view(tmp_path, *lives, *(make_life("finetune", s, "ABA") for s in (2, 4)))
    weighing = retrieval.with_memory(seen)
    assert {agent: life.seed for agent, life in weighing.items()} == {"engram": 2}
    names, weights = retrieval.posterior(weighing["engram"])
    assert names == ["A", "B", retrieval.NONE]
    expected = [[np.nan, 0.4, 0.7], [np.nan, np.nan, 0.1], [1, 0.6, 0.2]]
    np.testing.assert_allclose(weights, expected)
    assert retrieval.right_answers(weighing["engram"], names) == [2, 2, 0]
    assert retrieval.started_from(weighing["engram"], names) == [2, 2, 1]
    axes = retrieval.retrieval_timeline(weighing).axes[0]
    centres = [(p.get_x() + p.get_width() / 2, p.get_y() + 0.46) for p in axes.patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(centres, [(0, 2), (1, 2), (2, 0)])


def test_arrows_point_to_the_better_side():
    metrics = ("ap.final.raw", "forget.end", "plasticity.weight_norm")
    assert [comparison.titled(m) for m in metrics[:2]] == [
        "ap.final.raw [return] →",
        "forget.end ←",
    ]
    assert [comparison.arrow(m, "↑", "↓") for m in metrics] == ["↑", "↓", ""]


def test_differences_are_paired_by_seed(tmp_path: Path):
    lives = [*scored("engram", 10.0, 20.0, 35.0), *scored("zeta", 11.0, 23.0)]
    seen = view(tmp_path, *lives)
    cell = difference(seen, "ap.final.raw", "zeta")
    assert (cell.estimate.mean, cell.estimate.n) == (2.0, 2)  # 1 and 3; seed 2 has no partner
    assert cell.estimate.high - 2.0 == pytest.approx(12.706, abs=1e-3)
    figure = comparison.differences(seen)
    assert figure and figure.axes[0].get_title().startswith("ap.final.raw")
    marker = seen.looks["zeta"].marker
    (drawn,) = (points(each) for each in figure.axes[0].lines if each.get_marker() == marker)
    assert [x for x, _ in drawn] == [2.0]
    assert comparison.differences(view(tmp_path / "alone", *scored("engram", 1.0))) is None


def test_profiles_are_shares_of_scores_above(tmp_path: Path):
    lives = [
        make_life(seed=s, matrix={"A": [0, 90, 90, 90, a], "B": [0, 0, 90, 90, b]})
        for s, (a, b) in enumerate([(20, 80), (40, 60)])
    ]
    figure = comparison.profiles(view(tmp_path, *lives, references=True))
    assert figure is not None and figure.axes[0].get_xlabel().startswith("final score")
    x, y = map(np.array, line(figure.axes[0], "engram"))
    for threshold, share in ((0.1, 1.0), (0.3, 0.75), (0.5, 0.5), (0.7, 0.25), (0.82, 0.0)):
        assert y[np.searchsorted(x, threshold)] == share


def test_costs_are_of_finished_lifetimes(tmp_path: Path):
    bytes_ = {"state_bytes": {"policy": 30.0, "memory": 12.0}}
    done = make_life(visits=bytes_)
    stopped = make_life(seed=1, status="stopped", visits={"state_bytes": {"policy": 9}})
    seen = view(tmp_path, done, stopped, *(make_life("x", s) for s in (0, 1)))
    assert costs.mean_cost(seen, "engram", costs.carried_bytes) == 42
    assert costs.mean_cost(seen, "engram", costs.cpu_seconds) == 12  # four visits of 3 s
    assert math.isnan(costs.mean_cost(seen, "x", costs.carried_bytes))
    figure = costs.score_against_cost(seen)
    assert figure is not None
    bytes_axes, seconds_axes, key = figure.axes
    assert [t.get_text() for t in bytes_axes.texts] == ["1"]  # nobody counted the bytes of x
    assert [t.get_text() for t in seconds_axes.texts] == ["1", "2"]
    assert [t.get_text() for t in key.texts] == [f"{i}  {a}" for i, a in enumerate(seen.agents, 1)]


def test_labels_make_room_for_each_other():
    wanted = np.array([5.0, 0.0, 0.2, 0.1])
    moved = costs.spread(wanted, 1.0)
    np.testing.assert_allclose(moved, [5.0, -0.9, 1.1, 0.1])  # as little as it takes
    np.testing.assert_allclose(costs.spread(np.array([3.0, 1.0]), 1.0), [3.0, 1.0])
    beside = costs.label_shifts(np.array([0.0, 0.01, 1.0]), np.zeros(3))
    assert beside[1] - beside[0] == pytest.approx(0.055) and beside[2] == 0


def test_detections_are_split_into_noticed_and_false(tmp_path: Path):
    hidden: dict[str, Any] = {"told": {"boundary": False}, "knew": {"boundary": False}}
    life = make_life(order="ABAA", detected=[3, 28, 30, 60], **hidden)  # visits of 25 episodes
    assert detection.split(life) == ({25: 28, 50: 60}, [3, 30])
    quiet = make_life("quiet", order="ABAA", **hidden)
    seen = view(tmp_path, life, quiet)
    assert detection.listening(seen) == ["engram"]
    figure = detection.detections(seen, {"engram": "delay 6"})
    assert figure is not None and figure.axes[0].get_title("left") == "engram   delay 6"
    bars = [points(each) for each in figure.axes[0].lines if each.get_linewidth() == 3]
    assert bars == [[[25, 0], [28, 0]], [[50, 0], [60, 0]]]
    assert detection.detections(view(tmp_path / "b", quiet), {}) is None


def test_the_tables_by_task_hold_the_moments_of_each(tmp_path: Path):
    seen = view(tmp_path, make_life(matrix=ABAB), references=True)
    rows = {(task, who): [c.text for c in cells] for task, who, cells in tables.task_rows(seen)}
    assert rows["A", "engram"] == ["0", "0", "80", "70", "60"]
    assert rows["B", "engram"] == ["0", "0", "90", "50", "95"]
    assert rows["A", "random (reference)"] == ["0", *["n/a"] * 4]
    assert rows["A", "expert (reference)"] == ["n/a", "n/a", "100", "n/a", "n/a"]


def test_steps_of_a_drift_are_no_tasks_of_their_own(tmp_path: Path):
    recalled = {1: {"weights": {"A": 0.9}, "null": 0.1}}
    life = make_life(order="AxBA", drifting=[1], recalled=recalled)
    assert task_names(life.protocol) == ["A", "B"]
    assert [len(turn) for turn in recall.by_turn([life])] == [1, 1]
    names, _ = retrieval.posterior(life)
    assert names == ["A", "B", retrieval.NONE]
    assert retrieval.right_answers(life, names) == [2, None, 2, 0]
    seen = view(tmp_path, life)
    frames = [patch.get_xy() for patch in matrix.return_matrices(seen).axes[0].patches]  # type: ignore[attr-defined]
    assert frames == [(0.5, -0.5), (2.5, 0.5), (3.5, -0.5)]
    assert dict(protocol.box(seen))["schedule"][0] == "A → x~ → B → A, 25 episodes each"
    names = [text.get_text() for text in timeline.timeline(seen).axes[0].texts]
    assert names == ["A", "~", "B", "A"]


def test_every_metric_with_a_number_is_listed_and_explained(tmp_path: Path):
    seen = view(tmp_path, *scored("engram", 10.0, 20.0))
    rows = {name: [c.text for c in cells] for name, cells in tables.metric_rows(seen)}
    assert rows["ap.final.raw"] == ["15.0"] and "ap.final" not in rows
    explained = {entry[0]: entry for entry in tables.dictionary(rows)}
    assert [*explained] == [*rows] and set(seen.headline) <= set(rows)
    assert explained["ap.final.raw"][2:4] == ("return", "higher")
    assert all(what for _, what, *_ in explained.values())


def test_the_protocol_box_says_what_was_run(tmp_path: Path):
    lives = [make_life(seed=seed, matrix=ABAB, probes=5) for seed in (0, 1, 2, 7)]
    for life, gear in zip(lives, (0.2, 0.5, 0.3, 0.2), strict=True):
        life.protocol.tasks["A"].values = {"gear": gear}
    lives[3].deviations = ["visit 1 had 29 episodes"]
    box = dict(protocol.box(view(tmp_path, *lives)))
    assert box["schedule"] == ["A → B → A → B, 30 episodes each"]
    assert box["seeds"] == ["4: 0\N{EN DASH}2, 7"]
    assert box["tasks"][0] == "A: task A; gear 0.2 to 0.5"
    assert box["agents knew"] == ["boundaries"]
    # 4 visits x (25 + 5) episodes x 100 steps; measuring took 2 x 2 x 5 x 100 of its own.
    assert box["budget"] == [
        "120 episodes a lifetime, 12,000 env steps on average: learn 83.3%, probe 16.7%"
    ]
    assert box["evaluation"][1] == "8,000 env steps: 16.7% of those lived, 5.0% of their seconds"
    assert box["references"] == ["random: none", "scratch: none", "expert: none"]
    assert box["deviations"] == ["engram, seed 7: visit 1 had 29 episodes"]
    assert len(box["protocol hash"]) == 1
    lives[1].protocol.horizon = 7
    mixed = view(tmp_path / "mixed", *lives)
    (_, other) = dict(protocol.box(mixed))["protocol hash"]
    assert other.endswith(", not to be compared: engram, seed 1")
    assert any("different protocols" in text for text in limits.limits(mixed))


def said(seen: View, *words: str) -> list[bool]:
    text = "\n".join(limits.limits(seen))
    return [word in text for word in words]


def test_what_is_not_shown_is_found_in_the_data(tmp_path: Path):
    words = ("Smoke", "Exploratory", "Not every seed", "No task comes again", "No held-out")
    few = [*scored("engram", 1.0, 2.0), *scored("zeta", 1.0)]
    assert said(view(tmp_path / "a", *few), *words) == [True, False, True, False, True]
    several = [make_life(seed=s, order="AB", held_out="P") for s in range(5)]
    assert said(view(tmp_path / "b", *several), *words) == [False, True, False, True, False]
    many = [make_life(seed=s, held_out="P") for s in range(10)]
    many[0].evaluations[0].returns[0] = math.nan
    seen = view(tmp_path / "c", *many)
    assert said(seen, *words) == [False] * 5
    assert tables.notes(seen) == []
    # 2 of 3 tasks x 5 checkpoints x 10 seeds x 2 episodes
    assert (
        said(seen, "0.3% of the test episodes diverged", "only 2 episodes", "ending in .raw")
        == [True] * 3
    )
    whole = view(tmp_path / "d", *many, references=True)
    assert said(whole, "reference", "ending in .raw", "told when") == [False, False, True]
    doubt = "No normalised scores: there is no random reference (10 of 10 lifetimes)."
    assert said(seen, doubt) == [True]
    unfinished = view(tmp_path / "e", make_life(status="stopped"))
    assert said(unfinished, "engram, seed 0 is not finished: 3 of 4 visits.") == [True]


@pytest.mark.parametrize("gone", [{"visits": []}, {"visits": [], "evaluations": []}])
def test_a_page_can_be_made_before_anything_is_over(tmp_path: Path, gone: dict[str, Any]):
    life = make_life(status="stopped").model_copy(update=gone)
    context = section(results_of(tmp_path, [life]))
    assert (
        context is not None and context["view"].headline == [] and context["headline"][0].unfinished
    )
    assert ("returns" in context["figures"]) == ("evaluations" not in gone)
    assert "timeline" not in context["figures"] and "recall" not in context["figures"]


def test_half_of_the_runs_may_be_missing(tmp_path: Path):
    lives = [make_life(name, seed) for name in ("engram", "finetune") for seed in range(4)]
    lives[1].evaluations = []
    lives[6] = make_life("finetune", 2, status="crashed").model_copy(update={"visits": []})
    context = section(results_of(tmp_path, [lives[i] for i in (0, 1, 3, 4, 6)]))
    assert context is not None
    assert {"timeline", "returns", "recall", "dots", "differences"} <= set(context["figures"])
    assert {row.agent: row.failed for row in context["headline"]} == {"engram": 0, "finetune": 1}


def test_links_on_the_page_lead_somewhere(tmp_path: Path):
    from agent.report.page import write_report

    write_run(
        tmp_path,
        [make_life(seed=s, told={"boundary": False}, knew={"boundary": False}) for s in (0, 1)],
    )
    html = write_report(tmp_path).read_text()
    targets = re.findall(r'href="#([^"]+)"', html)
    assert len(targets) > 8 and all(f'id="{target}"' in html for target in targets)


def test_one_lifetime_has_no_interval_in_any_column_bytes_included(tmp_path: Path):
    life = make_life("engram", 0, "ABA")
    life.visits[-1].state_bytes = {"policy": 20_000, "memory": 30_000}
    write_run(tmp_path, [life])
    found = section(read_results(tmp_path))
    assert found is not None
    row = found["headline"][0]
    assert [cell.small for cell in row.cells if cell.small.startswith("[")] == []
    assert any(cell.text.endswith("k") for cell in row.cells)
