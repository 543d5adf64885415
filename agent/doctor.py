"""``engram doctor``: is this stream fit to compare agents on, and do these agents keep the rules?

Every check is an experiment on a short version of the stream, a user's own included; the last one,
whether the stream tells agents apart at all, lives whole lifetimes.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.assemble import set_up
from agent.config import build
from agent.continual.agents import Finetune, StreamAgent
from agent.continual.cohort import content_hash
from agent.continual.detecting import Detecting
from agent.continual.evaluation import Evaluator, ImpureEvaluationError
from agent.continual.life import Hints, Life, Planned
from agent.continual.lifetime import Watch, World, live
from agent.continual.stream import Plan
from agent.continual.visit import Hint
from agent.env_tools import findings_table
from agent.files import plain
from agent.jobs import Workshop
from agent.progress import console
from agent.rollout import TaskBatch
from agent.run import Run, RunError
from agent.seeding import generator
from agent.settings import ContinualSettings
from envs.checks.finding import Finding, failed, ok, skipped, warning
from envs.task import TaskError

_TIMES = {"seconds", "cpu_seconds", "physics_s", "evaluation_s", "begin_s", "act_ms"}
"""What may differ between two lives that are the same."""
_LEAST_FORGOTTEN = 0.3
"""Share of what was learned that fine-tuning must forget (``reference/continual_rl.md`` 7.2)."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class DoctorSettings(ContinualSettings):
    """``engram doctor``."""

    visits: Annotated[int, Field(ge=2)] = 3
    """Of the short lives that most checks live."""
    episodes: Annotated[int, Field(ge=2)] = 14
    """Of each of those visits."""
    whole: bool = True
    """Live a whole lifetime too, to see whether the stream is worth living."""


def doctor(config: dict[str, Any], typed: str) -> None:
    """Check a stream and agents; a failed check is a failed command."""
    settings = build(config, "", DoctorSettings)
    if settings.init is None:
        raise RunError("init=: name a finished meta-training run (engram train ... run=runs/x)")
    set_up(settings)
    examination = Examination(Workshop(settings, settings.init), settings)
    findings = []
    for name, check in examination.checks():
        with console.status(f"checking: {name}"):
            findings.append(dataclasses.replace(attempted(check), name=name))
    console.print(findings_table(f"stream {examination.cohort.stream.name}", findings))
    wrong = [finding.name for finding in findings if finding.status == "failed"]
    if wrong:
        raise TaskError(f"failed: {', '.join(wrong)}")


def attempted(check: Callable[[], Finding]) -> Finding:
    """What a check found; that it could not be made to its end is a finding too."""
    try:
        return check()
    except Exception as error:  # whatever a user's agent does, the other checks go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        return failed(found, "an agent must live through a stream to its end")


