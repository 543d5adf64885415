"""One offline HTML page about a run, and here the contract of the files that it is made from.

A number that the writer did not have, or that was not finite, is ``null`` in a file and NaN here.
Keys that are not named here are ignored.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Iteration(BaseModel):
    """A line of ``metrics.jsonl``."""

    env_steps: int
    """Since the run began, this iteration's included."""
    before: Number = Field(alias="train/return_before")
    after: Number = Field(alias="train/return_after")
    speed: Number = Field(alias="time/env_steps_per_s")


class HeldOutTask(BaseModel):
    """One task of an evaluation. Element k of a list is after k adaptation steps."""

    id: str
    label: str
    returns: list[Number]
    returns_sd: list[Number]
    """Over the draws of the adaptation episodes."""
    scratch: list[Number]
    random: Number
    oracle: Number


class MeanReturns(BaseModel):
    """Means over the tasks of an evaluation."""

    meta: list[Number] = Field(min_length=1)
    scratch: list[Number]
    random: Number
    oracle: Number


class Evaluation(BaseModel):
    """``evaluation.json``: how well the policy adapts to tasks that it did not train on."""

    family: str
    split: str
    held_out: str
    seed: int
    seeds: dict[str, Any]
    episodes_per_step: int
    draws: int
    eval_episodes: int
    horizon: int
    env_steps: int
    seconds: Number
    meta_env_steps: Number
    oracle_env_steps: Number
    mean: MeanReturns
    gain_after_one_step: Number
    tasks: list[HeldOutTask] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_steps(self) -> Self:
        """Every list must be as long as ``mean.meta``; the tables and the plots count on it."""
        expected = len(self.mean.meta)
        lists = {"mean.scratch": self.mean.scratch}
        for i, task in enumerate(self.tasks):
            for key in ("returns", "returns_sd", "scratch"):
                lists[f"tasks.{i}.{key}"] = getattr(task, key)
        for key, values in lists.items():
            if len(values) != expected:
                raise ValueError(f"{key} has {len(values)} numbers, but mean.meta has {expected}")
        return self


class Point(BaseModel):
    """A training batch's mean return, and the episodes of the visit that were used by its end."""

    episodes: int
    value: Number = Field(alias="return")


class Recalled(BaseModel):
    """What the memory brought up at the start of a visit; empty for an agent without memory."""

    row: int | None = None
    of_visit: int | None = None
    """The visit whose policy the row holds."""
    weight: Number | None = None
    """Posterior probability of the likeliest row before it was tried."""


class VisitTask(BaseModel):
    """The task of a visit."""

    id: str
    label: str


class Visit(BaseModel):
    """One agent's visit to a task, in one lifetime."""

    seed: int
    visit: int = Field(ge=0)
    name: str
    task: VisitTask
    start: Number
    end: Number
    curve: list[Point]
    recalled: Recalled


class Scores(BaseModel):
    """The four metrics of a lifetime."""

    first_start: Number = Field(alias="first.start")
    first_end: Number = Field(alias="first.end")
    revisit_start: Number = Field(alias="revisit.start")
    revisit_end: Number = Field(alias="revisit.end")


class MemoryRow(BaseModel):
    """A row of the memory at the end of a lifetime."""

    seed: int
    row: int
    written_at_visit: int
    score: Number
    gain: Number
    visits: int
    task: str
    """Label of the task that it was written at."""


class Agent(BaseModel):
    """What one agent did on the stream, in every lifetime."""

    visits: list[Visit] = Field(min_length=1)
    metrics: Scores
    intervals: dict[str, tuple[Number, Number] | None] | None = None
    memory: list[MemoryRow] = []

    @property
    def remembers(self) -> bool:
        """Whether this agent has a memory to recall from."""
        return any(visit.recalled.model_fields_set for visit in self.visits)

    def recall_kind(self, visit: Visit) -> str:
        """``none``, ``same`` (the row is from a visit to a task of that name) or ``other``."""
        if visit.recalled.row is None:
            return "none"
        sources = (v for v in self.visits if v.seed == visit.seed and v.name == visit.name)
        return "same" if visit.recalled.of_visit in {v.visit for v in sources} else "other"


class Stream(BaseModel):
    """The stream that every agent lived on."""

    name: str
    family: str
    split: str
    order: list[str] = Field(min_length=1)
    budget_episodes: int = Field(gt=0)
    horizon: int


class Summary(BaseModel):
    """``summary.json``: every agent's lifetimes on one stream."""

    stream: Stream
    seeds: list[int] = Field(min_length=1)
    env_steps: int
    seconds: Number
    agents: dict[str, Agent] = Field(min_length=1)

    @model_validator(mode="after")
    def _visits_in_stream(self) -> Self:
        """A visit is placed by its number in ``stream.order`` and its seed in ``seeds``."""
        for name, agent in self.agents.items():
            for i, visit in enumerate(agent.visits):
                if visit.visit >= len(self.stream.order) or visit.seed not in self.seeds:
                    which = f"agents.{name}.visits.{i} (seed {visit.seed}, visit {visit.visit})"
                    raise ValueError(f"{which} is not in stream.order and seeds")
        return self


class Command(BaseModel):
    """A command that made part of the run."""

    command: str
    what: str
    seconds: Number
    env_steps: Number
