"""What a task is: named parameters, a plain value, and a distribution to draw from.

Shapes use the project's alphabet (``agent/types.py``): T tasks, E episodes, O observation, A
action, d parameters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from envs.param import Finite, Param, TaskError
from envs.vector_tasks import VectorTasks, connect

__all__ = ["Finite", "Param", "Split", "Task", "TaskDistribution", "TaskError", "VectorTasks"]

Split = Literal["train", "validation", "heldout", "ood"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")
"""Parts of a family's own ranges; "ood" are the parameters' ranges beyond them."""

Horizon = Annotated[int, Field(ge=1)]

# A family with fewer cells than this cannot give some away: every split is then the whole family.
_FEWEST_CELLS_TO_HOLD_OUT = 64
_MAX_DRAWS = 10_000
# With fewer than 20 tasks, this many draws miss one of them less than once in 10^20 times.
_DRAWS_TO_SEE_ALL_OF_FEW = 1_000
# Pools are drawn with the seed that PEARL's code uses for its fixed task sets.
_POOL_SEED = 1337


@dataclasses.dataclass(frozen=True)
class Task:
    """One MDP of a family: a plain value without a simulator; equal values are the same task."""

    family: str
    values: Mapping[str, float]

    @property
    def id(self) -> str:
        """Eight hex digits that name the task; equal values give equal ids on every machine."""
        # 1, 1.0 and -0.0, 0.0 are equal, so they must not be written differently.
        values = sorted((name, float(value) + 0.0) for name, value in self.values.items())
        text = json.dumps([self.family, values])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def __hash__(self) -> int:
        """Tasks can be members of sets."""
        return hash(self.id)


@dataclass(kw_only=True, config={"extra": "forbid"})
class TaskDistribution(ABC):
    """Where tasks come from; drawing and splitting are here, simulating is for subclasses."""

    independent_params: ClassVar[bool] = True
    """Whether one parameter changed alone gives another task of the family."""

    name: str
    """Name of the family; part of every task's identity and of the files written."""
    variant: str = ""
    """Which published definition, where papers disagree; part of every task's identity."""
    horizon: Horizon = 100
    """Steps of an episode."""
    params: dict[str, Param] = field(default_factory=dict)
    """The parameters in which tasks differ, by name."""
    perturbed: Annotated[int, Field(ge=1)] | None = None
    """How many of the parameters with a nominal value leave it in one task; None: all of them."""
    pool: dict[Split, Annotated[int, Field(ge=1)]] = field(default_factory=dict)
    """Splits with a fixed set of so many tasks, as some papers have; others draw afresh."""

    @model_validator(mode="after")
    def _check_perturbed(self) -> Self:
        if self.perturbed is not None and len(self._nominal()) < self.perturbed:
            raise ValueError(
                f"perturbed={self.perturbed} but only {len(self._nominal())} parameters have a "
                "nominal value to leave (op=scale or op=add)"
            )
        return self

    @property
    def id(self) -> str:
        """Name and variant: what tasks, and files that hold results, call the family."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    @property
    def obs_size(self) -> int:
        """O: what the simulation gives, and the parameters that are not hidden."""
        return self.raw_obs_size + len(self.visible)

    @property
    def visible(self) -> list[str]:
        """Names of the parameters that are not hidden."""
        return [name for name, param in self.params.items() if not param.hidden]

    @property
    def dt(self) -> float | None:
        """Seconds per control step; None where that is not known."""
        return None

    @property
    @abstractmethod
    def raw_obs_size(self) -> int:
        """Numbers in the simulation's own observation."""

    @property
    @abstractmethod
    def action_size(self) -> int:
        """A."""

    @property
    @abstractmethod
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action, each ``[A]``."""

    @abstractmethod
    def simulate(self, tasks: Sequence[Task], copies: int) -> VectorTasks:
        """Simulators that know the tasks but for their ``action:`` and ``obs:`` parameters."""

    def open(self, tasks: Sequence[Task], copies: int) -> VectorTasks:
        """Simulators for ``copies`` parallel episodes of each task."""
        return connect(self, self.simulate(tasks, copies))

    @property
    def holds_out(self) -> bool:
        """Whether it is rich enough to keep tasks back; if not, every split is the whole family."""
        optional = self._nominal() if self.perturbed is not None else []
        # Coefficient k counts the tasks in which k of the optional parameters leave nominal.
        counts = np.ones(1)
        for name in optional:
            counts = np.convolve(counts, [1.0, self.params[name].cells])
        others = math.prod(p.cells for name, p in self.params.items() if name not in optional)
        return float(counts[self.perturbed or 0]) * others >= _FEWEST_CELLS_TO_HOLD_OUT

    def held_out_note(self, split: Split) -> str:
        """What is and what is not held out of training, in a sentence."""
        if split == "ood":
            return "These tasks lie beyond the ranges of the parameters that training draws from."
        if self.holds_out:
            return (
                "Held-out tasks come from cells of the parameter space (a tenth of all, chosen by "
                "hash) from which training never draws."
            )
        return (
            "Nothing is held out: the family is so small that every task is trained on; only the "
            "reset and action noise of the evaluation are new."
        )

    def missing(self) -> str:
        """What has to be installed before it can be simulated; empty if nothing."""
        return ""

    def task(self, values: Mapping[str, float]) -> Task:
        """The task with these values; what is not named stays nominal, where it can."""
        for name in values:
            if name not in self.params:
                raise TaskError(
                    f"{self.name}: no parameter {name!r}; its parameters are {sorted(self.params)}"
                )
        filled = {}
        for name, param in self.params.items():
            value = values.get(name, param.neutral)
            if value is None:
                raise TaskError(f"{self.name}: parameter {name!r} needs a value (op=set)")
            filled[name] = float(value)
        return Task(self.id, filled)

    def draw(
        self,
        rng: np.random.Generator,
        fixed: Mapping[str, float] | None = None,
        ood: bool = False,
    ) -> dict[str, float]:
        """Values of one task from the whole family; ``fixed`` values are taken as they are.

        With ``ood`` the parameters that declare a range beyond their own are drawn from it.
        """
        fixed = fixed or {}
        values = {
            name: fixed[name] if name in fixed else (param.draw_ood if ood else param.draw)(rng)
            for name, param in self.params.items()
        }
        if self.perturbed is not None:
            for name in rng.permutation(self._nominal())[self.perturbed :].tolist():
                values[name] = float(self.params[name].neutral or 0.0)
        return values

    def _nominal(self) -> list[str]:
        return [name for name, param in self.params.items() if param.neutral is not None]

    def split_of(self, values: Mapping[str, float]) -> Split:
        """The split that these values belong to: 80 % train, 10 % validation, 10 % held-out cells.

        The parameter space is cut into cells and a hash of the cell decides, so the splits are
        disjoint by construction, whatever seed draws from them. Values beyond a parameter's range
        are "ood".
        """
        if any(param.beyond(values[name]) for name, param in self.params.items()):
            return "ood"
        cell = [param.cell(values[name]) for name, param in sorted(self.params.items())]
        digest = hashlib.sha256(json.dumps([self.name, cell]).encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return "train" if share < 0.8 else "validation" if share < 0.9 else "heldout"

    def sample(
        self, n: int, rng: np.random.Generator, split: Split = "train", distinct: bool = False
    ) -> list[Task]:
        """Draw ``n`` tasks of a split, stratified over the first discrete parameter.

        ``distinct`` refuses repeats, as an evaluation wants it. A family too small to hold tasks
        back then gives all it has, even if these are fewer than ``n``. A split with a pool gives
        tasks of that.
        """
        if split not in (*SPLITS, "ood"):
            raise TaskError(f"split={split!r}: expected one of {', '.join(SPLITS)} or ood")
        if split == "ood" and all(param.ood is None for param in self.params.values()):
            raise TaskError(f"{self.name}: no parameter declares an 'ood' range to draw from")
        if split in self.pool:
            return self._sample_pool(n, rng, split, distinct)
        return self._sample_fresh(n, rng, split, distinct)

    def _sample_pool(
        self, n: int, rng: np.random.Generator, split: Split, distinct: bool
    ) -> list[Task]:
        size = self.pool[split]
        if distinct and n > size:
            raise TaskError(
                f"{n} distinct tasks of {self.name!r}: the pool of {split!r} has {size}"
            )
        known = np.random.default_rng(_POOL_SEED)
        pool = self._sample_fresh(size, known, split, distinct=self.holds_out)
        chosen = rng.permutation(size)[:n] if distinct else rng.integers(size, size=n)
        return [pool[i] for i in chosen]

    def _sample_fresh(
        self, n: int, rng: np.random.Generator, split: Split, distinct: bool
    ) -> list[Task]:
        tasks: list[Task] = []
        for fixed in self._strata(n, rng, split):
            task = self._draw_from(split, rng, fixed, set(tasks) if distinct else set())
            if task is not None:
                tasks.append(task)
            elif self._held_apart(split):
                raise TaskError(
                    f"no further task of {self.name!r} in split {split!r} after {_MAX_DRAWS} "
                    "draws; the family may be too small for this many distinct tasks"
                )
        return tasks

    def _held_apart(self, split: Split) -> bool:
        return self.holds_out or split == "ood"

    def _draw_from(
        self, split: Split, rng: np.random.Generator, fixed: Mapping[str, float], taken: set[Task]
    ) -> Task | None:
        """One task of the split that is not among those taken; None if none was found."""
        for _ in range(_MAX_DRAWS if self._held_apart(split) else _DRAWS_TO_SEE_ALL_OF_FEW):
            task = Task(self.id, self.draw(rng, fixed, ood=split == "ood"))
            if self._held_apart(split) and self.split_of(task.values) != split:
                continue
            if task not in taken:
                return task
        return None

    def _strata(self, n: int, rng: np.random.Generator, split: Split) -> list[dict[str, float]]:
        """Each draw's value of the first discrete parameter, spread as evenly as ``n`` allows."""
        for name, param in self.params.items():
            optional = self.perturbed is not None and param.neutral is not None
            if param.choices is not None and not optional and not (split == "ood" and param.ood):
                # Which choices come once more than others, if n is no multiple, is drawn as well.
                order = rng.permutation(len(param.choices))[rng.permutation(n) % len(param.choices)]
                return [{name: float(param.choices[i])} for i in order]
        return [{} for _ in range(n)]

    def describe(self, tasks: Sequence[Task]) -> np.ndarray:
        """The tasks' parameters, ranges scaled to [-1, 1]: ``[T, d]``, for oracles, not agents."""
        rows = [[p.unit(t.values[name]) for name, p in self.params.items()] for t in tasks]
        return np.asarray(rows, dtype=np.float64).reshape(len(tasks), len(self.params))

    def label(self, task: Task, most: int = 3) -> str:
        """The task in a few words: the parameters that differ most from nominal."""
        parts = []
        for name, param in self.params.items():
            value = task.values[name]
            distance = math.inf if param.neutral is None else abs(value - param.neutral)
            if distance > 0:
                parts.append((distance, f"{name} {'x' if param.op == 'scale' else ''}{value:.3g}"))
        count = most if len(parts) <= most else max(most - 1, 1)
        shown = [text for _, text in sorted(parts, key=lambda part: -part[0])[:count]]
        more = [f"+{len(parts) - count} more"] if len(parts) > count else []
        return ", ".join([*shown, *more]) or "nominal"
