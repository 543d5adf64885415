"""Tasks made of others: nearly the same one, and those on the way from one to the next."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.task import Param, Task, TaskDistribution, TaskError


@dataclass(kw_only=True, config={"extra": "forbid"})
class Near:
    """A near-miss: a task that is easily mistaken for another."""

    of: str
    """Name of the other."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """How far each parameter with a range moves, as a share of it. In families of choices alone,
    one parameter takes another choice instead."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Drift:
    """Visits on the way between visits to different tasks."""

    steps: Annotated[int, Field(ge=1)]
    """How many."""
    shape: Literal["linear", "sine"] = "linear"
    """Whether parameters move evenly, or slowly near both tasks."""
    episodes: Annotated[int, Field(ge=1)] | None = None
    """Of each; null: as many as the visit has that it leads to."""

    def shares(self) -> list[float]:
        """Of the way that each step has come, between 0 and 1."""
        even = [step / (self.steps + 1) for step in range(1, self.steps + 1)]
        if self.shape == "linear":
            return even
        return [(1.0 - math.cos(math.pi * share)) / 2.0 for share in even]


def near(family: TaskDistribution, task: Task, share: float, rng: np.random.Generator) -> Task:
    """The task with its parameters moved a little, into the range where that is possible."""
    _check_independent(family, "near")
    values = dict(task.values)
    # Where only some parameters leave nominal in one task, the others stay.
    stay = [n for n, p in family.params.items() if family.perturbed and values[n] == p.neutral]
    moving = [n for n, p in family.params.items() if p.choices is None and n not in stay]
    for name in moving:
        values[name] = _moved(family.params[name], values[name], share * rng.choice([-1.0, 1.0]))
    if not moving:
        name, choices = _another_choice(family, values, stay, rng)
        values[name] = float(rng.choice(choices))
    return family.task(values)


def between(family: TaskDistribution, one: Task, other: Task, share: float) -> Task:
    """The task at a share of the way: ranges are interpolated, in the logarithm where so drawn."""
    _check_independent(family, "drift")
    values = {}
    for name, param in family.params.items():
        start, end = one.values[name], other.values[name]
        if start == end:
            values[name] = start
        elif param.choices is not None:
            raise TaskError(
                f"drift: parameter {name!r} of {family.name!r} has choices, between which there is "
                "nothing; give it a range (low, high), or both tasks the same value"
            )
        elif param.log and min(start, end) > 0:
            values[name] = start ** (1.0 - share) * end**share
        else:
            values[name] = start + share * (end - start)
    return family.task(values)


def _moved(param: Param, value: float, share: float) -> float:
    """The value moved by a share of the range, the other way if that would leave it."""
    low, high = param.low, param.high
    if low is None or high is None:
        raise TaskError("a parameter has neither choices nor a range")
    both = []
    for part in (share, -share):
        if param.log and value > 0:
            both.append(value * (high / low) ** part)
        else:
            both.append(value + part * (high - low))
    return both[1] if param.beyond(both[0]) and not param.beyond(both[1]) else both[0]


def _another_choice(
    family: TaskDistribution, values: dict[str, float], stay: list[str], rng: np.random.Generator
) -> tuple[str, list[float]]:
    """A parameter, one that is off nominal if there is one, and its other choices."""
    others = {
        name: [choice for choice in param.choices or [] if choice != values[name]]
        for name, param in family.params.items()
        if name not in stay
    }
    names = [name for name, choices in others.items() if choices]
    if not names:
        raise TaskError(f"near: {family.name!r} has no parameter with another choice")
    off = [name for name in names if family.params[name].neutral is not None]
    chosen = str(rng.choice(off or names))
    return chosen, others[chosen]


def _check_independent(family: TaskDistribution, key: str) -> None:
    if not family.independent_params:
        raise TaskError(
            f"{key}: the parameters of {family.name!r} belong together, so that none can be "
            "changed alone; name the tasks instead"
        )
