"""One offline HTML page about a run, and here the contract of the files of its meta-training.

What lifetimes leave is in ``agent.continual.life``.

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


class Command(BaseModel):
    """A command that made part of the run."""

    command: str
    what: str
    seconds: Number
    env_steps: Number
