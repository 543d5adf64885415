"""How good the agent is: in the end, all along, at its worst, and while it learns."""

from __future__ import annotations

import numpy as np

from agent.continual.metrics.metric import Metric, mean
from agent.continual.metrics.scores import Scores

METRICS = [
    Metric(
        "ap.final",
        "Mean over all visited tasks of R at the last checkpoint.",
        "score",
        "high",
        "average performance of Continual World (Wolczyk 2021), here at one checkpoint",
        headline=True,
        raw=True,
    ),
    Metric(
        "ap.anytime",
        "Mean over the checkpoints after each visit of the mean of R over the tasks visited by "
        "then.",
        "score",
        "high",
        raw=True,
    ),
    Metric(
        "ap.worst",
        "The least R at the last checkpoint among the visited tasks.",
        "score",
        "high",
        raw=True,
    ),
    Metric(
        "ap.coom2023",
        "Mean of R over all pairs of a visited task and a checkpoint after its first visit; every "
        "pair counts, also those that are 0, which the published code leaves out.",
        "score",
        "high",
        "performance of COOM (Tomilin 2023)",
        raw=True,
    ),
    Metric(
        "ap.held_out",
        "Mean over the tasks that are never visited of R at the last checkpoint.",
        "score",
        "high",
        raw=True,
    ),
    Metric(
        "online",
        "Mean over all visits of the mean return over the episodes of the visit, probes and trials "
        "included, those that diverged left out.",
        "score",
        "high",
        raw=True,
    ),
]


RETURNS = [
    Metric(
        "first.start",
        "Mean over first visits of R before the visit, on its own task, as a return.",
        "return",
        "high",
    ),
    Metric(
        "first.end",
        "Mean over first visits of what the visit led to: the return of its last policy.",
        "return",
        "high",
    ),
    Metric(
        "revisit.start",
        "Mean over re-visits of R before the visit, on its own task, as a return.",
        "return",
        "high",
    ),
    Metric(
        "revisit.end",
        "Mean over re-visits of what the visit led to: the return of its last policy.",
        "return",
        "high",
    ),
]


def performance(scores: Scores) -> dict[str, float]:
    """The metrics of this group, as scores."""
    met = {task: scores.first[n].number + 1 for n, task in enumerate(scores.tasks)}
    rows = {task: scores.matrix[task] for task in scores.tasks}
    checkpoints = [visit.number + 1 for visit in scores.visits]
    final = [scores.final(task) for task in scores.tasks]
    cells = [rows[task][c] for task in scores.tasks for c in checkpoints if met[task] <= c]
    return {
        "ap.final": mean(final),
        "ap.anytime": mean(
            mean(rows[task][c] for task in scores.tasks if met[task] <= c) for c in checkpoints
        ),
        "ap.worst": float(np.min(final)),  # a NaN has to show
        "ap.coom2023": coom_performance(cells),
        "ap.held_out": mean(scores.final(task) for task in scores.held_out),
        "online": mean(visit.auc for visit in scores.visits),
    }


def starts_and_ends(scores: Scores) -> dict[str, float]:
    """The metrics of this group that are always of returns."""
    return {
        "first.start": mean(visit.start for visit in scores.first),
        "first.end": mean(visit.end for visit in scores.first),
        "revisit.start": mean(visit.start for visit in scores.again),
        "revisit.end": mean(visit.end for visit in scores.again),
    }


def coom_performance(cells: list[float], *, as_published: bool = False) -> float:
    """Mean of the cells; ``as_published`` leaves out zeros, as the code of COOM does.

    That turns total forgetting into better performance; it is here to show by how much.
    """
    return mean(value for value in cells if value != 0 or not as_published)
