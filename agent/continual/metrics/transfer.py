"""What earlier tasks do for the first visit to a new one, against starting from scratch.

Areas are means of a visit's curve; the reference is the scratch agent in the same visit of the same
schedule. The primary number is the plain difference: divided by what the reference leaves, as
published, its spread over seeds is several times larger (``reference/continual_rl.md``, finding 3).
"""

from __future__ import annotations

import math

import numpy as np

from agent.continual.metrics.metric import Metric, mean, ratio
from agent.continual.metrics.scores import Scores, Visit

CRITERION = 0.9
"""Share of what a curve rises that counts as having learned."""

METRICS = [
    Metric(
        "ft.auc_diff",
        "Mean over first visits, without the first of the lifetime, of the area under the curve "
        "minus that of scratch in the same visit.",
        "score",
        "high",
        headline=True,
        raw=True,
    ),
    Metric(
        "ft.cw2021",
        "Mean over all first visits, the first of the lifetime included, of (area - area of "
        "scratch) / (1 - area of scratch), normalised. Not to be trusted where scratch has an area "
        "above 0.9.",
        "ratio",
        "high",
        "Continual World (Wolczyk 2021)",
    ),
    Metric(
        "ft.componet",
        "As ft.cw2021, without the first visit of the lifetime.",
        "ratio",
        "high",
        "CompoNet (Malagon 2024) and CKA-RL; there on smoothed curves averaged over seeds",
    ),
    Metric(
        "ft.coom2023",
        "(Mean area - mean area of scratch) / (1 - mean area of scratch), means over all first "
        "visits.",
        "ratio",
        "high",
        "COOM (Tomilin 2023)",
    ),
    Metric(
        "ft.meal2026",
        "Mean over all first visits of (area - area of scratch) / area of scratch.",
        "ratio",
        "high",
        "MEAL (Tomilin 2026)",
    ),
    Metric(
        "ft.libero",
        "Mean over all first visits of the area under the curve; it has no reference.",
        "score",
        "high",
        "forward transfer of LIBERO (Liu 2023)",
        raw=True,
    ),
    Metric(
        "ft.steps_to_threshold",
        "Episodes to the threshold, summed over first visits without the first of the lifetime, "
        "divided by those of scratch. The threshold is 90 % of the way from the first batch of "
        "scratch's curve to the last tenth of it; visits in which scratch does not rise do not "
        "count; who never gets there is counted with the whole visit. Below 1 is faster.",
        "ratio",
        "low",
        "time to threshold of Taylor & Stone (2009)",
    ),
    Metric(
        "zs",
        "Mean over first visits, without the first of the lifetime, of R before the visit on its "
        "task minus R on it at checkpoint 0. NaN where that was not evaluated.",
        "score",
        "high",
        "forward transfer of Lopez-Paz & Ranzato (2017)",
        raw=True,
    ),
    Metric(
        "zs.scratch",
        "Mean over first visits, without the first of the lifetime, of R before the visit on its "
        "task minus the same of scratch.",
        "score",
        "high",
        "jump-start of Taylor & Stone (2009)",
        raw=True,
    ),
    Metric(
        "zs.held_out",
        "Mean over the tasks that are never visited of R at the last checkpoint minus R at "
        "checkpoint 0.",
        "score",
        "high",
        raw=True,
    ),
]


def transfer(scores: Scores, scratch: Scores | None) -> dict[str, float]:
    """The metrics of this group."""
    later, rows = scores.first[1:], scores.matrix
    out = {
        "ft.libero": mean(visit.auc for visit in scores.first),
        "zs": mean(visit.start - rows[visit.task][0] for visit in later),
        "zs.held_out": mean(rows[task][-1] - rows[task][0] for task in scores.held_out),
    }
    if scratch is None:
        return out
    reset = {visit.number: visit for visit in scratch.visits}
    area = np.array([visit.auc for visit in scores.first])
    base = np.array([reset[visit.number].auc for visit in scores.first])
    gains = [ratio(a - b, 1 - b) for a, b in zip(area, base, strict=True)]
    return out | {
        "ft.auc_diff": mean(area[1:] - base[1:]),
        "ft.cw2021": mean(gains),
        "ft.componet": mean(gains[1:]),
        "ft.coom2023": ratio(mean(area) - mean(base), 1 - mean(base)),
        "ft.meal2026": mean(ratio(a - b, b) for a, b in zip(area, base, strict=True)),
        "zs.scratch": mean(visit.start - reset[visit.number].start for visit in later),
    }


def time_to_threshold(scores: Scores, scratch: Scores | None) -> dict[str, float]:
    """``ft.steps_to_threshold``: the same of scores and of returns."""
    if scratch is None:
        return {}
    reset, mine, theirs = {visit.number: visit for visit in scratch.visits}, 0, 0
    for visit in scores.first[1:]:
        base = reset[visit.number]
        level = criterion(base)
        if math.isfinite(level):
            mine += episodes_to(visit.curve, level)
            theirs += episodes_to(base.curve, level)
    return {"ft.steps_to_threshold": ratio(mine, theirs)}


def criterion(visit: Visit) -> float:
    """The return that counts as having learned in a visit; NaN if its curve does not rise."""
    start = float(visit.curve[0]) if len(visit.curve) else math.nan
    rise = visit.tail - start
    return start + CRITERION * rise if rise > 0 else math.nan


def episodes_to(curve: np.ndarray, level: float) -> int:
    """Episodes before the first batch that reaches a level; all of them if none does."""
    reached = np.flatnonzero(curve >= level)
    return int(reached[0]) if len(reached) else len(curve)
