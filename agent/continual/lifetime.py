"""The lifetime runner: one agent on one stream with one seed, interruptible between visits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import stats
from torch import Tensor

from agent.continual.agents import StreamAgent
from agent.continual.visit import Visit
from agent.policy import GaussianMlp
from agent.rollout import TaskBatch
from agent.run import Run
from agent.seeding import generator
from envs.task import Split, Task, TaskDistribution, TaskError


@dataclass(kw_only=True, config={"extra": "forbid"})
class Stream:
    """Visits to tasks in an order; a task's name is its identity, its place in the order is not."""

    name: str
    """Name of the stream, for files and reports."""
    order: Annotated[list[str], Field(min_length=1)]
    """Names of the tasks visited; a name that comes again is a re-visit."""
    budget_episodes: Annotated[int, Field(ge=1)] = 60
    """Episodes of a visit, probes included; the same for every agent."""
    eval_episodes: Annotated[int, Field(ge=1)] = 8
    """Episodes of the deterministic policy that measure start and end; they teach nothing."""
    split: Split = "heldout"
    """Where the tasks are drawn from."""

    def draw(self, family: TaskDistribution, seed: int) -> dict[str, Task]:
        """The tasks behind the names, distinct, for one lifetime."""
        names = sorted(set(self.order))
        rng = generator(seed, "stream")
        tasks = family.sample(len(names), rng, self.split, distinct=True)
        if len(tasks) < len(names):
            raise TaskError(
                f"stream {self.name!r} names {len(names)} tasks, "
                f"but {family.name!r} has only {len(tasks)}"
            )
        return dict(zip(names, tasks, strict=True))

    def revisits(self) -> list[bool]:
        """For each visit, whether its task was met before."""
        return [name in self.order[:i] for i, name in enumerate(self.order)]


@dataclasses.dataclass(frozen=True)
class World:
    """Everything of a lifetime that is not the agent."""

    stream: Stream
    family: TaskDistribution
    policy: GaussianMlp
    seed: int


def live(
    agent: StreamAgent,
    world: World,
    run: Run,
    on_visit: Callable[[dict[str, Any]], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]] | None:
    """Live through the stream, from the visit that the run folder has got to.

    Returns a record per visit (``summary.json``), or None if ``should_stop`` said so between two.
    """
    saved = run.checkpoints.load()
    records: list[dict[str, Any]] = []
    if saved is not None:
        tensors, progress = saved
        agent.load_state_dict(tensors)
        records = progress["visits"]
    tasks = world.stream.draw(world.family, world.seed)
    for number in range(len(records), len(world.stream.order)):
        if should_stop():
            return None
        record = visit_task(agent, world, tasks[world.stream.order[number]], number)
        records = [*records, _with_origin(record, records)]
        run.checkpoints.save(agent.state_dict(), {"visits": records})
        on_visit(record)
    return records


def visit_task(agent: StreamAgent, world: World, task: Task, number: int) -> dict[str, Any]:
    """One visit: begin, measure, improve until the budget is spent, measure, end."""
    stream, family = world.stream, world.family
    started, curve = time.perf_counter(), []
    rng = generator(world.seed, "visit", number)
    with Visit(family, task, world.policy, stream.budget_episodes, rng) as visit:
        recalled = agent.begin(visit)
        start = measure(agent.params, world, task)
        while visit.remaining > 0 or agent.pending:
            agent.improve(visit)
            curve.append(
                {"episodes": stream.budget_episodes - visit.remaining, "return": agent.score}
            )
        end = measure(agent.params, world, task)
        written = agent.end()
        return {
            "seed": world.seed,
            "visit": number,
            "name": stream.order[number],
            "task": {"id": task.id, "label": family.label(task), "values": dict(task.values)},
            "revisit": stream.revisits()[number],
            "start": start,
            "end": end,
            "curve": curve,
            "recalled": recalled,
            "written": written,
            "env_steps": visit.steps_used,
            "seconds": time.perf_counter() - started,
            "physics_s": visit.physics_s,
        }


def measure(params: Tensor, world: World, task: Task) -> float:
    """Mean return of the deterministic policy, on simulators of its own: measuring cannot teach.

    The starts depend on the lifetime and the task alone, so all agents and visits are compared on
    the same ones.
    """
    rng = generator(world.seed, "evaluation", int(task.id, 16))
    with TaskBatch(world.family, [task], world.stream.eval_episodes, world.policy, rng) as batch:
        return float(batch.collect(params, deterministic=True).mean_return())


def _with_origin(record: dict[str, Any], before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record with the visit that last wrote the recalled row, which the agent does not know."""
    row = record["recalled"].get("row")
    if row is None:
        return record
    writers = [r["visit"] for r in before if r["written"].get("row") == row]
    origin = writers[-1] if writers else None
    return record | {"recalled": record["recalled"] | {"of_visit": origin}}


def metrics(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean return at the start and the end of first visits and of re-visits."""
    out = {}
    for kind, again in (("first", False), ("revisit", True)):
        chosen = [r for r in records if r["revisit"] is again]
        for point in ("start", "end"):
            # A return that could not be measured is NaN, and null once it went through a file.
            values = [float("nan") if r[point] is None else r[point] for r in chosen]
            out[f"{kind}.{point}"] = float(np.mean(values)) if values else float("nan")
    return out


def intervals(records: Sequence[dict[str, Any]]) -> dict[str, list[float] | None]:
    """95 % intervals of ``metrics`` over lifetimes (Student's t); None with fewer than two."""
    seeds = sorted({r["seed"] for r in records})
    each = [metrics([r for r in records if r["seed"] == seed]) for seed in seeds]
    out: dict[str, list[float] | None] = {}
    for key in each[0]:
        values = np.array([m[key] for m in each])
        if len(values) < 2:
            out[key] = None
            continue
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        out[key] = [float(values.mean() - half), float(values.mean() + half)]
    return out


def memory_rows(agent: StreamAgent, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The memory's rows at the end of a life, with the tasks they were written at (for readers)."""
    rows = []
    for facts in agent.memory_facts():
        writers = [r for r in records if r["written"].get("row") == facts["row"]]
        origin = writers[-1] if writers else None
        rows.append(
            {"seed": records[0]["seed"]}
            | facts
            | {
                "written_at_visit": origin["visit"] if origin else None,
                "task": origin["task"]["label"] if origin else None,
            }
        )
    return rows
