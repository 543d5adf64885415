"""What a lifetime cost: memory, env steps by purpose, time, and what measuring it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from agent.continual.life import Episode, Life, Purpose
from agent.continual.metrics.metric import Metric, mean, ratio

PURPOSES = get_args(Purpose)
KINDS = ("policy", "memory")
"""Of bytes, that agents share; all others are counted together."""

METRICS = [
    Metric(
        "bytes.total",
        "What the agent carries when the last visit is over.",
        "bytes",
        "low",
        headline=True,
    ),
    *(
        Metric(f"bytes.{kind}", f"Of bytes.total, the part called {kind}.", "bytes", "low")
        for kind in KINDS
    ),
    Metric("bytes.other", "Of bytes.total, all other parts.", "bytes", "low"),
    Metric("peak_memory_mib", "Greatest resident memory of the process.", "MiB", "low"),
    Metric("env_steps.total", "Env steps of all visits, whatever for.", "steps"),
    *(
        Metric(f"env_steps.{purpose}", f"Of env_steps.total, those to {purpose}.", "steps")
        for purpose in PURPOSES
    ),
    Metric("seconds", "Wall seconds of all visits, evaluations left out.", "s", "low"),
    Metric("cpu_seconds", "CPU seconds of all visits, evaluations left out.", "s", "low"),
    Metric("act_p50_ms", "Mean over visits of the median time of one decision.", "ms", "low"),
    Metric(
        "act_p95_ms",
        "Mean over visits of the 95th percentile of the time of one decision.",
        "ms",
        "low",
    ),
    Metric(
        "recall_s",
        "Mean over the visits that began with a row in memory of the wall seconds of recognising "
        "and recalling, the simulator left out.",
        "s",
        "low",
    ),
    Metric(
        "evaluation.env_steps",
        "Env steps of evaluations over those of all visits.",
        "ratio",
        "low",
    ),
    Metric(
        "evaluation.seconds",
        "Wall seconds of evaluations over those of all visits.",
        "ratio",
        "low",
    ),
    Metric(
        "diverged",
        "Share of the episodes acted in whose simulation diverged; their returns count nowhere.",
        "share",
        "low",
    ),
]


def bytes_by_kind(life: Life) -> dict[str, int]:
    """Bytes that the agent carried when its last visit was over, by kind."""
    return dict(life.visits[-1].state_bytes) if life.visits else {}


def resources(life: Life, episodes: Sequence[Episode]) -> dict[str, float]:
    """The metrics of this group."""
    visits, carried = life.visits, bytes_by_kind(life)
    steps = {p: sum(visit.env_steps.get(p, 0) for visit in visits) for p in PURPOSES}
    seconds = sum(visit.seconds for visit in visits)
    other = sum(size for kind, size in carried.items() if kind not in KINDS)
    stored = {
        "bytes.total": sum(carried.values()),
        **{f"bytes.{kind}": carried.get(kind, 0) for kind in KINDS},
        "bytes.other": other,
    }
    return {
        **{name: float(size) if carried else math.nan for name, size in stored.items()},
        "peak_memory_mib": life.peak_memory_mib,
        "env_steps.total": float(sum(steps.values())),
        **{f"env_steps.{purpose}": float(count) for purpose, count in steps.items()},
        "seconds": seconds,
        "cpu_seconds": sum(visit.cpu_seconds for visit in visits),
        "act_p50_ms": mean(visit.act_ms.get("p50", math.nan) for visit in visits),
        "act_p95_ms": mean(visit.act_ms.get("p95", math.nan) for visit in visits),
        "recall_s": mean(visit.begin_s for visit in visits if visit.recalled.rows > 0),
        "evaluation.env_steps": ratio(life.evaluation_env_steps, sum(steps.values())),
        "evaluation.seconds": ratio(sum(visit.evaluation_s for visit in visits), seconds),
        "diverged": mean(episode.diverged for episode in episodes),
    }
