"""Streams: which tasks, in which order, for how long, and what the agents are told of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import field
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from agent.continual.life import Hints, Planned
from agent.continual.orders import Shuffle, dealt, written_out
from agent.continual.plan import Plan
from agent.continual.variations import Drift, Near, between, near
from agent.seeding import generator
from envs.task import Finite, Split, Task, TaskDistribution, TaskError

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
EPISODES = 60
"""Of a visit, if no budget is given."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Told:
    """What agents are told; those that could not exist without an id are told it, and marked."""

    task: Literal["told", "hidden"] = "hidden"
    """Which task it is."""
    boundary: Literal["told", "hidden"] = "told"
    """When a visit begins and ends."""

    @property
    def hints(self) -> Hints:
        """The same as flags."""
        return Hints(task=self.task == "told", boundary=self.boundary == "told")


@dataclass(kw_only=True, config={"extra": "forbid"})
class Stream:
    """Visits to tasks in an order; a task's name is its identity, its place in the order is not."""

    name: str
    """Name of the stream, for files and reports."""
    order: Annotated[list[Name], BeforeValidator(written_out), Field(min_length=1)]
    """Names of the tasks visited; a name that comes again is a re-visit. Or ``{tasks: 50, gaps:
    [1, 2, 4]}``: as many tasks, which come back after so many visits to others."""
    tasks: dict[Name, dict[str, Finite]] = field(default_factory=dict)
    """The parameters of some of the named tasks; all others are drawn, distinct, per lifetime."""
    near: dict[Name, Near] = field(default_factory=dict)
    """Near-misses: named tasks that are made of others."""
    split: Split = "heldout"
    """Where tasks are drawn from."""
    novel_split: Split | None = None
    """Where tasks that come only once are drawn from; null: from ``split`` as well."""
    tasks_seed: Annotated[int, Field(ge=0)] | None = None
    """All lifetimes meet the tasks that this seed draws; null: each its own."""
    shuffle: Shuffle = "fixed"
    """Whether names are dealt to places anew for each seed, or by the rows of a latin square."""
    repeats: Count = 1
    """How often the whole order is gone through."""
    drift: Drift | None = None
    """Steps between visits to different tasks; null: the task changes at once."""
    held_out: list[Name] = field(default_factory=list)
    """Names of further tasks that are evaluated, and never visited."""
    budget_episodes: Count | None = None
    """Episodes of a visit, probes included; the same for every agent. 60, if no other is given."""
    budget_env_steps: Count | None = None
    """The same in env steps: a whole number of episodes of the family's horizon."""
    place_episodes: list[Count] = field(default_factory=list)
    """Episodes at each place of the order, where these differ."""
    dwell: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    """Fewest and most episodes of visits whose lengths are drawn per lifetime."""
    eval_episodes: Count = 4
    """Episodes of the deterministic policy for each entry of the evaluation matrix."""
    evaluate: Literal["seen", "around"] = "seen"
    """Evaluated at each checkpoint: all tasks seen so far, or, where these are many, just the task
    before it and the one after it; at the last one always all."""
    told: Told = field(default_factory=Told)
    """What agents are told."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = {*self.order, *self.held_out}
        for key, names in (("tasks", self.tasks), ("near", self.near)):
            if wrong := [name for name in names if name not in known]:
                raise ValueError(f"{key}.{wrong[0]}: is neither in order nor in held_out")
        for name, made in self.near.items():
            if name in self.tasks:
                raise ValueError(f"near.{name}: its parameters are given under tasks as well")
            if made.of not in known - self.near.keys():
                raise ValueError(
                    f"near.{name}.of={made.of!r}: expected a name of order or held_out that is "
                    "not itself made of another task"
                )
        if both := sorted({*self.order} & {*self.held_out}):
            raise ValueError(f"held_out: {both[0]!r} is visited too; take it out of one of the two")
        if len({*self.held_out}) < len(self.held_out):
            raise ValueError(f"held_out={self.held_out}: a name is given twice")
        if self.novel_split is not None and not self._novel():
            raise ValueError(
                f"novel_split={self.novel_split}: no task that is drawn comes only once"
                + (f" (repeats={self.repeats})" if self.repeats > 1 else "")
            )
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        keys = ("budget_episodes", "budget_env_steps", "place_episodes", "dwell")
        given = [f"{key}={getattr(self, key)}" for key in keys if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)}: a visit has one budget; leave one (set others to null, "
                "place_episodes to [])"
            )
        if self.place_episodes and len(self.place_episodes) != len(self.order):
            raise ValueError(
                f"place_episodes: has {len(self.place_episodes)} entries, but order has "
                f"{len(self.order)} places"
            )
        if self.dwell and self.dwell[0] > self.dwell[1]:
            raise ValueError(f"dwell={self.dwell}: expected [fewest, most]")
        return self

    def plan(self, family: TaskDistribution, seed: int) -> Plan:
        """The stream of one lifetime; equal seeds, equal plans.

        Raises:
            TaskError: The family has too few tasks, not the parameters that are given, or episodes
                that do not add up to the budget.
        """
        tasks = self._tasks(family, seed if self.tasks_seed is None else self.tasks_seed)
        order = dealt(self.order, self.shuffle, seed) * self.repeats
        episodes = self._episodes(family, seed, len(order))
        visits: list[Planned] = []
        for name, count in zip(order, episodes, strict=True):
            if self.drift is not None and visits and visits[-1].task != name:
                visits += self._drifting(family, tasks, visits[-1].task, name, count)
            visits.append(Planned(task=name, episodes=count))
        return Plan(tasks, visits, list(self.held_out), self.evaluate == "seen")

    def _tasks(self, family: TaskDistribution, seed: int) -> dict[str, Task]:
        """The task of each name."""
        tasks = {}
        for name, values in self.tasks.items():
            try:
                tasks[name] = family.task(values)
            except TaskError as error:
                raise TaskError(f"stream {self.name!r}: tasks.{name}: {error}") from None
        rng = generator(seed, "stream")
        novel = self._novel() if self.novel_split is not None else []
        usual = [name for name in self._drawn() if name not in novel]
        both: list[tuple[list[str], Split]] = [(usual, self.split)]
        if self.novel_split is not None:
            both.append((novel, self.novel_split))
        for names, split in both:
            fresh = self._fresh(family, split, len(names), list(tasks.values()), rng)
            tasks |= dict(zip(names, fresh, strict=True))
        rng = generator(seed, "stream", 2)
        for name, made in sorted(self.near.items()):
            tasks[name] = near(family, tasks[made.of], made.share, rng)
        return tasks

    def _fresh(
        self,
        family: TaskDistribution,
        split: Split,
        count: int,
        known: list[Task],
        rng: np.random.Generator,
    ) -> list[Task]:
        """Tasks of a split, none of which is known already."""
        if count == 0:
            return []
        # Those that may be drawn again are made up for.
        more = [t for t in known if not family.holds_out or family.split_of(t.values) == split]
        drawn = family.sample(count + len(more), rng, split, distinct=True)
        fresh = [task for task in drawn if task not in known]
        if len(fresh) < count:
            raise TaskError(
                f"stream {self.name!r} draws {count} tasks, but {family.name!r} has only "
                f"{len(fresh)}" + (" others than those given" if known else "")
            )
        return fresh[:count]

    def _drawn(self) -> list[str]:
        """Names whose tasks are drawn."""
        return sorted({*self.order, *self.held_out} - self.tasks.keys() - self.near.keys())

    def _novel(self) -> list[str]:
        """Of these, those that come once."""
        times = Counter(self.order * self.repeats)
        return [name for name in self._drawn() if times[name] == 1]

    def _episodes(self, family: TaskDistribution, seed: int, visits: int) -> list[int]:
        """Of each visit."""
        if self.dwell is not None:
            low, high = self.dwell
            return generator(seed, "stream", 3).integers(low, high + 1, visits).tolist()
        if self.place_episodes:
            return self.place_episodes * self.repeats
        if self.budget_env_steps is None:
            return [self.budget_episodes or EPISODES] * visits
        whole, rest = divmod(self.budget_env_steps, family.horizon)
        if rest:
            fits = [n * family.horizon for n in (whole, whole + 1) if n]
            raise TaskError(
                f"stream {self.name!r}: budget_env_steps={self.budget_env_steps} is no whole "
                f"number of episodes of {family.name!r} (horizon={family.horizon}); expected "
                + " or ".join(map(str, fits))
            )
        return [whole] * visits

    def _drifting(
        self, family: TaskDistribution, tasks: dict[str, Task], one: str, other: str, episodes: int
    ) -> list[Planned]:
        """The visits between two tasks; adds theirs to ``tasks``."""
        if self.drift is None:
            return []
        visits = []
        for step, share in enumerate(self.drift.shares(), 1):
            name = f"{one}>{other} {step}/{self.drift.steps + 1}"
            tasks[name] = between(family, tasks[one], tasks[other], share)
            count = self.drift.episodes or episodes
            visits.append(Planned(task=name, episodes=count, drifting=True))
        return visits
