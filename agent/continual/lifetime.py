"""The lifetime runner: one agent on one stream with one seed, exact to continue at any moment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from agent.continual.agents import StreamAgent
from agent.continual.diary import Diary
from agent.continual.evaluation import Actor, Evaluator
from agent.continual.life import Hints, Life, Protocol
from agent.continual.metrics.plasticity import plasticity
from agent.continual.stream import Plan, Stream
from agent.continual.visit import Hint, Segment, Visit
from agent.policy import GaussianMlp
from agent.run import Run
from agent.seeding import generator
from envs.task import TaskDistribution


class IdleAgentError(RuntimeError):
    """An agent would leave budget unused for ever."""


@dataclasses.dataclass(frozen=True)
class World:
    """Everything of a lifetime that is not the agent."""

    stream: Stream
    family: TaskDistribution
    policy: GaussianMlp
    seed: int
    plan: Plan
    """The visits, as drawn for this seed."""
    told: Hints
    """What every agent is told."""
    init: str = ""
    """Names the meta-initialisation."""

    @classmethod
    def of(
        cls,
        stream: Stream,
        family: TaskDistribution,
        policy: GaussianMlp,
        seed: int,
        init: str = "",
    ) -> World:
        """The world of one lifetime of a stream."""
        plan = stream.plan(family, seed)
        return cls(stream, family, policy, seed, plan, stream.told.hints, init)

    def knows(self, agent: StreamAgent) -> Hints:
        """What this agent is told: what all are told, and what it cannot do without."""
        task = self.told.task or agent.needs.task
        return Hints(task=task, boundary=self.told.boundary or agent.needs.boundary or task)

    def protocol(self) -> Protocol:
        """What is written down, so that lifetimes can be compared."""
        return Protocol(
            stream=self.stream.name,
            family=self.family.id,
            horizon=self.family.horizon,
            split=self.stream.split,
            seed=self.seed,
            init=self.init,
            tasks=self.plan.infos(self.family),
            schedule=self.plan.visits,
            held_out=self.plan.held_out,
            eval_episodes=self.stream.eval_episodes,
            told=self.told,
        )


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who looks on: what to call after each batch, when to stop, how often to save."""

    show: Callable[[Diary], None] = lambda diary: None
    should_stop: Callable[[], bool] = lambda: False
    save_every_s: float = 120.0
    """Wall seconds between saves within a visit; the end of a visit is always saved."""


def live(
    agent: StreamAgent,
    world: World,
    run: Run,
    name: str,
    watch: Watch | None = None,
    job: str = "",
) -> Life | None:
    """Live through the stream, from wherever the run folder has got to.

    Returns the life, or None if ``watch`` said to stop before its end; all of it is saved.
    """
    life = _Lifetime(agent, world, run, name, watch or Watch(), job)
    return life.diary.life if life.live() else None


