"""The part of the page that is about lifetimes on a stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.continual.results import Results
from agent.report import style
from agent.report.stream import (
    comparison,
    costs,
    detection,
    limits,
    matrix,
    protocol,
    recall,
    retrieval,
    tables,
    timeline,
)
from agent.report.stream.data import View, view_of, visited_tasks, with_numbers
from agent.report.stream.estimates import score
from agent.report.style import digits_for, number

_OF_RECALL = ("recall.savings", "recall.0")
_OF_CHANGE = ("change.delay", "change.misses", "change.false_alarms")
"""Printed above an agent's panel, those that have numbers."""


def section(results: Results) -> dict[str, Any] | None:
    """All that ``stream.html.j2`` shows; None where no lifetime has begun."""
    if not results.lives:
        return None
    view = view_of(results)
    metrics, figures = tables.metric_rows(view), _figures(view)
    return {
        "view": view,
        "visits": sum(not planned.drifting for planned in view.protocol.schedule),
        "visited": len(visited_tasks(view.protocol)),
        "box": protocol.box(view),
        "headline": tables.headline_rows(view),
        "notes": tables.notes(view),
        "tasks": tables.task_rows(view),
        "metrics": metrics,
        "dictionary": tables.dictionary(name for name, _ in metrics),
        "limits": limits.limits(view),
        "scratch": bool(timeline.scratch_lives(view)),
        "orders": view.in_order(results.lives) != results.lives,
        "figures": figures,
        "sections": _sections(view, figures),
    }


def _figures(view: View) -> dict[str, str]:
    """The figures that there is data for, as ``data:`` addresses."""
    weighing = retrieval.with_memory(view)
    lived = any(life.visits for life in view.results.lives)
    measured = any(life.evaluations for life in view.results.lives)
    figures = {
        "dots": comparison.dots(view),
        "timeline": timeline.timeline(view) if lived else None,
        "returns": matrix.return_matrices(view) if measured else None,
        "recall": recall.recall_panels(view, noted(view, _OF_RECALL)),
        "retrieval": retrieval.retrieval_timeline(weighing) if weighing else None,
        "forgetting": matrix.forgetting_matrices(view) if measured else None,
        "profiles": comparison.profiles(view),
        "differences": comparison.differences(view),
        "costs": costs.score_against_cost(view),
        "detections": detection.detections(view, noted(view, _OF_CHANGE)),
    }
    return {name: style.address(style.svg(f)) for name, f in figures.items() if f is not None}


def _sections(view: View, figures: Mapping[str, str]) -> dict[str, str]:
    """Where the page can be entered, and what stands there."""
    hidden = any(not life.knew.boundary for life in view.results.lives)
    there = {
        "headline": ("headline", True),
        "timeline": ("visits", "timeline" in figures),
        "recall": ("recall", True),
        "retrieval": ("retrieval", "retrieval" in figures),
        "matrix": ("the matrix R", "returns" in figures),
        "forgetting": ("forgetting", "forgetting" in figures),
        "comparison": ("comparison", "differences" in figures or "profiles" in figures),
        "costs": ("costs", "costs" in figures),
        "detection": ("detection", hidden),
        "tables": ("all numbers", True),
        "limits": ("what this does not show", True),
    }
    return {name: words for name, (words, shown) in there.items() if shown}


def noted(view: View, metrics: Iterable[str]) -> dict[str, str]:
    """For each agent, its means of the metrics in a line."""
    shown = [found for metric in metrics if (found := with_numbers(view.results, metric))]
    out = {}
    for agent in view.agents:
        cells = {metric: score(view, metric, agent) for metric in shown}
        known = {m: c.partial for m, c in cells.items() if c.partial_n}
        digits = {m: min(2, digits_for([value])) for m, value in known.items()}
        out[agent] = " · ".join(f"{m} {number(v, digits[m])}" for m, v in known.items())
    return out
