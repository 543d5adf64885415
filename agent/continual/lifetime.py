"""The lifetime runner: one agent on one stream with one seed, exact to continue at any moment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from agent.continual.agents import StreamAgent
from agent.continual.diary import Diary
from agent.continual.evaluation import Evaluator
from agent.continual.life import Hints, Life, Protocol
from agent.continual.metrics.plasticity import plasticity
from agent.continual.stream import Plan, Stream
from agent.continual.visit import Hint, Segment, Visit
from agent.policy import GaussianMlp
from agent.run import Run
from agent.seeding import generator
from envs.task import TaskDistribution


@dataclasses.dataclass(frozen=True)
class World:
    """Everything of a lifetime that is not the agent."""

    stream: Stream
    family: TaskDistribution
    policy: GaussianMlp
    seed: int
    init: str = ""
    """Names the meta-initialisation."""

    def knows(self, agent: StreamAgent) -> Hints:
        """What this agent is told: what the stream tells, and what it cannot do without."""
        told, needs = self.stream.told.hints, agent.needs
        task = told.task or needs.task
        return Hints(task=task, boundary=told.boundary or needs.boundary or task)

    def protocol(self, plan: Plan) -> Protocol:
        """What is written down, so that lifetimes can be compared."""
        return Protocol(
            stream=self.stream.name,
            family=self.family.id,
            horizon=self.family.horizon,
            split=self.stream.split,
            seed=self.seed,
            init=self.init,
            tasks=plan.infos(self.family),
            schedule=plan.visits,
            held_out=plan.held_out,
            eval_episodes=self.stream.eval_episodes,
            told=self.stream.told.hints,
        )


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who looks on: what to call after each batch, when to stop, how often to save."""

    show: Callable[[Diary], None] = lambda diary: None
    should_stop: Callable[[], bool] = lambda: False
    save_every_s: float = 120.0
    """Wall seconds between saves within a visit; the end of a visit is always saved."""


def live(
    agent: StreamAgent, world: World, run: Run, name: str, watch: Watch | None = None
) -> Life | None:
    """Live through the stream, from wherever the run folder has got to.

    Returns the life, or None if ``watch`` said to stop before its end; all of it is saved.
    """
    life = _Lifetime(agent, world, run, name, watch or Watch())
    return life.diary.life if life.live() else None


class _Lifetime:
    """The state of ``live``."""

    def __init__(self, agent: StreamAgent, world: World, run: Run, name: str, watch: Watch) -> None:
        self.agent, self.world, self.run, self.watch = agent, world, run, watch
        self.plan = world.stream.plan(world.family, world.seed)
        self.knew = world.knows(agent)
        protocol = world.protocol(self.plan)
        life = Life(agent=name, status="stopped", protocol=protocol, knew=self.knew)
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
        return [segments]

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
                agent.improve(visit)
                self._note(visit, segments)
                self.watch.show(diary)
                stop = self.watch.should_stop()
                if stop or time.perf_counter() - self.saved_at > self.watch.save_every_s:
                    self._save(visit)
                if stop:
                    return False
            self._over(visit, segments[-1], agent.end)
        self._save(None)
        return True

    def _note(self, visit: Visit, segments: list[Segment]) -> None:
        """Write down what was just acted; hidden boundaries that were crossed end their visits."""
        new, visit.episodes = visit.episodes, []
        act_s, visit.act_s = visit.act_s, []
        here = [e for e in new if e.visit == self.diary.current.visit]
        self.diary.acted(here, self.agent.score, act_s)
        while not self.knew.boundary and self.diary.current.visit < min(
            visit.segment, segments[-1].number
        ):
            self._over(visit, segments[self.diary.current.visit], dict)
            here = [e for e in new if e.visit == self.diary.current.visit]
            if here:
                self.diary.acted(here, self.agent.score, [])

    def _over(self, visit: Visit, segment: Segment, end: Callable[[], dict[str, Any]]) -> None:
        """The end of a planned visit."""
        self._measure_end(segment)
        written = end()
        spent, visit.env_steps = visit.env_steps, {}
        physics, visit.physics_s = visit.physics_s, 0.0
        self.diary.over(spent, physics, written, self.agent.state_dict())
        self.executed.append((segment.name, segment.task.id))
        self._evaluate(segment.number + 1)

    def _measure_end(self, segment: Segment) -> None:
        """What the visit led to, before the agent decides what to keep of it."""
        with self.diary.evaluating():
            before, actor = self.evaluator.env_steps, self.agent.acting
            acted = self.evaluator.measure(segment.task, actor)
            now = self.diary.current
            now.end = acted.returns()[0].tolist()
            now.end_success = None if acted.success is None else acted.success[0].tolist()
            if isinstance(actor.policy, GaussianMlp):
                obs = acted.obs[0].flatten(0, 1)[acted.mask[0].flatten() > 0]
                now.plasticity = plasticity(actor.policy, actor.params, obs)
            self.diary.life.evaluation_env_steps += self.evaluator.env_steps - before

    def _evaluate(self, checkpoint: int) -> None:
        """A row of R: what has been met, what comes next, and at both ends what never comes."""
        visits = self.plan.visits
        last, following = checkpoint == len(visits), visits[checkpoint : checkpoint + 1]
        names = [v.task for v in [*visits[:checkpoint], *following] if not v.drifting]
        around = [*visits[max(checkpoint - 1, 0) : checkpoint], *following]
        if all(v.drifting for v in around) and not last:
            names = []
        if checkpoint == 0 or last:
            names += self.plan.held_out
        with self.diary.evaluating():
            for name in dict.fromkeys(names):
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
