"""What a task that comes back finds of what was learned, and what that is worth in episodes.

A share of what was learned needs a zero. For scores it is the random agent; for returns, which have
none, it is where the first visit to the task started. Shares are summed before they are divided:
visits at which next to nothing had been learned would otherwise decide the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from agent.continual.metrics.metric import Metric, mean, ratio, slope
from agent.continual.metrics.scores import Scores, Visit
from agent.continual.metrics.transfer import criterion, episodes_to

SHOTS = (1, 2, 5, 10)
"""Episodes of a visit after which it is looked at."""
RECOVERED = 0.95
"""Share of what there was that counts as being back."""

_SUMMED = (
    "summed over the re-visits that had something to recall, divided by the sum of what the visits "
    "before to the same task led to. Returns count from the start of the first visit to the task "
    "(scores from the random agent); a re-visit had something to recall if the visit before led "
    "to more than that."
)
METRICS = [
    Metric(
        "recall.0",
        f"R before the visit on its task, {_SUMMED}",
        "ratio",
        "high",
        headline=True,
        raw=True,
    ),
    *(
        Metric(
            f"recall.{k}",
            f"Mean return of the batch in which episode {k} (from 0) of the visit was acted, "
            f"{_SUMMED} What a visit led to is here the last tenth of its curve. NaN "
            "for shorter visits.",
            "ratio",
            "high",
            raw=True,
        )
        for k in SHOTS
    ),
    Metric(
        "recall.savings",
        "1 - episodes to the criterion in re-visits / episodes to it in the first visit to the "
        "same task, both summed over re-visits. The criterion is 90 % of the way from the first "
        "batch of the first visit's curve to the last tenth of it; tasks whose first curve does "
        "not rise do not count; a re-visit that never gets there is counted with all its episodes.",
        "ratio",
        "high",
        "savings in relearning of Ebbinghaus (1885)",
        headline=True,
    ),
    Metric(
        "recall.latency",
        "Mean over re-visits of the episodes before the first batch that is 95 % of the way from "
        "the first batch of the first visit to the last tenth of the visit before; the whole visit "
        "where there is none. Re-visits without such a way do not count.",
        "episodes",
        "low",
        "recovery time of l2metrics (New 2022)",
        headline=True,
    ),
    Metric(
        "recall.gap",
        "Slope of the share of a re-visit that recall.0 sums, over the visits to other tasks since "
        "the visit before. NaN where all gaps are equal.",
        "1/visit",
        "high",
        raw=True,
    ),
]
FEWSHOT = [
    Metric(
        f"kshot.{k}.{kind}",
        f"Mean over {name} of the mean return of the batch in which episode {k} (from 0) of the "
        f"visit was acted: what {k} episodes of experience are good for. NaN for shorter visits.",
        "score",
        "high",
        raw=True,
    )
    for k in SHOTS
    for kind, name in (("first", "first visits"), ("revisit", "re-visits"))
]


def fewshot(scores: Scores) -> dict[str, float]:
    """``kshot.*``."""
    kinds = {"first": scores.first, "revisit": scores.again}
    return {
        f"kshot.{k}.{kind}": mean(_after(visit, k) for visit in visits)
        for k in SHOTS
        for kind, visits in kinds.items()
    }


def recall(scores: Scores) -> dict[str, float]:
    """``recall.*``, but for what is counted in episodes."""
    again = scores.again
    out = {"recall.0": _share(again, lambda v: v.start, lambda v: v.end, scores.normalised)}
    for k in SHOTS:
        out[f"recall.{k}"] = _share(
            again, lambda v, k=k: _after(v, k), lambda v: v.tail, scores.normalised, _opening
        )
    return out | {"recall.gap": slope(gap_points(scores))}


def relearning(scores: Scores) -> dict[str, float]:
    """``recall.savings`` and ``recall.latency``: the same of scores and of returns."""
    return {
        "recall.savings": _savings(scores.again),
        "recall.latency": mean(_latencies(scores.again)),
    }


def gap_points(scores: Scores) -> list[tuple[int, float]]:
    """For each re-visit, visits to other tasks since the last one, and what was recalled of it.

    Re-visits that had nothing to recall are left out.
    """
    return [
        (visit.number - visit.before[-1].number - 1, ratio(found, left))
        for visit in scores.again
        for found, left in _parts([visit], lambda v: v.start, lambda v: v.end, scores.normalised)
    ]


def _opening(visit: Visit) -> float:
    return _after(visit, 0)


def _after(visit: Visit, episodes: int) -> float:
    return float(visit.curve[episodes]) if len(visit.curve) > episodes else math.nan


def _share(
    visits: Iterable[Visit],
    found: Callable[[Visit], float],
    left: Callable[[Visit], float],
    normalised: bool,
    zero: Callable[[Visit], float] = lambda visit: visit.start,
) -> float:
    parts = _parts(visits, found, left, normalised, zero)
    return ratio(sum(part for part, _ in parts), sum(whole for _, whole in parts))


def _parts(
    visits: Iterable[Visit],
    found: Callable[[Visit], float],
    left: Callable[[Visit], float],
    normalised: bool,
    zero: Callable[[Visit], float] = lambda visit: visit.start,
) -> list[tuple[float, float]]:
    """What each re-visit found, and what the visit before left, if it left anything."""
    out = []
    for visit in visits:
        bottom = 0.0 if normalised else zero(visit.before[0])
        there = left(visit.before[-1]) - bottom
        if not there <= 0:  # a NaN is not left out: it has to show
            out.append((found(visit) - bottom, there))
    return out


def _savings(visits: Iterable[Visit]) -> float:
    spent, needed = 0, 0
    for visit in visits:
        level = criterion(visit.before[0])
        if math.isfinite(level):
            spent += episodes_to(visit.curve, level)
            needed += episodes_to(visit.before[0].curve, level)
    return 1 - ratio(spent, needed)


def _latencies(visits: Iterable[Visit]) -> list[int]:
    out = []
    for visit in visits:
        bottom = _opening(visit.before[0])
        way = visit.before[-1].tail - bottom
        if way > 0:
            out.append(episodes_to(visit.curve, bottom + RECOVERED * way))
    return out