class _Lifetime:
    """The state of ``live``."""

    def __init__(
        self, agent: StreamAgent, world: World, run: Run, name: str, watch: Watch, job: str
    ) -> None:
        self.agent, self.world, self.run, self.watch = agent, world, run, watch
        self.plan, self.knew = world.plan, world.knows(agent)
        protocol = world.protocol()
        life = Life(agent=name, status="stopped", protocol=protocol, knew=self.knew, job=job)
        self.diary = Diary(life)
        self.executed: list[tuple[str, str]] = []
        self.saved_at = time.perf_counter()

    def live(self) -> bool:
        """Live on; whether the end was reached."""
        saved = self.run.checkpoints.load()
        unfinished = None
        if saved is not None:
            tensors, progress = saved
            self.agent.load_state_dict(tensors)
            self.diary.restore(progress["diary"], self.run.folder)
            self.executed = [(name, task) for name, task in progress["executed"]]
            unfinished = progress["visit"]
        if self.diary.life.status == "done":
            return True
        size = self.world.stream.eval_episodes
        with Evaluator(self.world.family, self.world.policy, size, self.world.seed) as evaluator:
            self.evaluator = evaluator
            for segments in self._remaining():
                if not self._visit(segments, unfinished):
                    return False
                unfinished = None
        self.diary.finish(self.executed)
        self._save(None)
        return True

    def _remaining(self) -> list[list[Segment]]:
        """The visits not yet over: one by one, or as one where boundaries are hidden."""
        tasks, over = self.plan.tasks, len(self.diary.life.visits)
        segments = [
            Segment(number, planned.task, tasks[planned.task], planned.episodes)
            for number, planned in enumerate(self.plan.visits)
        ]
        if self.knew.boundary:
            return [[segment] for segment in segments[over:]]
        return [segments] if over < len(segments) else []

    def _visit(self, segments: list[Segment], unfinished: dict[str, Any] | None) -> bool:
        """One visit, or the endless one; False if it was stopped."""
        agent, diary, number = self.agent, self.diary, segments[0].number
        rng = generator(self.world.seed, "visit", number)
        hint = Hint(segments[0].name) if self.knew.task else None
        with Visit(self.world.family, segments, self.world.policy, rng, hint) as visit:
            if unfinished is not None:
                visit.load_state_dict(unfinished)
            else:
                if number == 0:
                    self._evaluate(0)
                physics, started = visit.physics_s, time.perf_counter()
                facts = agent.begin(visit)
                began = time.perf_counter() - started - (visit.physics_s - physics)
                diary.recalled(facts, began)
            while visit.remaining > 0 or agent.pending:
                acting, before = agent.acting, (visit.used, agent.pending)
                agent.improve(visit)
                if (visit.used, agent.pending) == before:
                    raise IdleAgentError(
                        f"visit {visit.segment} ({visit.remaining} episodes left): "
                        f"{type(agent).__name__}.improve() acted in none; expected it to go on "
                        "until the budget is spent"
                    )
                self._note(visit, segments, acting)
                self.watch.show(diary)
                stop = self.watch.should_stop()
                if stop or time.perf_counter() - self.saved_at > self.watch.save_every_s:
                    self._save(visit)
                if stop:
                    return False
            self._over(visit, segments[-1], agent.acting, agent.end)
        self._save(None)
        return True

    def _note(self, visit: Visit, segments: list[Segment], acting: Actor) -> None:
        """Write down what was just acted; hidden boundaries that were crossed end their visits.

        ``acting`` is who acted: by now the agent may have noticed, and be somebody else.
        """
        new, visit.episodes = visit.episodes, []
        act_s, visit.act_s = visit.act_s, []
        here = [e for e in new if e.visit == self.diary.current.visit]
        self.diary.acted(here, self.agent.score, act_s)
        while not self.knew.boundary and self.diary.current.visit < min(
            visit.segment, segments[-1].number
        ):
            self._over(visit, segments[self.diary.current.visit], acting, dict)
            here = [e for e in new if e.visit == self.diary.current.visit]
            if here:
                self.diary.acted(here, self.agent.score, [])

    def _over(
        self, visit: Visit, segment: Segment, acting: Actor, end: Callable[[], dict[str, Any]]
    ) -> None:
        """The end of a planned visit."""
        self._measure_end(segment, acting)
        written = end()
        spent = visit.settle(segment.number)
        physics, visit.physics_s = visit.physics_s, 0.0
        self.diary.over(spent, physics, written, self.agent.state_dict())
        self.executed.append((segment.name, segment.task.id))
        self._evaluate(segment.number + 1)

    def _measure_end(self, segment: Segment, actor: Actor) -> None:
        """What the visit led to, before the agent decides what to keep of it."""
        with self.diary.evaluating():
            before = self.evaluator.env_steps
            acted = self.evaluator.measure(segment.task, actor)
            now = self.diary.current
            now.end = acted.returns()[0].tolist()
            now.end_success = None if acted.success is None else acted.success[0].tolist()
            if isinstance(actor.policy, GaussianMlp) and actor.policy.plain is actor.policy:
                obs = acted.obs[0][acted.mask[0] > 0]
                some = len(obs) > 0  # all of it may have diverged
                now.plasticity = plasticity(actor.policy, actor.params, obs) if some else {}
            self.diary.life.evaluation_env_steps += self.evaluator.env_steps - before

    def _evaluate(self, checkpoint: int) -> None:
        """A row of R."""
        with self.diary.evaluating():
            for name in self.plan.evaluated(checkpoint):
                hint = Hint(name) if self.knew.task else None
                task = self.plan.tasks[name]
                entry = self.evaluator.evaluate(self.agent, name, task, checkpoint, hint)
                self.diary.life.evaluations.append(entry)
                self.diary.life.evaluation_env_steps += entry.env_steps

    def _save(self, visit: Visit | None) -> None:
        life = self.diary.life
        life.detected = list(getattr(self.agent, "detected", []))
        life.inferred = list(getattr(self.agent, "inferred", []))
        self.diary.write(self.run.folder)
        progress = {
            "diary": self.diary.state(),
            "executed": self.executed,
            "visit": None if visit is None else visit.state_dict(),
        }
        self.run.checkpoints.save(self.agent.state_dict(), progress)
        self.saved_at = time.perf_counter()
