"""From the lifetimes of a run to samples, comparisons and scores by task.

The random, scratch and expert references of a lifetime have its own seed, so what they vary by is
in its metrics already, and is drawn again with it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np

from agent.continual.life import Life, Protocol
from agent.continual.metrics.catalog import METRICS
from agent.continual.metrics.references import References
from agent.continual.metrics.scores import normalise, scores_of
from agent.continual.results import Results
from agent.continual.statistics.comparison import Comparison, compare, corrected
from agent.continual.statistics.estimate import Interval, Sample, sample
from agent.continual.statistics.intervals import Array
from agent.files import BadFileError

STAND_IN = "random"
"""The agent whose score a crashed lifetime is given, if it lived on the stream, too."""
_BY_SEED = {"seed", "tasks", "schedule"}


def sample_of(results: Results, metric: str, agent: str, stand_in: str | None = STAND_IN) -> Sample:
    """A metric of an agent: crashed lifetimes in their places, unfinished ones left out."""
    status = {life.seed: life.status for life in results.lives if life.agent == agent}
    values = results.values(metric, agent)
    ended = {seed: values.get(seed, math.nan) for seed in status if status[seed] != "stopped"}
    crashed = [seed for seed in ended if status[seed] == "crashed"]
    given = None
    if stand_in is not None and stand_in != agent and stand_in in results.agents:
        given = results.values(metric, stand_in)
    made = sample(ended, crashed, given, METRICS[metric].better)
    notes = list(made.notes)
    if unfinished := len(status) - len(ended):
        notes.append(f"{unfinished} unfinished, left out")
    if deviating := sum(bool(life.deviations) for life in results.lives if life.agent == agent):
        notes.append(f"{deviating} with deviations from the protocol")
    return Sample(made.values, made.failed, notes)


def compare_agents(
    results: Results,
    first: str,
    others: Sequence[str],
    metrics: Sequence[str],
    rng: np.random.Generator,
    *,
    paired: bool = True,
    level: float = 0.95,
    interval: Interval = "t",
    stand_in: str | None = STAND_IN,
) -> dict[tuple[str, str], Comparison]:
    """The first agent with each of the others in each metric: by (metric, other).

    ``p_holm`` is corrected for all of them together.

    Raises:
        BadFileError: The agents did not live under one protocol.
    """
    check_comparable(results, [first, *others])
    found = {
        (metric, other): compare(
            sample_of(results, metric, first, stand_in),
            sample_of(results, metric, other, stand_in),
            rng,
            better=METRICS[metric].better,
            paired=paired,
            level=level,
            interval=interval,
        )
        for metric in metrics
        for other in others
    }
    return corrected(found)


def task_scores(results: Results, agent: str) -> tuple[list[str], Array]:
    """Names of the visited tasks, and final normalised scores ``[runs, tasks]``.

    A crashed lifetime scores 0 on every task, as the random policy does, or what the agent's worst
    lifetime does if that is less. NaN without references. Unfinished lifetimes are left out.
    """
    lives = [life for life in results.lives if life.agent == agent and life.status != "stopped"]
    visits = [visit for life in lives for visit in life.protocol.schedule if not visit.drifting]
    tasks = sorted({visit.task for visit in visits})
    scores = np.full((len(lives), len(tasks)), math.nan)
    for row, life in zip(scores, lives, strict=True):
        if life.status == "done":
            row[:] = _final(results, life, tasks)
    failed = np.array([life.status == "crashed" for life in lives], dtype=bool)
    lived = scores[~failed]
    if failed.any() and len(lived):
        scores[failed] = np.minimum(lived.min(axis=0), 0.0)
    return tasks, scores


def protocol_hash(protocol: Protocol) -> str:
    """The same for all lifetimes that can be compared, whatever their seed, tasks and order."""
    shared = protocol.model_dump(mode="json", exclude=_BY_SEED)
    visits = [planned.model_dump(mode="json") for planned in protocol.schedule]
    shared["schedule"] = sorted(visits, key=lambda visit: json.dumps(visit, sort_keys=True))
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def check_comparable(results: Results, agents: Sequence[str]) -> None:
    """See that the agents lived under one protocol, with the same tasks for the same seed.

    Raises:
        BadFileError: They did not; the message names a field that differs.
    """
    first_of: dict[int, Life] = {}
    settled: Life | None = None
    for life in results.lives:
        if life.agent not in agents:
            continue
        settled = settled or life
        twin = first_of.setdefault(life.seed, life)
        differing = _differing(settled.protocol, life.protocol, _BY_SEED)
        for key in [*differing, *_differing(twin.protocol, life.protocol, set())]:
            other = settled if key in differing else twin
            raise BadFileError(
                f"{other.agent} with seed {other.seed} and {life.agent} with seed {life.seed} "
                f"cannot be compared: {key} of their protocols differs. "
                "Were settings of the stream changed between the lifetimes?"
            )


def _differing(first: Protocol, second: Protocol, but: set[str]) -> list[str]:
    ours, theirs = first.model_dump(exclude=but), second.model_dump(exclude=but)
    return [key for key in ours if ours[key] != theirs[key]]


def _final(results: Results, life: Life, tasks: Sequence[str]) -> list[float]:
    kinds = {kind: results.references.get((kind, life.seed)) for kind in ("random", "expert")}
    low, high, _ = References(**kinds).bounds(life)
    matrix = normalise(scores_of(life), low, high).matrix
    return [float(matrix[task][-1]) if task in matrix else math.nan for task in tasks]
