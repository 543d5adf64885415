"""Lifetimes made up for tests, so that every number that should come out of them is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agent.continual.life import Episode, Life
from agent.files import plain, write_json

Matrix = Mapping[str, Sequence[float]]
"""R by task: a score per checkpoint, NaN where it was not evaluated."""


def make_matrix(order: str, start: float = 0.0, end: float = 100.0, kept: float = 0.9) -> Matrix:
    """Tasks that go from ``start`` to ``end`` when visited, and at once back to ``kept * end``."""
    matrix = {}
    for task in dict.fromkeys(order):
        row, value = [start], start
        for visited in order:
            value = end if visited == task else value if value == start else kept * end
            row.append(value)
        matrix[task] = row
    return matrix


def make_life(
    agent: str = "engram",
    seed: int = 0,
    order: str = "ABAB",
    *,
    matrix: Matrix | None = None,
    curves: Sequence[Sequence[float]] | None = None,
    batch: int = 5,
    probes: int = 0,
    horizon: int = 100,
    status: Literal["done", "stopped", "crashed"] = "done",
    held_out: str = "",
    drifting: Iterable[int] = (),
    ends: Sequence[float] | None = None,
    recalled: Mapping[int, Mapping[str, Any]] | None = None,
    spread: float = 0.0,
    visits: Mapping[str, Any] | None = None,
    told: Mapping[str, bool] | None = None,
    **changes: Any,
) -> Life:
    """A lifetime that visits the one-letter tasks of ``order``.

    Args:
        agent: Its name.
        seed: Of the lifetime.
        order: Tasks as visited, a letter each.
        matrix: R by task; ``make_matrix(order)`` by default.
        curves: Per visit, the mean return of each batch; by default five steps from the score at
            the start of the visit to the score at its end.
        batch: Episodes per batch.
        probes: Episodes of a visit before the first batch.
        horizon: Steps of every episode.
        status: Of the lifetime; one that is not done lacks the last visit.
        held_out: Tasks that are evaluated only.
        drifting: Visits that are steps of a drift.
        ends: What each visit led to; by default R right after it, on its task.
        recalled: By visit, what is stored as ``recalled``.
        spread: The two episodes of an evaluation lie this far above and below its mean.
        visits: Keys of ``Visit`` that are the same for all visits.
        told: Hints that the protocol gives.
        changes: Other keys of ``Life``.
    """
    if matrix is None:
        never = {task: [0.0] * (len(order) + 1) for task in held_out}
        matrix = {**make_matrix(order), **never}
    lived = len(order) if status == "done" else len(order) - 1
    drifts = set(drifting)
    made = []
    for visit, task in enumerate(order[:lived]):
        scores = list(matrix[task][visit : visit + 2])
        if ends is not None:
            scores[1] = ends[visit]
        values = curves[visit] if curves is not None else _ramp(scores[0], scores[1])
        episodes = probes + batch * len(values)
        steps = {"learn": batch * len(values) * horizon} | (
            {"probe": probes * horizon} if probes else {}
        )
        made.append(
            {
                "visit": visit,
                "task": task,
                "revisit": task in order[:visit],
                "curve": [
                    {"episodes": probes + batch * (n + 1), "return": value}
                    for n, value in enumerate(values)
                ],
                "recalled": dict((recalled or {}).get(visit, {})),
                "env_steps": steps,
                "episodes": episodes,
                "end": [scores[1] - spread, scores[1] + spread],
                "seconds": 2.0,
                "cpu_seconds": 3.0,
                "evaluation_s": 0.1,
            }
            | dict(visits or {})
        )
    tasks = sorted(set(order + held_out))
    budgets = [visit["episodes"] for visit in made]
    budgets += [batch] * (len(order) - lived)
    life = {
        "agent": agent,
        "status": status,
        "error": "ZeroDivisionError: at x.py line 1" if status == "crashed" else None,
        "protocol": {
            "stream": "made_up",
            "family": "nowhere",
            "horizon": horizon,
            "split": "heldout",
            "seed": seed,
            "tasks": {t: {"id": f"{seed}{t}", "label": f"task {t}"} for t in tasks},
            "schedule": [
                {"task": task, "episodes": budgets[visit], "drifting": visit in drifts}
                for visit, task in enumerate(order)
            ],
            "held_out": list(held_out),
            "eval_episodes": 2,
            "told": dict(told or {}),
        },
        "evaluations": [
            {"checkpoint": c, "task": task, "returns": [row[c] - spread, row[c] + spread]}
            for c in range(lived + 1)
            for task, row in matrix.items()
            if c < len(row) and not math.isnan(row[c])
        ],
        "visits": made,
        "evaluation_env_steps": 2 * horizon * len(tasks) * (lived + 1),
        "peak_memory_mib": 200.0,
    }
    return Life.model_validate(life | changes)


def _ramp(start: float, end: float) -> list[float]:
    return [start + (end - start) * n / 4 for n in range(5)]


def make_references(
    life: Life, random: float = 0.0, expert: float = 100.0, **scratch: Any
) -> dict[str, Life]:
    """Reference lifetimes of the same tasks: all of them at ``random``, and at ``expert``.

    ``scratch``: what ``make_life`` takes, for the agent that is reset at each visit.
    """
    seed, order = life.seed, "".join(planned.task for planned in life.protocol.schedule)
    tasks, held_out = "".join(life.protocol.tasks), "".join(life.protocol.held_out)
    low = {task: [random] * (len(order) + len(tasks) + 1) for task in tasks}
    own: dict[str, Any] = {"matrix": low, "held_out": held_out}
    learned: dict[str, Any] = {"ends": [expert] * len(order)} | scratch
    references = {
        "random": make_life("random", seed, order, **own),
        "scratch": make_life("scratch", seed, order, **own | learned),
        "expert": make_life("expert", seed, tasks, matrix=low, ends=[expert] * len(tasks)),
    }
    references["scratch"].protocol.schedule = [
        planned.model_copy() for planned in life.protocol.schedule
    ]
    return references


def make_episodes(life: Life) -> list[Episode]:
    """Episodes whose batches have the means that the curves have."""
    out = []
    for visit in life.visits:
        probes = visit.env_steps.get("probe", 0) // life.protocol.horizon
        first = visit.curve[0].value if visit.curve else 0.0
        values, start = [first] * probes, probes
        for point in visit.curve:
            values += [point.value] * (point.episodes - start)
            start = point.episodes
        for number, value in enumerate(values):
            line = {
                "visit": visit.visit,
                "task": visit.task,
                "purpose": "probe" if number < probes else "learn",
                "episode": number,
                "return": value,
                "length": life.protocol.horizon,
            }
            out.append(Episode.model_validate(line))
    return out


def write_life(folder: Path, life: Life, episodes: Sequence[Episode] | None = None) -> None:
    """Store a lifetime; ``make_episodes(life)`` where no episodes are given."""
    write_json(folder / "life.json", life.model_dump(by_alias=True))
    lines = make_episodes(life) if episodes is None else episodes
    text = "".join(f"{_line(episode)}\n" for episode in lines)
    (folder / "episodes.jsonl").write_text(text)


def _line(episode: Episode) -> str:
    return json.dumps(plain(episode.model_dump(by_alias=True)))


def write_run(
    run: Path, lives: Iterable[Life], references: Iterable[Mapping[str, Life]] = ()
) -> Path:
    """A run folder: ``lifetimes/`` and, where there are any, the reference lifetimes by kind."""
    for life in lives:
        write_life(run / "lifetimes" / f"{life.agent}-{life.seed}", life)
    index: dict[str, dict[str, str]] = {}
    for kinds in references:
        for kind, life in kinds.items():
            folder = f"references/{kind}-{life.seed}"
            write_life(run / folder, life)
            index.setdefault(kind, {})[str(life.seed)] = folder
    if index:
        write_json(run / "references.json", index)
    return run
