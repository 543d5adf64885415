"""All metrics under their names, and all of them of one lifetime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from agent.continual.life import Episode, Life
from agent.continual.metrics import (
    change,
    forgetting,
    learning,
    performance,
    recall,
    resources,
    retrieval,
    transfer,
)
from agent.continual.metrics.metric import Metric
from agent.continual.metrics.references import INFORMATIVE, References
from agent.continual.metrics.scores import Scores, normalise, scores_of

RAW = ".raw"
"""End of the id of a metric that is of returns as they are; without, of normalised scores."""

_RETURNS = (
    " In returns, not normalised: not to be averaged over tasks whose returns differ in size."
)
_SCORED = (
    performance.METRICS,
    forgetting.METRICS,
    transfer.METRICS,
    recall.FEWSHOT,
    recall.METRICS,
    retrieval.SCORED,
    learning.SCORED,
)
_OTHERS = (
    performance.RETURNS,
    retrieval.METRICS,
    change.METRICS,
    learning.METRICS,
    resources.METRICS,
)


def _with_raw(metrics: Sequence[Metric]) -> list[Metric]:
    out = []
    for metric in metrics:
        out.append(metric)
        if metric.raw:
            unit = metric.unit.replace("score", "return")
            what = metric.what + (_RETURNS if unit != metric.unit else "")
            raw = dataclasses.replace(
                metric, id=metric.id + RAW, what=what, unit=unit, headline=False
            )
            out.append(raw)
    return out


METRICS: dict[str, Metric] = {
    metric.id: metric for group in (*map(_with_raw, _SCORED), *_OTHERS) for metric in group
}
"""Every metric, by id."""

HEADLINES = [metric.id for metric in METRICS.values() if metric.headline]
"""Ids of the first table of a report."""


def measure(life: Life, episodes: Sequence[Episode], references: References) -> dict[str, float]:
    """Every metric of a lifetime; NaN where it is not defined.

    All are NaN for a lifetime that crashed, that is not over, or that deviates from what was
    declared: a mean over fewer visits is another quantity. ``notes`` says why.
    """
    out = dict.fromkeys(METRICS, math.nan)
    if _unusable(life):
        return out
    scratch, _ = references.reset(life)
    raw, base = scores_of(life, episodes), scores_of(scratch) if scratch else None
    found: dict[str, float] = {}
    if raw.visits:
        of_returns = _scored(life, raw, base)
        found |= {key + RAW: value for key, value in of_returns.items() if key + RAW in METRICS}
        found |= _scored(life, *_normalised(life, raw, base, references))
        # These need no zero and no unit: they are of returns, and there without an expert too.
        found |= recall.relearning(raw) | transfer.time_to_threshold(raw, base)
        found |= performance.starts_and_ends(raw)
    found |= retrieval.retrieval(life, scratch) | change.change(life) | learning.learning(life)
    return out | found | resources.resources(life, episodes)


def notes(life: Life, references: References) -> list[str]:
    """Why metrics of a lifetime are NaN, and which of the others are to be doubted."""
    if _unusable(life):
        return [_unusable(life)]
    scratch, missing = references.reset(life)
    _, _, bounds = references.bounds(life)
    out = bounds + missing
    if scratch is not None:
        _, base = _normalised(life, scores_of(life), scores_of(scratch), references)
        for visit in base.visits if base else ():
            if visit.auc > INFORMATIVE:
                out.append(
                    f"ft.cw2021 and ft.componet are mostly noise on task {visit.task}: scratch "
                    f"has an area of {visit.auc:.2f}, which leaves little to divide by"
                )
    return list(dict.fromkeys(out))


def _unusable(life: Life) -> str:
    if life.status == "crashed":
        return f"no metrics: the lifetime crashed ({life.error or 'no error was stored'})"
    if life.status == "stopped":
        declared = len(life.protocol.schedule)
        return f"no metrics: the lifetime stopped after {len(life.visits)} of {declared} visits"
    if life.deviations:
        return f"no metrics: what was executed is not what was declared ({life.deviations[0]})"
    return ""


def _scored(life: Life, scores: Scores, scratch: Scores | None) -> dict[str, float]:
    return (
        performance.performance(scores)
        | forgetting.forgetting(scores)
        | transfer.transfer(scores, scratch)
        | recall.fewshot(scores)
        | recall.recall(scores)
        | retrieval.regret(life, scores)
        | learning.areas(scores, scratch)
    )


def _normalised(
    life: Life, scores: Scores, scratch: Scores | None, references: References
) -> tuple[Scores, Scores | None]:
    low, high, _ = references.bounds(life)
    if scratch is None or references.scratch is None:
        return normalise(scores, low, high), None
    # By its own names of the tasks, which need not be the lifetime's.
    own_low, own_high, _ = references.bounds(references.scratch)
    return normalise(scores, low, high), normalise(scratch, own_low, own_high)
