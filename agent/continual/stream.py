"""Streams: which tasks, in which order, for how long, and what the agents are told of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from agent.continual.life import Hints, Planned, TaskInfo
from agent.seeding import generator
from envs.task import Split, Task, TaskDistribution, TaskError

Episodes = Annotated[int, Field(ge=1)]


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """One lifetime's stream, drawn: the tasks behind the names, and the visits in their order."""

    tasks: dict[str, Task]
    """By name; also tasks that are evaluated and never visited, and steps of a drift."""
    visits: list[Planned]
    held_out: list[str]
    """Names of tasks that are evaluated and never visited."""

    def revisit(self, visit: int) -> bool:
        """Whether the task of this name was visited before."""
        return self.visits[visit].task in [v.task for v in self.visits[:visit]]

    def scored(self) -> list[str]:
        """Names of the tasks that agents are evaluated on, in the order in which they are met."""
        visited = dict.fromkeys(v.task for v in self.visits if not v.drifting)
        return [*visited, *self.held_out]

    def infos(self, family: TaskDistribution) -> dict[str, TaskInfo]:
        """The tasks, to be written down."""
        return {
            name: TaskInfo(id=task.id, label=family.label(task), values=dict(task.values))
            for name, task in self.tasks.items()
        }


@dataclass(kw_only=True, config={"extra": "forbid"})
class Stream:
    """Visits to tasks in an order; a task's name is its identity, its place in the order is not."""

    name: str
    """Name of the stream, for files and reports."""
    order: Annotated[list[str], Field(min_length=1)]
    """Names of the tasks visited; a name that comes again is a re-visit."""
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    """The parameters of some of the named tasks; all others are drawn, distinct, per lifetime."""
    split: Split = "heldout"
    """Where tasks are drawn from."""
    shuffle: Literal["fixed", "per_seed", "latin"] = "fixed"
    """Whether names are dealt to places anew for each seed, or by the rows of a latin square."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """How often the whole order is gone through."""
    held_out: list[str] = field(default_factory=list)
    """Names of further tasks that are evaluated, and never visited."""
    budget_episodes: Episodes = 60
    """Episodes of a visit, probes included; the same for every agent."""
    eval_episodes: Episodes = 4
    """Episodes of the deterministic policy for each entry of the evaluation matrix."""
    told: Told = field(default_factory=Told)
    """What agents are told."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = {*self.order, *self.held_out}
        for name in self.tasks:
            if name not in known:
                raise ValueError(f"tasks.{name}: is neither in order nor in held_out")
        return self

    def plan(self, family: TaskDistribution, seed: int) -> Plan:
        """The stream of one lifetime; equal seeds, equal plans.

        Raises:
            TaskError: The family has too few tasks, or not the parameters that are given.
        """
        rng = generator(seed, "stream")
        names = sorted({*self.order, *self.held_out})
        drawn = [name for name in names if name not in self.tasks]
        tasks = family.sample(len(drawn), rng, self.split, distinct=True) if drawn else []
        if len(tasks) < len(drawn):
            raise TaskError(
                f"stream {self.name!r} draws {len(drawn)} tasks, "
                f"but {family.name!r} has only {len(tasks)}"
            )
        given = {name: family.task(values) for name, values in self.tasks.items()}
        order = self._dealt(seed) * self.repeats
        visits = [Planned(task=name, episodes=self.budget_episodes) for name in order]
        return Plan(dict(zip(drawn, tasks, strict=True)) | given, visits, list(self.held_out))

    def _dealt(self, seed: int) -> list[str]:
        """The order of a lifetime: which name stands where, the pattern of repeats kept."""
        names = list(dict.fromkeys(self.order))
        if self.shuffle == "fixed":
            return list(self.order)
        if self.shuffle == "latin":
            dealt: Sequence[str] = [names[(i + seed) % len(names)] for i in range(len(names))]
        else:
            dealt = [names[i] for i in generator(seed, "stream", 1).permutation(len(names))]
        stands_for = dict(zip(names, dealt, strict=True))
        return [stands_for[name] for name in self.order]
