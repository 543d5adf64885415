"""What later visits do to the tasks before them; positive is forgotten.

What there was to forget is what a visit led to: the return of its last policy, before the agent
decided what to keep of it. What is left of it is R.

The published definitions know no task that comes back under its own name: their second pass is made
of new tasks. Those with a year in their id therefore count each visit as a task.
"""

from __future__ import annotations

import numpy as np

from agent.continual.metrics.metric import Metric, mean
from agent.continual.metrics.scores import Scores, Visit

METRICS = [
    Metric(
        "forget.end",
        "Mean over the visited tasks, without that of the last visit, of what the last visit to "
        "the task led to minus R on it at the last checkpoint.",
        "score",
        "low",
        "-BWT of Lopez-Paz & Ranzato (2017), from the last visit",
        headline=True,
        raw=True,
    ),
    Metric(
        "forget.peak",
        "Mean over the visited tasks, without that of the last visit, of the greatest of what the "
        "visits to the task led to and of R on it after the first of them and before the last "
        "checkpoint, minus R at the last checkpoint.",
        "score",
        "low",
        "Chaudhry et al. (2018)",
        raw=True,
    ),
    Metric(
        "forget.cora",
        "Mean over all pairs (i, j) of different tasks of F[i <- j]: the mean over the visits to j "
        "after the first visit to i of R on i before that visit minus after it. Pairs without such "
        "a visit do not count.",
        "score",
        "low",
        "isolated forgetting of CORA (Powers 2022), here over all cycles and not divided by the "
        "greatest return that any agent of the table had",
        raw=True,
    ),
    Metric(
        "forget.cw2021",
        "Mean over all visits, the last one included, of what the visit led to minus R on its task "
        "at the last checkpoint.",
        "score",
        "low",
        "Continual World (Wolczyk 2021), there with the last 5 evaluations for each R",
        raw=True,
    ),
    Metric(
        "forget.coom2023",
        "As forget.cw2021, without the last visit.",
        "score",
        "low",
        "COOM (Tomilin 2023), there with the last 10 evaluations for each R",
        raw=True,
    ),
    Metric(
        "forget.libero",
        "Mean over all visits of the mean over all later visits of what the visit led to minus R "
        "on its task after the later one; the last visit, which has none, counts as 0.",
        "score",
        "low",
        "negative backward transfer of LIBERO (Liu 2023)",
        raw=True,
    ),
    Metric(
        "bwt",
        "-forget.end: above 0 where later visits improved earlier tasks.",
        "score",
        "high",
        "backward transfer of Lopez-Paz & Ranzato (2017), from the last visit",
        raw=True,
    ),
]


def forgetting(scores: Scores) -> dict[str, float]:
    """The metrics of this group."""
    visits = scores.visits
    lost = [visit.end - scores.final(visit.task) for visit in visits]
    kept = [scores.last(task) for task in scores.tasks if task != visits[-1].task]
    end = mean(visit.end - scores.final(visit.task) for visit in kept)
    later = [mean(visit.end - scores.after(visit)) for visit in visits[:-1]]
    return {
        "forget.end": end,
        "forget.peak": mean(_peak(scores, visit) - scores.final(visit.task) for visit in kept),
        "forget.cora": mean(cora_pairs(scores).values()),
        "forget.cw2021": mean(lost),
        "forget.coom2023": mean(lost[:-1]),
        "forget.libero": mean([*later, 0.0]) if later else mean([]),
        "bwt": -end,
    }


def _peak(scores: Scores, last: Visit) -> float:
    """The best that the agent ever was on a task, before all was over."""
    visits = [*last.before, last]
    return float(np.max([*(visit.end for visit in visits), *scores.after(visits[0])[:-1]]))


def cora_pairs(scores: Scores) -> dict[tuple[str, str], float]:
    """F[i <- j] by (i, j): how much of task i a visit to task j cost on average."""
    costs: dict[tuple[str, str], list[float]] = {}
    for visit in scores.visits:
        met = {earlier.task for earlier in scores.visits if earlier.number < visit.number}
        for task in met - {visit.task}:
            before, after = scores.matrix[task][visit.number : visit.number + 2]
            costs.setdefault((task, visit.task), []).append(float(before - after))
    return {pair: mean(values) for pair, values in costs.items()}


def cora_matrix(scores: Scores) -> np.ndarray:
    """F ``[i, j]`` in the order of ``scores.tasks``; NaN for pairs that there are not."""
    pairs = cora_pairs(scores)
    rows = [[pairs.get((i, j), np.nan) for j in scores.tasks] for i in scores.tasks]
    return np.array(rows, dtype=float)