class Examination:
    """The checks of one stream and of some agents on it."""

    def __init__(self, workshop: Workshop, settings: DoctorSettings) -> None:
        self.workshop, self.settings = workshop, settings
        self.cohort, self.seed = workshop.cohort, settings.lifetimes[0]

    def checks(self) -> list[tuple[str, Callable[[], Finding]]]:
        """Names and checks, those of the stream first."""
        out = [
            ("tasks differ", self.tasks_differ),
            ("tasks return", self.tasks_return),
        ]
        for name, agent in self.workshop.agents.items():
            for what, check in (
                ("executed as declared, to the step", self.executed_as_declared),
                ("same seed, same life", self.repeats),
                ("evaluation is pure", self.evaluates_purely),
                ("resumes exactly", self.resumes_exactly),
                ("keeps what it has", self.isolates),
            ):
                out.append((f"{name}: {what}", lambda check=check, agent=agent: check(agent)))
        if self.settings.whole:
            out.append(("worth living", self.worth_living))
        return out

    def tasks_differ(self) -> Finding:
        """Every two tasks answer the same actions, from the same seed, differently."""
        tasks, policy = self.world().plan.tasks, self.cohort.learner.policy
        params, seen = self.cohort.learner.theta.detach()[None], {}
        for name, task in tasks.items():
            rng = generator(self.seed, "evaluation")
            with TaskBatch(self.cohort.family, [task], 2, policy, rng) as batch:
                acted = batch.collect(params)
            seen[name] = torch.cat([acted.obs.flatten(), acted.reward.flatten()])
        alike = [
            f"{a} and {b}"
            for (a, x), (b, y) in itertools.combinations(seen.items(), 2)
            if torch.equal(x, y)
        ]
        if alike:
            return failed(
                f"no difference between {', '.join(alike[:4])}",
                "two names for one task, or parameters that change nothing (engram check_env)",
            )
        return ok(f"{len(tasks)} tasks, all different")

    def tasks_return(self) -> Finding:
        """A stream without re-visits cannot show recall."""
        plan = self.cohort.world(self.seed).plan
        again = sum(plan.revisit(n) for n in range(len(plan.visits)))
        if not again:
            return warning("no task is visited twice", "recall and forgetting need re-visits")
        return ok(f"{again} of {len(plan.visits)} visits are re-visits, under the same id")

    def executed_as_declared(self, agent: StreamAgent) -> Finding:
        """The schedule, the budget, and who counts the steps."""
        life = self.life(agent)
        if life.deviations:
            return failed("; ".join(life.deviations[:3]), "improve() must use up the visit")
        spent = [sum(visit.env_steps.values()) for visit in life.visits]
        most = [v.episodes * life.protocol.horizon for v in life.visits]
        if any(a > b for a, b in zip(spent, most, strict=True)):
            return failed(f"{spent} env steps in visits of {most}", "steps are not charged")
        return ok(f"{sum(spent):,} env steps in {len(spent)} visits")

    def repeats(self, agent: StreamAgent) -> Finding:
        """Two lives with one seed are the same."""
        one, two = self.life(agent), self.life(agent)
        if timeless(one) != timeless(two):
            return failed(
                "two lives with the same seed differ",
                "randomness that is not drawn from the seed (torch or numpy without a generator)",
            )
        return ok(f"{len(one.evaluations)} evaluations equal to the last bit")

    def evaluates_purely(self, agent: StreamAgent) -> Finding:
        """Being evaluated teaches nothing, and asks the same twice, gives the same."""
        world, agent = self.world(), self.born(agent)
        policy, episodes = world.policy, world.stream.eval_episodes
        name, task = next(iter(world.plan.tasks.items()))
        hint = Hint(name) if world.knows(agent).task else None
        returns = []
        try:
            for _ in range(2):
                with Evaluator(world.family, policy, episodes, self.seed) as evaluator:
                    returns.append(evaluator.evaluate(agent, name, task, 0, hint).returns)
        except ImpureEvaluationError as error:
            return failed(str(error), "work on self.twin(), or on a deepcopy")
        if returns[0] != returns[1]:
            return failed(f"{returns[0]} and then {returns[1]}", "actor() draws from a generator")
        return ok(f"return {sum(returns[0]) / len(returns[0]):.1f}, twice")

    def resumes_exactly(self, agent: StreamAgent) -> Finding:
        """A life that was stopped after every batch, and went on in a fresh agent each time."""
        whole, pieces = self.life(agent), self.life(agent, stop_always=True)
        if timeless(whole) != timeless(pieces):
            first = next(
                (
                    f"visit {a.visit}"
                    for a, b in zip(whole.visits, pieces.visits, strict=False)
                    if _timeless_dump(a.model_dump()) != _timeless_dump(b.model_dump())
                ),
                "the evaluations",
            )
            return failed(
                f"interrupted and uninterrupted lives differ from {first} on",
                "state_dict() must hold everything that the agent goes on from",
            )
        return ok(f"stopped and continued after each of {self.batches(whole)} batches")

    def isolates(self, agent: StreamAgent) -> Finding:
        """What it would do in the first task, after the first visit and after all others."""
        plan = self.world().plan
        first = plan.visits[0].task
        others = [v for v in plan.visits[1:] if v.task != first]
        if not others:
            return skipped("the short stream has one task only")
        short = Plan(plan.tasks, [plan.visits[0], *others], [])
        life = self.life(agent, plan=short)
        kept = [e.returns for e in life.evaluations if e.task == first and e.checkpoint >= 1]
        exact = all(returns == kept[0] for returns in kept)
        told = "told the task" if life.knew.task else "not told the task"
        if exact:
            return ok(f"forgets exactly nothing ({told})")
        change = sum(kept[-1]) / len(kept[-1]) - sum(kept[0]) / len(kept[0])
        if getattr(agent, "isolates", False):
            return failed(f"{change:+.1f} in {first} after other tasks", "it says that it isolates")
        return ok(f"{change:+.1f} in {first} after {len(others)} visits elsewhere ({told})")

    def worth_living(self) -> Finding:
        """Fine-tuning must forget, and learn within a visit; or there is nothing to be shown."""
        lives = []
        for seed in self.settings.lifetimes:
            told = Hints(task=False, boundary=True)
            world = dataclasses.replace(self.cohort.world(seed), told=told)
            lives.append(self.life(Finetune(), world=world))
        learned = sum(map(gain, lives)) / len(lives)
        forgotten = sum(map(forgetting, lives)) / len(lives)
        text = (
            f"fine-tuning learns {learned:+.1f} in a visit and forgets {forgotten:.0%} of it "
            f"({len(lives)} lifetimes)"
        )
        if learned <= 0:
            return warning(text, "a larger budget per visit, or a better meta-initialisation")
        if forgotten < _LEAST_FORGOTTEN:
            return warning(text, "the tasks hardly conflict: every method will look alike")
        return ok(text)

    def world(self, plan: Plan | None = None) -> World:
        """The short stream, or one with a plan of its own."""
        world = self.cohort.world(self.seed)
        if plan is None:
            # As many visits as it takes for one to return, if it does early on.
            visits = [v for v in world.plan.visits if not v.drifting] or world.plan.visits
            most = max(self.settings.visits, _first_return(visits))
            plan = Plan(
                world.plan.tasks,
                [
                    Planned(task=v.task, episodes=min(v.episodes, self.settings.episodes))
                    for v in visits[: min(most, 2 * self.settings.visits)]
                ],
                [],
            )
        return dataclasses.replace(world, plan=plan)

    def born(self, agent: StreamAgent) -> StreamAgent:
        """A newborn of the same settings, who finds boundaries by itself where it must."""
        agent = copy.copy(agent)
        if not self.world().knows(agent).boundary:
            agent = Detecting(agent, self.cohort.detection)
        agent.setup(self.cohort.learner, self.cohort.probes, self.seed)
        return agent

    def life(
        self,
        agent: StreamAgent,
        plan: Plan | None = None,
        world: World | None = None,
        stop_always: bool = False,
    ) -> Life:
        """A life from birth to end, in one piece or in as many as it has batches."""
        world = world or self.world(plan)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder))
            watch = Watch(should_stop=lambda: stop_always)
            name = content_hash({"agent": type(agent).__name__})
            while (life := live(self.born(agent), world, run, name, watch)) is None:
                pass
            return life

    @staticmethod
    def batches(life: Life) -> int:
        """Batches of episodes that were learned from."""
        return sum(len(visit.curve) for visit in life.visits)


