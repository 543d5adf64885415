"""One named parameter in which tasks differ: where its value lands and what it is drawn from."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

Finite = Annotated[float, Field(allow_inf_nan=False)]

KINDS = ("attr", "kwarg", "model", "option", "reset", "call", "action", "obs")
"""Kinds of target of a parameter; ``action`` and ``obs`` work for every family."""

# Every continuous range is cut into this many cells; a cell belongs to exactly one split.
_CELLS_PER_RANGE = 64


class TaskError(ValueError):
    """A family that cannot be simulated or sampled as it was described; the message says why."""


def apply_op(op: str, current: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``current [n, ...]`` set to, scaled or shifted by each row's value of ``values [n]``."""
    column = np.asarray(values, dtype=np.float64).reshape(-1, *[1] * (current.ndim - 1))
    if op == "scale":
        return current * column
    if op == "add":
        return current + column
    return np.broadcast_to(column, (len(column), *current.shape[1:]))


@dataclass(kw_only=True, config={"extra": "forbid"})
class Param:
    """One task parameter: where its value lands, how it is applied and what it is drawn from."""

    to: str | list[str]
    """``KIND:NAME``, or several of them that one value drives together. Kinds: ``attr``, ``kwarg``,
    ``reset`` and ``call`` (a Gymnasium environment's attribute, constructor argument, reset option,
    method), ``model:FIELD[ROW,ELEMENT]`` and ``option:FIELD[INDEX]`` (MuJoCo), ``action:INDEX`` and
    ``obs:INDEX`` (one entry of what goes in or comes out)."""
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
    ood: list[Finite] | None = None
    """What split "ood" draws from: two ends of a range beyond [low, high], or other choices."""
    hidden: bool = True
    """Whether the agent must find the value out by acting; others are appended to what it sees."""
    inert: bool = False
    """It cannot change what happens; published parameter sets contain some that cannot."""

    def __post_init__(self) -> None:
        """Check that the parameter can be drawn."""
        for target in self.targets:
            kind, _, rest = target.partition(":")
            if kind not in KINDS or not rest:
                raise ValueError(
                    f"to={target!r}: expected KIND:NAME with a kind among {', '.join(KINDS)}, such "
                    "as attr:NAME, kwarg:NAME, model:FIELD[NAME] or option:FIELD[INDEX]"
                )
        if not self.targets:
            raise ValueError("to is empty; give at least one target")
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
        self._check_ood()

    def _check_ood(self) -> None:
        if self.ood is None:
            return
        if self.choices is not None:
            if not self.ood or set(self.ood) & {*self.choices, self.neutral}:
                raise ValueError(f"ood={self.ood}: expected values that are not among the choices")
        elif self.low is None or self.high is None or len(self.ood) != 2:
            raise ValueError(f"ood={self.ood}: expected the two ends of a range, [low, high]")
        elif self.ood[0] >= self.ood[1] or (self.ood[0] < self.high and self.ood[1] > self.low):
            raise ValueError(
                f"ood={self.ood}: expected [low, high] that does not overlap the range "
                f"[{self.low:g}, {self.high:g}]"
            )
        elif self.log and self.ood[0] <= 0:
            raise ValueError(f"ood={self.ood}: log=true needs values above 0")

    @property
    def targets(self) -> list[str]:
        """The targets, one or several, as a list."""
        return [self.to] if isinstance(self.to, str) else self.to

    @property
    def neutral(self) -> float | None:
        """The value that changes nothing, where there is one."""
        return {"scale": 1.0, "add": 0.0}.get(self.op)

    def draw(self, rng: np.random.Generator) -> float:
        """One value from the range or the choices."""
        if self.choices is not None:
            return float(self.choices[rng.integers(len(self.choices))])
        return self._uniform(rng, *self._ends())

    def draw_ood(self, rng: np.random.Generator) -> float:
        """One value from beyond the range, where that is declared; else an ordinary one."""
        if self.ood is None:
            return self.draw(rng)
        if self.choices is not None:
            return float(self.ood[rng.integers(len(self.ood))])
        low, high = (math.log(end) if self.log else end for end in self.ood)
        return self._uniform(rng, low, high)

    def _uniform(self, rng: np.random.Generator, low: float, high: float) -> float:
        value = rng.uniform(low, high)
        return float(math.exp(value) if self.log else value)

    def beyond(self, value: float) -> bool:
        """Whether a value lies outside of the range or the choices and is not the neutral one."""
        if value == self.neutral:
            return False
        if self.choices is not None:
            return value not in self.choices
        if self.low is None or self.high is None:
            raise ValueError("give both low and high, or choices")
        # The logarithm's round trip may miss an end by the last digit.
        slack = 1e-12 * max(abs(self.low), abs(self.high)) if self.log else 0.0
        return not self.low - slack <= value <= self.high + slack

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
