"""Samples, comparisons, ``summary.json`` and exports of made-up lifetimes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from agent.continual.export import escaped, estimates_latex, values_csv
from agent.continual.life import Life
from agent.continual.results import Results
from agent.continual.statistics.estimate import Estimate
from agent.continual.statistics.lifetimes import (
    check_comparable,
    compare_agents,
    protocol_hash,
    sample_of,
    task_scores,
)
from agent.continual.statistics.text import with_interval
from agent.continual.summary import headline_metrics, summarise
from agent.files import BadFileError
from tests.lives import make_life, make_references

Status = Mapping[tuple[str, int], str]


def made(
    values: Mapping[str, Sequence[float]], status: Status | None = None, **changes: Any
) -> Results:
    """Lifetimes of agents whose ``ap.final`` is given by seed, ``forget.end`` a tenth of it."""
    lives, metrics = [], {}
    for agent, scores in values.items():
        for seed, score in enumerate(scores):
            state: Any = (status or {}).get((agent, seed), "done")
            life = make_life(agent, seed, **changes)
            lives.append(life.model_copy(update={"status": state}))
            found = math.nan if state != "done" else score
            metrics[agent, seed] = {
                "ap.final": found,
                "forget.end": found / 10,
                "bwt.raw": math.nan,
            }
    return Results(lives, {}, {}, metrics)


def test_samples_hold_crashed_lifetimes_and_leave_unfinished_ones_out():
    status = {("engram", 1): "crashed", ("engram", 2): "stopped"}
    values = {"engram": [0.8, 0.0, 0.0, 0.6], "random": [0.1, 0.2, 0.1, 0.1]}
    results = made(values, status)
    of = sample_of(results, "ap.final", "engram")
    assert dict(of.values) == {0: 0.8, 1: 0.2, 3: 0.6} and of.failed == 1
    assert "1 unfinished" in " ".join(of.notes) and "1 of 3 crashed" in " ".join(of.notes)
    # Random forgets little; a crash is not to look like that, but like the agent's worst.
    assert sample_of(results, "forget.end", "engram").values[1] == pytest.approx(0.08)
    for stand_in in (None, "nobody", "engram"):
        assert math.isnan(sample_of(results, "ap.final", "engram", stand_in).values[1])


def test_a_deviating_lifetime_is_pointed_out():
    results = made({"engram": [0.5, 0.6]}, deviations=["visit 1: 20 episodes, not 25"])
    assert "2 with deviations from the protocol" in sample_of(results, "ap.final", "engram").notes


def test_several_comparisons_are_corrected_together():
    values = {"a": [5.0, 6, 7, 8, 9, 10], "b": [4.0, 5, 6, 7, 8, 9], "c": [5.0, 7, 6, 9, 8, 10]}
    rng = np.random.default_rng(0)
    found = compare_agents(made(values), "a", ["b", "c"], ["ap.final", "forget.end"], rng)
    assert list(found) == [(m, o) for m in ("ap.final", "forget.end") for o in ("b", "c")]
    assert found["ap.final", "b"].p == 2 / 2**6
    # Two of four have p 1/32: the first counts four times, the second not less.
    assert found["ap.final", "b"].p_holm == found["forget.end", "b"].p_holm == 4 / 2**5
    assert found["ap.final", "c"].p_holm == 1
    assert found["ap.final", "b"].better.mean == 1 and found["forget.end", "b"].better.mean == 0


def test_only_what_shared_a_protocol_is_compared():
    one, two = make_life("a", 0), make_life("b", 0)
    longer = make_life("b", 0, horizon=50)
    reordered = make_life("b", 0, "ABBA")

    def together(*lives: Life) -> Results:
        return Results(list(lives), {}, {}, {(x.agent, x.seed): {} for x in lives})

    check_comparable(together(one, two, make_life("b", 1, "BABA")), ["a", "b"])
    check_comparable(together(one, longer), ["a"])
    for other, key in ((longer, "horizon"), (reordered, "schedule")):
        with pytest.raises(BadFileError, match=f"a with seed 0 and b with seed 0 .* {key}"):
            check_comparable(together(one, other), ["a", "b"])
    with pytest.raises(BadFileError, match=r"a with seed 0 and b with seed 1 .* horizon"):
        check_comparable(together(one, make_life("b", 1, horizon=9)), ["a", "b"])


def test_the_protocol_hash_knows_settings_not_seeds():
    first = protocol_hash(make_life("a", 0).protocol)
    assert first == protocol_hash(make_life("b", 7).protocol)
    assert first == protocol_hash(make_life("a", 0, "BABA").protocol)
    assert first != protocol_hash(make_life("a", 0, "ABBB").protocol)
    assert first != protocol_hash(make_life("a", 0, horizon=99).protocol)
    assert first != protocol_hash(make_life("a", 0, told={"task": True}).protocol)


def with_references(lives: Sequence[Life]) -> Results:
    references = {
        (kind, life.seed): reference
        for life in lives
        for kind, reference in make_references(life, random=10.0, expert=60.0).items()
    }
    metrics = {(life.agent, life.seed): {"ap.final": math.nan} for life in lives}
    return Results(list(lives), {}, references, metrics)


def test_scores_by_task_are_normalised_and_a_crash_scores_as_random():
    matrix = {"A": [0.0, 60, 60, 60, 85], "B": [0.0, 0, 60, 60, 35]}
    lives = [make_life("a", seed, matrix=matrix) for seed in range(2)]
    tasks, scores = task_scores(with_references(lives), "a")
    assert tasks == ["A", "B"]
    assert scores == pytest.approx(np.array([[1.5, 0.5]] * 2))
    for seed, status in ((2, "crashed"), (3, "stopped")):
        lives.append(make_life("a", seed).model_copy(update={"status": status}))
    assert task_scores(with_references(lives), "a")[1].tolist()[2:] == [[0, 0]]
    low = {"A": [0.0, 60, 60, 60, 85], "B": [0.0, 0, 60, 60, -15]}
    lives[1] = make_life("a", 1, matrix=low)
    assert task_scores(with_references(lives), "a")[1].tolist()[2:] == [[0, -0.5]]
    found = summarise(with_references(lives))["agents"]["a"]["aggregates"]
    # Sorted -.5 -.5 0 .5 1.5 1.5, one off at either end; 1.5 counts as 1 towards the gap.
    assert found["iqm"]["mean"] == pytest.approx(1.5 / 4)
    assert found["optimality_gap"]["mean"] == pytest.approx(1 - 1.5 / 6)


def test_summary_is_what_the_lifetimes_come_to():
    values = {"engram": [0.8, 0.0, 0.6, 0.7], "<script>": [0.1, 0.2, 0.3, 0.4]}
    status = {("engram", 1): "crashed", ("<script>", 3): "stopped"}
    summary = summarise(made(values, status))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["format"], summary["stream"], summary["notes"]) == (2, "made_up", [])
    assert summary["protocol"] == protocol_hash(make_life("x", 3).protocol)
    assert list(summary["agents"]) == ["engram", "<script>"]
    ours, other = summary["agents"]["engram"], summary["agents"]["<script>"]
    assert (ours["n"], ours["failed"], ours["unfinished"]) == (4, 1, 0)
    assert (other["n"], other["failed"], other["unfinished"]) == (3, 0, 1)
    assert ours["knew"] == {"task": False, "boundary": True}
    final = ours["metrics"]["ap.final"]
    assert final["mean"] is None and "crashed" in final["note"]
    assert final["values"] == {"0": 0.8, "1": None, "2": 0.6, "3": 0.7}
    final = other["metrics"]["ap.final"]
    # SD .1 of three: t of 2 degrees is 4.302653.
    assert final["mean"] == pytest.approx(0.2)
    assert final["high"] == pytest.approx(0.2 + 4.302653 * 0.1 / math.sqrt(3))
    assert final["n"] == 3 and "smoke, no claim" in final["note"]
    assert list(ours["metrics"]) == ["ap.final", "forget.end", "bwt.raw"]
    assert ours["aggregates"] == {}


def test_summary_of_nothing_and_of_what_does_not_belong_together():
    empty = summarise(Results([], {}, {}, {}))
    assert empty["agents"] == {} and empty["protocol"] is None
    both = Results([make_life("a"), make_life("b", horizon=7)], {}, {}, {})
    mixed = summarise(both)
    assert mixed["protocol"] is None and "several protocols" in mixed["notes"][0]


def test_headlines_without_references_are_raw():
    results = made({"a": [0.5]})
    assert headline_metrics(results) == ["ap.final", "forget.end"]
    numbers = {"ap.final": math.nan, "ap.final.raw": 70.0, "recall.savings": 0.5, "online.raw": 1.0}
    raw = Results(results.lives, {}, {}, {("a", 0): numbers})
    assert headline_metrics(raw) == ["ap.final.raw", "recall.savings"]
    nothing = Results(results.lives, {}, {}, {("a", 0): {"ap.final": math.nan}})
    assert "ap.final" in headline_metrics(nothing)


def test_csv_holds_every_digit_and_every_lifetime():
    values = {'a,"b"\n': [1 / 3, 0.5], "c": [0.25, 0.0]}
    rows = list(csv.DictReader(io.StringIO(values_csv(made(values, {("c", 1): "crashed"})))))
    assert len(rows) == 4 * 3
    assert rows[0] == {
        "agent": 'a,"b"\n', "seed": "0", "status": "done", "metric": "ap.final",
        "value": repr(1 / 3), "unit": "score",
    }  # fmt: skip
    crashed = [row for row in rows if row["status"] == "crashed"]
    assert [row["metric"] for row in crashed] == ["ap.final", "forget.end", "bwt.raw"]
    assert {row["value"] for row in crashed} == {""}


def test_latex_table_by_hand():
    results = made({"100%_mine": [0.2, 0.3, 0.4], "b": [1.0, 2, 3]}, {("b", 2): "crashed"})
    told = [
        life.model_copy(update={"knew": life.knew.model_copy(update={"task": True})})
        if life.agent == "b" else life
        for life in results.lives
    ]  # fmt: skip
    table = estimates_latex(Results(told, {}, {}, results.metrics), ["ap.final", "forget.end"])
    lines = table.splitlines()
    titles = r"agent & $n$ & \texttt{ap.final} $\uparrow$ & \texttt{forget.end} $\downarrow$ \\"
    assert titles in lines
    # SD .1: 4.302653 * .1 / sqrt(3) = .248.
    row = lines.index(r"100\%\_mine & 3 & $0.30$ & $0.030$ \\")
    assert lines[row + 1] == (
        r" & & {\footnotesize [$0.05$, $0.55$]} & {\footnotesize [$0.005$, $0.055$]} \\"
    )
    assert lines[row + 2] == r"b\textsuperscript{*} & 3 (1 failed) & -- & -- \\"
    assert lines[row + 3] == r"\bottomrule"
    assert r"\par\footnotesize {*} was told which task it was in" in lines
    crashed = r"1 of 3 crashed, counted with no value: b ap.final, b forget.end"
    assert rf"\par\footnotesize {crashed}" in lines
    assert r"\par\footnotesize smoke, no claim: all" in lines
    for name in ("table", "tabular"):
        assert table.count(rf"\begin{{{name}}}") == table.count(rf"\end{{{name}}}") == 1
    assert r"[95\% interval]" in table


def test_latex_escapes_all_that_it_would_take_for_commands():
    assert escaped("\\~^&%$#_{}<>") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\&\%\$\#\_\{\}"
        r"\textless{}\textgreater{}"
    )
    assert escaped("[1]*") == "{[}1{]}{*}"  # a row may begin with it, and a \\ be before
    assert escaped("two\n lines") == "two lines"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.8123, 0.70456, 0.92004), "0.81 [0.70, 0.92]"),
        ((1234.5, 1111.1, 1357.9), "1,234 [1,111, 1,358]"),
        ((12.345, 11.2, 13.49), "12.3 [11.2, 13.5]"),
        ((0.5, math.nan, math.nan), "0.500"),
        ((-1e-9, -0.3, 0.3), "0.00 [-0.30, 0.30]"),
        ((0.0, 0.0, 0.0), "0.00 [0.00, 0.00]"),
        ((math.nan, math.nan, math.nan), "n/a"),
        ((0.1, -math.inf, 0.5), "0.100 [n/a, 0.500]"),
    ],
)
def test_numbers_have_the_digits_that_they_deserve(numbers: tuple[float, ...], text: str):
    assert with_interval(Estimate(*numbers, n=5)) == text
