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
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Horizon = Annotated[int, Field(ge=1)]

# Every continuous range is cut into this many cells; a cell belongs to exactly one split.
_CELLS_PER_RANGE = 64
# A family with fewer cells than this cannot give some away: every split is then the whole family.
_FEWEST_CELLS_TO_HOLD_OUT = 64
_MAX_DRAWS = 10_000
# With fewer than 20 tasks, this many draws miss one of them less than once in 10^20 times.
_DRAWS_TO_SEE_ALL_OF_FEW = 1_000


class TaskError(ValueError):
    """A family that cannot be simulated or sampled as it was described; the message says why."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Param:
    """One task parameter: where its value lands, how it is applied and what it is drawn from."""

    to: str
    """Target: ``attr:name``, ``kwarg:name``, ``model:field[name]`` or ``option:field[index]``."""
    op: Literal["set", "scale", "add"] = "set"
    """How the value meets the nominal one: replace it, multiply it, or add to it."""
    low: Finite | None = None
    """Lower end of the range (in the target's unit, or a factor for ``scale``)."""
    high: Finite | None = None
    """Upper end of the range."""
    log: bool = False
    """Draw uniformly in the logarithm of the value (needs ``low > 0``)."""
    choices: list[Finite] | None = None
    """Draw from this list instead of a range."""
    hidden: bool = True
    """Whether the agent must find the value out by acting; visible ones are shown to it."""

    def __post_init__(self) -> None:
        """Check that the parameter can be drawn."""
        kind = self.to.partition(":")[0]
        if kind not in ("attr", "kwarg", "model", "option") or not self.to.partition(":")[2]:
            raise ValueError(
                f"to={self.to!r}: expected attr:NAME, kwarg:NAME, model:FIELD[NAME] "
                "or option:FIELD[INDEX]"
            )
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("give either choices or low/high/log, not both")
            if not self.choices:
                raise ValueError("choices is empty; give at least one value")
        elif self.low is None or self.high is None:
            raise ValueError("give both low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        elif self.log and self.low <= 0:
            raise ValueError(f"log=true needs low > 0, got low={self.low:g}")

    @property
    def neutral(self) -> float | None:
        """The value that changes nothing, where there is one."""
        return {"scale": 1.0, "add": 0.0}.get(self.op)

    def draw(self, rng: np.random.Generator) -> float:
        """One value from the range or the choices."""
        if self.choices is not None:
            return float(self.choices[rng.integers(len(self.choices))])
        low, high = self._ends()
        value = rng.uniform(low, high)
        return float(math.exp(value) if self.log else value)

    def unit(self, value: float) -> float:
        """The value on a scale from -1 (low end) to 1 (high end)."""
        low, high = self._ends()
        if low == high:  # a single choice carries no information
            return 0.0
        return 2.0 * ((math.log(value) if self.log else value) - low) / (high - low) - 1.0

    def cell(self, value: float) -> int:
        """Index of the range's cell that holds the value; each choice is a cell of its own."""
        if self.choices is not None:
            return self.choices.index(value) if value in self.choices else len(self.choices)
        position = (self.unit(value) + 1.0) / 2.0
        return min(max(int(position * _CELLS_PER_RANGE), 0), _CELLS_PER_RANGE - 1)

    @property
    def cells(self) -> int:
        """How many cells the range has."""
        return len(self.choices) if self.choices is not None else _CELLS_PER_RANGE

    def _ends(self) -> tuple[float, float]:
        if self.choices is not None:  # what is left nominal belongs to the range
            known = [*self.choices, *([] if self.neutral is None else [self.neutral])]
            return min(known), max(known)
        if self.low is None or self.high is None:
            raise ValueError("give both low and high, or choices")
        if self.log:
            return math.log(self.low), math.log(self.high)
        return self.low, self.high


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


class VectorTasks(ABC):
    """T x E simulators in lock step: whole episodes, no autoreset, terminated and truncated apart.

    A simulation that has ended keeps its place; the caller must mask what it returns afterwards.
    """

    tasks: Sequence[Task]
    copies: int
    """E, simulators per task."""
    physics_s: float
    """Wall seconds spent inside the simulator since it was opened."""

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every simulator; equal seeds, equal starts. Obs ``[T, E, O]``."""

    @abstractmethod
    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Apply ``action [T, E, A]``; obs ``[T, E, O]``, reward, terminated, truncated."""

    @property
    @abstractmethod
    def diverged(self) -> np.ndarray:
        """``[T, E]`` bool: simulations that blew up since the last reset; their data is void."""

    def close(self) -> None:  # noqa: B027 (most hold nothing to free)
        """Free what the simulators hold."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class TaskDistribution(ABC):
    """Where tasks come from; drawing and splitting are here, simulating is for subclasses."""

    name: str
    """Name of the family; part of every task's identity and of the files written."""
    horizon: Horizon = 100
    """Steps of an episode."""
    params: dict[str, Param] = field(default_factory=dict)
    """The parameters in which tasks differ, by name."""

    @property
    @abstractmethod
    def obs_size(self) -> int:
        """O."""

    @property
    @abstractmethod
    def action_size(self) -> int:
        """A."""

    @property
    @abstractmethod
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action, each ``[A]``."""

    @abstractmethod
    def open(self, tasks: Sequence[Task], copies: int) -> VectorTasks:
        """Simulators for ``copies`` parallel episodes of each task."""

    @property
    def holds_out(self) -> bool:
        """Whether it is rich enough to keep tasks back; if not, every split is the whole family."""
        return math.prod(param.cells for param in self.params.values()) >= _FEWEST_CELLS_TO_HOLD_OUT

    def draw(
        self, rng: np.random.Generator, fixed: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Values of one task from the whole family; ``fixed`` values are taken as they are."""
        fixed = fixed or {}
        return {
            name: fixed[name] if name in fixed else param.draw(rng)
            for name, param in self.params.items()
        }

    def split_of(self, values: Mapping[str, float]) -> Split:
        """The split that these values belong to: 80 % train, 10 % validation, 10 % held-out cells.

        The parameter space is cut into cells and a hash of the cell decides, so the splits are
        disjoint by construction, whatever seed draws from them.
        """
        cell = [param.cell(values[name]) for name, param in sorted(self.params.items())]
        digest = hashlib.sha256(json.dumps([self.name, cell]).encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return "train" if share < 0.8 else "validation" if share < 0.9 else "heldout"

    def sample(
        self, n: int, rng: np.random.Generator, split: Split = "train", distinct: bool = False
    ) -> list[Task]:
        """Draw ``n`` tasks of a split, stratified over the first discrete parameter.

        ``distinct`` refuses repeats, as an evaluation wants it. A family too small to hold tasks
        back then gives all it has, even if these are fewer than ``n``.
        """
        if split not in SPLITS:
            raise TaskError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        tasks: list[Task] = []
        for fixed in self._strata(n, rng):
            task = self._draw_from(split, rng, fixed, set(tasks) if distinct else set())
            if task is not None:
                tasks.append(task)
            elif self.holds_out:
                raise TaskError(
                    f"no further task of {self.name!r} in split {split!r} after {_MAX_DRAWS} "
                    "draws; the family may be too small for this many distinct tasks"
                )
        return tasks

    def _draw_from(
        self, split: Split, rng: np.random.Generator, fixed: Mapping[str, float], taken: set[Task]
    ) -> Task | None:
        """One task of the split that is not among those taken; None if none was found."""
        for _ in range(_MAX_DRAWS if self.holds_out else _DRAWS_TO_SEE_ALL_OF_FEW):
            task = Task(self.name, self.draw(rng, fixed))
            if self.holds_out and self.split_of(task.values) != split:
                continue
            if task not in taken:
                return task
        return None

    def _strata(self, n: int, rng: np.random.Generator) -> list[dict[str, float]]:
        """Each draw's value of the first discrete parameter, spread as evenly as ``n`` allows."""
        for name, param in self.params.items():
            if param.choices is not None:
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
