"""Whether an agent that is not told notices that its task has changed, and what it takes it for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from agent.continual.life import Life
from agent.continual.metrics.metric import Metric, mean, ratio

METRICS = [
    Metric(
        "change.delay",
        "Mean over the changes that were noticed of the episodes between the change and the first "
        "detection before the next one. A change is the start of a visit to another task, and of a "
        "drift its first step. NaN where boundaries are told.",
        "episodes",
        "low",
    ),
    Metric(
        "change.misses",
        "Share of the changes with no detection before the next one, or before the end. NaN where "
        "boundaries are told.",
        "share",
        "low",
    ),
    Metric(
        "change.false_alarms",
        "Detections before the first change, and after one that was noticed already, per 10,000 "
        "env steps of the lifetime. NaN where boundaries are told.",
        "1/10k steps",
        "low",
    ),
    Metric(
        "change.purity",
        "Share of the episodes, drifts left out, that belong to the commonest true task among "
        "those of the same inferred task. 1 is also reached by a new task for each episode: see "
        "change.ari.",
        "share",
        "high",
    ),
    Metric(
        "change.ari",
        "Agreement of inferred and true tasks over pairs of episodes, drifts left out: 1 is the "
        "same division, 0 what chance would give.",
        "index",
        "high",
        "adjusted Rand index of Hubert & Arabie (1985)",
    ),
    Metric(
        "rows_per_task",
        "Rows in memory after the last visit, over distinct tasks visited, drifts left out.",
        "rows",
        source="",
    ),
]


def change(life: Life) -> dict[str, float]:
    """The metrics of this group."""
    out = _detection(life) | _inference(life)
    schedule = life.protocol.schedule
    tasks = {planned.task for planned in schedule if not planned.drifting}
    rows = life.visits[-1].written.get("rows") if life.visits else None
    if rows is not None:
        out["rows_per_task"] = ratio(float(rows), len(tasks))
    return out


def changes(life: Life) -> list[int]:
    """Episodes of the life that were over when its task changed."""
    schedule, over, out = life.protocol.schedule, 0, []
    for visit in life.visits:
        before = schedule[visit.visit - 1] if visit.visit else None
        if before and not before.drifting and before.task != visit.task:
            out.append(over)
        over += visit.episodes
    return out


def delays(life: Life) -> list[int | None]:
    """For each change, the episodes until it was noticed; None if it was not."""
    true = changes(life)
    ends = [*true[1:], sum(visit.episodes for visit in life.visits)]
    out: list[int | None] = []
    for start, end in zip(true, ends, strict=True):
        # What is said when no episode of the new task is over yet is no answer to it.
        noticed = [episode for episode in sorted(life.detected) if start < episode <= end]
        out.append(noticed[0] - start if noticed else None)
    return out


def _detection(life: Life) -> dict[str, float]:
    if life.protocol.told.boundary or life.knew.boundary:
        return {}
    found = delays(life)
    hits = [delay for delay in found if delay is not None]
    steps = sum(sum(visit.env_steps.values()) for visit in life.visits)
    return {
        "change.delay": mean(hits),
        "change.misses": mean(delay is None for delay in found),
        "change.false_alarms": ratio(1e4 * (len(life.detected) - len(hits)), steps),
    }


def _inference(life: Life) -> dict[str, float]:
    schedule = life.protocol.schedule
    true = [
        (visit.task, not schedule[visit.visit].drifting)
        for visit in life.visits
        for _ in range(visit.episodes)
    ]
    if not life.inferred or len(life.inferred) < len(true):
        return {}
    pairs = [(i, task) for i, (task, counts) in zip(life.inferred, true, strict=False) if counts]
    inferred, tasks = [i for i, _ in pairs], [task for _, task in pairs]
    return {
        "change.purity": purity(inferred, tasks),
        "change.ari": adjusted_rand_index(inferred, tasks),
    }


def purity(inferred: Sequence[Hashable], true: Sequence[Hashable]) -> float:
    """Share of the items that are of the commonest true kind of their inferred kind."""
    commonest: dict[Hashable, int] = {}
    for (group, _), count in Counter(zip(inferred, true, strict=True)).items():
        commonest[group] = max(commonest.get(group, 0), count)
    return ratio(sum(commonest.values()), len(true))


def adjusted_rand_index(inferred: Sequence[Hashable], true: Sequence[Hashable]) -> float:
    """Agreement of two divisions, corrected for chance; 1 where both are trivial and equal."""

    def pairs(labels: Sequence[Hashable]) -> int:
        return sum(math.comb(count, 2) for count in Counter(labels).values())

    both = pairs(list(zip(inferred, true, strict=True)))
    one, other, every = pairs(inferred), pairs(true), math.comb(len(true), 2)
    chance = ratio(one * other, every)
    most = (one + other) / 2
    return 1.0 if most == both == chance else ratio(both - chance, most - chance)
