"""What is written down of a lifetime while it is lived, and what is left of it after a kill."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from agent.continual.life import Episode, Life, Planned, Point, Recalled, Visit
from agent.files import plain, write_atomic, write_json


class Diary:
    """A ``Life`` in the making: visits that are over, the one that is not, and every episode."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.episodes: list[Episode] = []
        """Of the whole life."""
        self.current = self._fresh(0)
        """The visit that is lived now."""
        self._act_ms: list[float] = []
        self._resume_clock()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time for which the agent is not charged: it is the current visit's evaluation."""
        self._tick()
        started = self._wall
        yield
        self._resume_clock()
        self.current.evaluation_s += self._wall - started

    def recalled(self, facts: Mapping[str, Any], began_s: float) -> None:
        """What the memory brought up at the start of the current visit, by rows and by names."""
        self.current.recalled = _recalled(facts, self.life.visits)
        self.current.begin_s = began_s

    def acted(self, new: Sequence[Episode], score: float, act_s: Sequence[float]) -> None:
        """Episodes of the current visit, as a batch that was learned from."""
        self.episodes += new
        self._act_ms += [1000 * s for s in act_s]
        self.current.episodes += len(new)
        point = {"episodes": self.current.episodes, "return": score}
        self.current.curve.append(Point.model_validate(point))

    def over(
        self,
        env_steps: Mapping[Any, int],
        physics_s: float,
        written: Mapping[str, Any],
        state: Mapping[str, Tensor],
    ) -> None:
        """The current visit is over; the next one is the current."""
        self._tick()
        now = self.current
        now.env_steps, now.physics_s, now.written = dict(env_steps), physics_s, dict(written)
        if self._act_ms:
            p50, p95 = np.percentile(self._act_ms, [50, 95])
            now.act_ms = {"p50": float(p50), "p95": float(p95)}
        now.state_bytes = bytes_by_kind(state)
        self.life.visits.append(now)
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.life.peak_memory_mib = usage / 1024
        if len(self.life.visits) < len(self.life.protocol.schedule):
            self.current = self._fresh(len(self.life.visits))
        self._act_ms = []

    def finish(self, executed: Sequence[tuple[str, str]]) -> None:
        """The life is over. ``executed``: name and id of the task of each visit, in order."""
        self.life.deviations = _deviations(self.life, executed, self.episodes)
        self.life.status = "done"

    def state(self) -> dict[str, Any]:
        """Everything but the episodes, as JSON's own types."""
        self._tick()
        return {
            "life": self.life.model_dump(by_alias=True),
            "current": self.current.model_dump(by_alias=True),
            "act_ms": self._act_ms,
            "episodes": len(self.episodes),
        }

    def restore(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a saved state; what was written after it is forgotten."""
        self.life = Life.model_validate(state["life"])
        self.current = Visit.model_validate(state["current"])
        self._act_ms = list(state["act_ms"])
        path = folder / "episodes.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = lines[: state["episodes"]]
        self.episodes = [Episode.model_validate(json.loads(line)) for line in kept]
        self._resume_clock()

    def write(self, folder: Path) -> None:
        """``life.json`` and ``episodes.jsonl`` as they stand."""
        text = "".join(
            json.dumps(plain(e.model_dump(by_alias=True)), allow_nan=False) + "\n"
            for e in self.episodes
        )
        write_atomic(folder / "episodes.jsonl", text.encode())
        write_json(folder / "life.json", self.life.model_dump(by_alias=True))

    def _fresh(self, number: int) -> Visit:
        schedule = self.life.protocol.schedule
        task = schedule[number].task
        again = task in [planned.task for planned in schedule[:number]]
        visit = Visit(visit=number, task=task, revisit=again, episodes=0)
        visit.seconds = visit.cpu_seconds = visit.evaluation_s = 0.0
        return visit

    def _resume_clock(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _tick(self) -> None:
        """Charge the time since the last look to the current visit."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.current.seconds += wall - self._wall
        self.current.cpu_seconds += cpu - self._cpu
        self._wall, self._cpu = wall, cpu


def bytes_by_kind(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes that an agent carries, by the first part of the names in its state."""
    out: dict[str, int] = {}
    for name, value in state.items():
        kind = name.partition(".")[0]
        if kind != "visit":  # of the visit in progress, gone when it is over
            out[kind] = out.get(kind, 0) + value.nbytes
    return out


def _recalled(facts: Mapping[str, Any], before: Sequence[Visit]) -> Recalled:
    """With the tasks that rows were last written at, which the agent does not know."""
    writers = {v.written["row"]: v for v in before if v.written.get("row") is not None}
    posterior: Mapping[int, float] = facts.get("posterior", {})
    weights: dict[str, float] = {}
    ranked = [writers[row].task for row in posterior if row in writers]
    for row, weight in posterior.items():
        if row in writers:
            weights[writers[row].task] = weights.get(writers[row].task, 0.0) + weight
    origin = writers.get(facts.get("row"))
    named = {
        "of_task": origin.task if origin else None,
        "of_visit": origin.visit if origin else None,
        "weights": weights,
        "ranked": list(dict.fromkeys(ranked)),
    }
    own = {key: value for key, value in facts.items() if key != "posterior"}
    return Recalled.model_validate(own | named) if facts else Recalled()


def _deviations(
    life: Life, executed: Sequence[tuple[str, str]], episodes: Sequence[Episode]
) -> list[str]:
    """Where what was executed is not what was declared."""
    schedule, tasks, out = life.protocol.schedule, life.protocol.tasks, []
    if len(executed) != len(schedule):
        out.append(f"{len(executed)} visits were made, {len(schedule)} declared")
    for number, (planned, (name, task_id)) in enumerate(zip(schedule, executed, strict=False)):
        acted = [e for e in episodes if e.visit == number]
        out += _visit_deviations(number, planned, name, len(acted))
        if task_id != tasks[planned.task].id:
            out.append(f"visit {number}: task {task_id}, declared {tasks[planned.task].id}")
        if any(e.task != planned.task for e in acted):
            out.append(f"visit {number}: has episodes of another task than {planned.task!r}")
    return out


def _visit_deviations(number: int, planned: Planned, name: str, episodes: int) -> list[str]:
    out = []
    if name != planned.task:
        out.append(f"visit {number}: was to {name!r}, declared {planned.task!r}")
    if episodes != planned.episodes:
        out.append(f"visit {number}: {episodes} episodes, declared {planned.episodes}")
    return out
