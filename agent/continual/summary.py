"""``summary.json``: what came out of a run, for other programs to read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from agent.continual.metrics.catalog import METRICS
from agent.continual.results import Results
from agent.continual.statistics.aggregates import iqm, optimality_gap
from agent.continual.statistics.estimate import aggregate, estimate
from agent.continual.statistics.lifetimes import (
    STAND_IN,
    protocol_hash,
    sample_of,
    task_scores,
)
from agent.files import plain

FORMAT = 2
_SEED = 0
"""Of the resampling: equal lifetimes, equal summaries."""


def summarise(
    results: Results, stand_in: str | None = STAND_IN, level: float = 0.95
) -> dict[str, Any]:
    """Every agent's metrics with intervals, by the ids of the catalog, as JSON takes it.

    ``n`` counts crashed lifetimes; the values of unfinished ones are null and in no mean.

    Args:
        results: The lifetimes.
        stand_in: The agent whose score a crashed lifetime of another is given.
        level: Of the intervals.
    """
    hashes = sorted({protocol_hash(life.protocol) for life in results.lives})
    notes = ["lifetimes of several protocols: not to be compared"] if len(hashes) > 1 else []
    summary = {
        "format": FORMAT,
        "stream": results.lives[0].protocol.stream if results.lives else None,
        "protocol": hashes[0] if len(hashes) == 1 else None,
        "level": level,
        "notes": notes,
        "agents": {name: _agent(results, name, stand_in, level) for name in results.agents},
    }
    return plain(summary)


def _agent(results: Results, name: str, stand_in: str | None, level: float) -> dict[str, Any]:
    lives = [life for life in results.lives if life.agent == name]
    unfinished = sum(life.status == "stopped" for life in lives)
    rng = np.random.default_rng(_SEED)
    metrics = {}
    for metric in known_metrics(results):
        of = sample_of(results, metric, name, stand_in)
        found = dataclasses.asdict(estimate(of, rng, level))
        metrics[metric] = found | {"values": results.values(metric, name)}
    tasks, scores = task_scores(results, name)
    aggregates = {
        metric: dataclasses.asdict(aggregate(statistic, scores, rng, level))
        for metric, statistic in (("iqm", iqm), ("optimality_gap", optimality_gap))
        if scores.size and not np.isnan(scores).all()
    }
    return {
        "knew": lives[0].knew.model_dump(),
        "n": len(lives) - unfinished,
        "failed": sum(life.status == "crashed" for life in lives),
        "unfinished": unfinished,
        "metrics": metrics,
        "tasks": tasks,
        "aggregates": aggregates,
    }


def known_metrics(results: Results) -> list[str]:
    """Ids that the lifetimes were measured by, in the order of the catalog."""
    computed = {metric for numbers in results.metrics.values() for metric in numbers}
    return [metric for metric in METRICS if metric in computed]


def headline_metrics(results: Results) -> list[str]:
    """Ids for a first table: the headline's; without references, their raw twins."""
    known = {
        metric
        for numbers in results.metrics.values()
        for metric, value in numbers.items()
        if math.isfinite(value)
    }
    headline = [metric for metric in METRICS if METRICS[metric].headline]
    twins = {metric: metric if metric in known else f"{metric}.raw" for metric in headline}
    return [twin for twin in twins.values() if twin in known] or headline
