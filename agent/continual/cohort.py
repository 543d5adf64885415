"""Many lifetimes: every agent with every seed on one stream, and what they come to together."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from agent.continual.agents import StreamAgent
from agent.continual.lifetime import Stream, World, intervals, live, memory_rows, metrics
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.progress import Live, Stopped, stop_on_signals
from agent.run import Run
from envs.task import TaskDistribution


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What all lifetimes share."""

    stream: Stream
    family: TaskDistribution
    learner: MetaLearner
    probes: TrainingProbes
    run: Run

    @property
    def origin(self) -> str:
        """Names the meta-initialisation: lifetimes born from another one are not continued."""
        state = self.learner.state_dict() | self.probes.state_dict()
        digest = hashlib.sha256()
        for name in sorted(state):
            digest.update(name.encode() + state[name].detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Life:
    """One lifetime as it was lived."""

    agent: str
    visits: list[dict[str, Any]]
    memory: list[dict[str, Any]]
    lived: bool
    """Whether any of it was lived just now, rather than by an earlier run of the same command."""


def live_all(agents: Mapping[str, Any], seeds: list[int], cohort: Cohort) -> list[Life]:
    """Every agent with every seed, one after another.

    Raises:
        Stopped: Somebody asked to stop; all whole visits are saved.
    """
    stream = cohort.stream
    per_visit = stream.budget_episodes * cohort.family.horizon
    total = len(agents) * len(seeds) * len(stream.order) * per_visit
    lives: list[Life] = []
    with Live("stream", total) as progress, stop_on_signals() as stop:
        for seed in seeds:
            for name, agent in agents.items():

                def show(record: dict[str, Any], name: str = name) -> None:
                    done = len(lives) * len(stream.order) + record["visit"] + 1
                    progress.update(done * per_visit, _note(name, record, len(stream.order)))

                life = _live_one(name, agent, seed, cohort, show, lambda: stop.requested)
                if life is None:
                    raise Stopped(
                        f"Stopped between two visits; saved in {cohort.run.folder}. "
                        "The same command continues.",
                        stop.signal,
                    )
                lives.append(life)
    return lives


def _live_one(
    name: str,
    agent: StreamAgent,
    seed: int,
    cohort: Cohort,
    show: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
) -> Life | None:
    """One lifetime, on from where its folder is; None if it was stopped."""
    run = Run(cohort.run.folder / "lifetimes" / f"{name}-{seed}")
    config = {
        "agent": dataclasses.asdict(agent),  # pyright: ignore[reportArgumentType]
        "stream": dataclasses.asdict(cohort.stream),  # pyright: ignore[reportArgumentType]
        "family": dataclasses.asdict(cohort.family),
        "seed": seed,
        "meta_initialisation": cohort.origin,
    }
    run.claim(config)
    agent.setup(cohort.learner, cohort.probes, seed)
    before = run.progress()
    world = World(cohort.stream, cohort.family, cohort.learner.policy, seed)
    visits = live(agent, world, run, show, should_stop)
    if visits is None:
        return None
    rows = memory_rows(agent, visits)
    agent.save_memory(run.folder / "memory", {r["row"]: r["task"] or "" for r in rows})
    return Life(name, visits, rows, run.progress() != before)


def _note(name: str, record: dict[str, Any], visits: int) -> str:
    rows = record["written"].get("rows", 0)
    return (
        f"{name} seed {record['seed']} visit {record['visit'] + 1}/{visits} ({record['name']}) | "
        f"{record['env_steps'] / record['seconds']:,.0f}/s | "
        f"return {record['start']:.0f} -> {record['end']:.0f} | memory {rows} rows"
    )


def summarise(lives: list[Life], cohort: Cohort) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    agents: dict[str, Any] = {}
    for name in dict.fromkeys(life.agent for life in lives):
        mine = [life for life in lives if life.agent == name]
        visits = [visit for life in mine for visit in life.visits]
        agents[name] = {
            "visits": visits,
            "metrics": metrics(visits),
            "intervals": intervals(visits),
            "memory": [row for life in mine for row in life.memory],
        }
    every = [visit for life in lives for visit in life.visits]
    seconds = sum(visit["seconds"] for visit in every)
    return {
        "stream": dataclasses.asdict(cohort.stream)  # pyright: ignore[reportArgumentType]
        | {"family": cohort.family.id, "horizon": cohort.family.horizon},
        "seeds": sorted({visit["seed"] for visit in every}),
        "env_steps": sum(visit["env_steps"] for visit in every),
        "seconds": seconds,
        "physics_share": sum(visit["physics_s"] for visit in every) / seconds,
        "agents": agents,
    }
