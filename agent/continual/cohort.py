"""Many lifetimes: every agent with every seed on one stream, and those that they are scaled by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from agent.continual.agents import StreamAgent
from agent.continual.detecting import Detecting, Detection
from agent.continual.evaluation import digest
from agent.continual.life import Hints, Life, Planned, read_life
from agent.continual.lifetime import Watch, World, live
from agent.continual.stream import Plan, Stream
from agent.files import plain, write_json
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.run import Run
from envs.task import TaskDistribution

Kind = Literal["life", "random", "scratch", "expert"]
"""A lifetime under test, or one of the three that scores are scaled by."""


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What all lifetimes share."""

    stream: Stream
    family: TaskDistribution
    learner: MetaLearner
    probes: TrainingProbes
    detection: Detection
    expert_times: int = 5
    """Budget of an expert in each task, in visits of the stream."""

    @property
    def origin(self) -> str:
        """Names the meta-initialisation: lifetimes born from another one are not continued."""
        return digest(self.learner.state_dict() | self.probes.state_dict())[:16]

    def world(self, seed: int, kind: Kind = "life") -> World:
        """The world of one lifetime."""
        world = World.of(self.stream, self.family, self.learner.policy, seed, self.origin)
        if kind == "life":
            return world
        # References live where there is nothing to be found out: single tasks, boundaries told.
        plan = reference_plan(world.plan, kind, self.expert_times)
        return dataclasses.replace(world, plan=plan, told=Hints(task=False, boundary=True))

    def describe(self, agent: StreamAgent, seed: int, kind: Kind) -> dict[str, Any]:
        """Everything that a lifetime is made from, as JSON's own types."""
        world = self.world(seed, kind)
        return plain(
            {
                "agent": settings_of(agent),
                "stream": dataclasses.asdict(self.stream),  # pyright: ignore[reportArgumentType]
                "family": dataclasses.asdict(self.family),
                "seed": seed,
                "meta_initialisation": self.origin,
                "plan": [planned.model_dump() for planned in world.plan.visits],
                "told": world.told.model_dump(),
                "detection": None
                if world.knows(agent).boundary
                else dataclasses.asdict(self.detection),  # pyright: ignore[reportArgumentType]
            }
        )


def settings_of(agent: StreamAgent) -> dict[str, Any]:
    """The class of an agent and its settings."""
    cls = type(agent)
    target = f"{cls.__module__}.{cls.__qualname__}"
    return {"_target_": target} | dataclasses.asdict(agent)  # pyright: ignore[reportArgumentType]


def content_hash(config: Mapping[str, Any]) -> str:
    """Names a lifetime by everything that it is made from."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def reference_plan(plan: Plan, kind: Kind, expert_times: int) -> Plan:
    """The visits of a lifetime that scores are scaled by.

    random: measured on every task before its one visit; scratch: the stream itself; expert: every
    task once, for longer.
    """
    if kind == "scratch":
        return plan
    first, *others = plan.scored()
    if kind == "random":
        return Plan(plan.tasks, [Planned(task=first, episodes=1)], others)
    longest = {v.task: v.episodes for v in sorted(plan.visits, key=lambda v: v.episodes)}
    usual = max(longest.values())
    visits = [
        Planned(task=name, episodes=expert_times * longest.get(name, usual))
        for name in plan.scored()
    ]
    return Plan(plan.tasks, visits, [])


def live_one(
    name: str,
    agent: StreamAgent,
    seed: int,
    cohort: Cohort,
    folder: Path,
    kind: Kind = "life",
    watch: Watch | None = None,
) -> Life | None:
    """One lifetime, on from where its folder is; None if it was stopped.

    One that fails is a lifetime too: it says why in ``life.json`` and ``crash.txt``.

    Raises:
        RunError: Another process lives it, or the folder holds a lifetime of other settings.
    """
    run = Run(folder)
    with run.lock():
        config = cohort.describe(agent, seed, kind)
        run.claim(config)
        world = cohort.world(seed, kind)
        lived = agent if world.knows(agent).boundary else Detecting(agent, cohort.detection)
        try:
            lived.setup(cohort.learner, cohort.probes, seed)
            life = live(lived, world, run, name, watch, content_hash(config))
        except Exception as error:  # whatever a user's agent does, the other lifetimes go on
            return _crashed(run, name, world, lived, error, content_hash(config))
        if life is not None:
            lived.save_memory(folder / "memory", _labels(life))
            (folder / "crash.txt").unlink(missing_ok=True)
        return life


def _labels(life: Life) -> dict[int, str]:
    """The tasks that rows were last written at, in words."""
    tasks = life.protocol.tasks
    rows = {v.written.get("row"): tasks[v.task].label for v in life.visits}
    return {row: label for row, label in rows.items() if row is not None}


def _crashed(
    run: Run, name: str, world: World, agent: StreamAgent, error: Exception, job: str
) -> Life:
    """The life up to its last save, marked; the same command tries again from there."""
    path = run.folder / "life.json"
    life = Life(
        agent=name,
        status="crashed",
        protocol=world.protocol(),
        knew=world.knows(agent),
        job=job,
    )
    life = read_life(run.folder) if path.is_file() else life
    where = traceback.extract_tb(error.__traceback__)[-1]
    life.status = "crashed"
    life.error = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    (run.folder / "crash.txt").write_text("".join(traceback.format_exception(error)))
    if not (run.folder / "episodes.jsonl").is_file():
        (run.folder / "episodes.jsonl").write_text("")
    write_json(path, life.model_dump(by_alias=True))
    return life