def timeless(life: Life) -> dict[str, Any]:
    """A life as plain data, without what it took in seconds, memory and repeated evaluations.

    (What was measured before is not measured again, unless the harness was started anew.)
    """
    cost = {"peak_memory_mib": True, "evaluation_env_steps": True}
    cost |= {"evaluations": {"__all__": {"env_steps"}}}
    return _timeless_dump(life.model_dump(by_alias=True, exclude=cost))


def _timeless_dump(data: dict[str, Any]) -> dict[str, Any]:
    return plain(_without(data))


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in _TIMES}
    return [_without(v) for v in value] if isinstance(value, list) else value


def _first_return(visits: list[Planned]) -> int:
    """Visits up to and with the first re-visit."""
    seen: set[str] = set()
    for number, planned in enumerate(visits, 1):
        if planned.task in seen:
            return number
        seen.add(planned.task)
    return 0


def gain(life: Life) -> float:
    """Mean return gained within first visits."""
    starts = {(e.checkpoint, e.task): e.mean for e in life.evaluations}
    gains = [v.end_mean - starts[v.visit, v.task] for v in life.visits if not v.revisit]
    return sum(gains) / len(gains)


def forgetting(life: Life) -> float:
    """Share of what first visits gained that is lost when the task returns, or at the end."""
    entries = {(e.checkpoint, e.task): e.mean for e in life.evaluations}
    lost, learned = 0.0, 0.0
    for visit in life.visits:
        if visit.revisit:
            continue
        later = [v.visit for v in life.visits if v.task == visit.task and v.visit > visit.visit]
        last = later[0] if later else len(life.visits)
        learned += max(visit.end_mean - entries[visit.visit, visit.task], 0.0)
        lost += visit.end_mean - entries[last, visit.task]
    return lost / learned if learned > 0 else 0.0
