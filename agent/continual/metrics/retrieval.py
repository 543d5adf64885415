"""Whether the memory brings up the right thing: what it believed before it tried anything.

A visit is asked about if the memory held a row at its start. The right answer is the visit's task,
or, at a first visit, "none of these"; the answers are ordered by their posterior, else as the agent
ranked them, else the row that it started from is its only answer.
"""

from __future__ import annotations

import math

import numpy as np

from agent.continual.life import Evaluation, Life, Recalled, Visit
from agent.continual.metrics.metric import Metric, mean
from agent.continual.metrics.scores import Scores

NONE = None
"""The answer "none of these"."""
TOP = (3, 5)

METRICS = [
    Metric(
        "p_at_1",
        "Share of all visits that began with a row in memory at which the likeliest answer was "
        "right: the task, or none at a first visit.",
        "share",
        "high",
        headline=True,
    ),
    Metric("p_at_1.first", "p_at_1 over first visits: new tasks known as new.", "share", "high"),
    Metric("p_at_1.revisit", "p_at_1 over re-visits.", "share", "high"),
    *(
        Metric(
            f"p_at_{k}",
            f"Share of the re-visits that began with a row in memory at which the task was among "
            f"the {k} likeliest answers.",
            "share",
            "high",
        )
        for k in TOP
    ),
    Metric(
        "mrr",
        "Mean over the re-visits that began with a row in memory of 1 / place of the task among "
        "the answers; 0 if it is not among them.",
        "share",
        "high",
        "mean reciprocal rank",
    ),
    Metric(
        "weight_on_true",
        "Mean over the re-visits that began with a row in memory of the posterior of the rows "
        "written at the task. NaN for an agent that has no posterior.",
        "share",
        "high",
    ),
    Metric(
        "null_on_new",
        "Mean over the first visits that began with a row in memory of the posterior of none of "
        "these. NaN for an agent that has none.",
        "share",
        "high",
    ),
    Metric(
        "harm",
        "Share of the visits that began with a row in memory whose R at the start is below that "
        "of scratch by more than one standard error of their difference, episode by episode.",
        "share",
        "low",
    ),
]
SCORED = [
    Metric(
        "regret",
        "Mean over the re-visits that began with a row in memory of what the visit before to the "
        "task led to minus R at the start: what bringing back the agent's own policy would have "
        "added.",
        "score",
        "low",
        raw=True,
    )
]


def answers(recalled: Recalled) -> list[str | None]:
    """The answers, likeliest first; None is "none of these"."""
    if recalled.weights or recalled.null is not None:
        weights: dict[str | None, float] = {**recalled.weights, NONE: recalled.null or 0.0}
        # A tie is won by the task that the agent ranked first, and by any task against none.
        ranked: list[str | None] = [*recalled.ranked, *recalled.weights, NONE]
        given = [answer for answer in weights if weights[answer] > 0]
        return sorted(given, key=lambda answer: (-weights[answer], ranked.index(answer)))
    if recalled.ranked:
        return list(dict.fromkeys(recalled.ranked))
    return [recalled.of_task if recalled.row is not None else NONE]


def retrieval(life: Life, scratch: Life | None) -> dict[str, float]:
    """The metrics of this group that need no normalising."""
    asked = _asked(life)
    places = {visit.visit: _place(visit) for visit in asked}
    first = [visit for visit in asked if not visit.revisit]
    again = [visit for visit in asked if visit.revisit]
    found = [places[visit.visit] for visit in again]
    out = {
        "p_at_1": mean(places[visit.visit] == 1 for visit in asked),
        "p_at_1.first": mean(places[visit.visit] == 1 for visit in first),
        "p_at_1.revisit": mean(place == 1 for place in found),
        **{f"p_at_{k}": mean(place <= k for place in found) for k in TOP},
        "mrr": mean(1 / place for place in found),
        "weight_on_true": mean(
            v.recalled.weights.get(v.task, 0.0) if v.recalled.weights else math.nan for v in again
        ),
        "null_on_new": mean(
            math.nan if v.recalled.null is None else v.recalled.null for v in first
        ),
    }
    if scratch is not None:
        ours, theirs = _starts(life), _starts(scratch)
        out["harm"] = mean(
            _worse(ours.get(visit.visit), theirs.get(visit.visit)) for visit in asked
        )
    return out


def regret(life: Life, scores: Scores) -> dict[str, float]:
    """``regret``, on scores or returns."""
    asked = {visit.visit for visit in _asked(life)}
    return {"regret": mean(v.before[-1].end - v.start for v in scores.again if v.number in asked)}


def _asked(life: Life) -> list[Visit]:
    schedule = life.protocol.schedule
    return [v for v in life.visits if v.recalled.rows > 0 and not schedule[v.visit].drifting]


def _place(visit: Visit) -> float:
    """Place of the right answer among the answers, from 1; infinite if it is not there."""
    given = answers(visit.recalled)
    right = visit.task if visit.revisit else NONE
    return given.index(right) + 1 if right in given else math.inf


def _starts(life: Life) -> dict[int, Evaluation]:
    """By visit, the evaluation of its task at its start."""
    tasks = {visit.visit: visit.task for visit in life.visits}
    return {e.checkpoint: e for e in life.evaluations if tasks.get(e.checkpoint) == e.task}


def _worse(ours: Evaluation | None, theirs: Evaluation | None) -> float:
    """1 if ours is worse by more than a standard error, 0 if not; NaN if that cannot be told."""
    if ours is None or theirs is None or len(ours.returns) != len(theirs.returns):
        return math.nan
    lost = np.array(theirs.returns) - np.array(ours.returns)
    lost = lost[np.isfinite(lost)]
    if len(lost) < 2:
        return math.nan
    return float(lost.mean() > lost.std(ddof=1) / math.sqrt(len(lost)))
