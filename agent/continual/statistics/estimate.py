"""A number with its uncertainty, and with how many lifetimes it rests on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from agent.continual.statistics.aggregates import mean
from agent.continual.statistics.intervals import (
    Array,
    Bounds,
    Statistic,
    bca_interval,
    bootstrap_t_interval,
    expanded_interval,
    percentile_interval,
    resample,
    resample_both,
    t_interval,
)

SMOKE, EXPLORATORY = 3, 9
"""With so many lifetimes nothing can be claimed, or little."""
SEPARATOR = "; "
"""Between the remarks of a note."""
Interval = Literal["t", "bootstrap_t", "expanded", "percentile", "bca"]
"""Of a mean. Student's covers best for any number of lifetimes unless they are strongly skewed;
then bootstrap-t does, which breaks down where many values are equal."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean (or another aggregate) over lifetimes."""

    mean: float
    """NaN where a lifetime that counts has no value."""
    low: float
    """Ends of the interval; NaN where there is none, as for one lifetime."""
    high: float
    n: int
    """Lifetimes that count, failed ones included."""
    failed: int = 0
    """Of ``n``, those that crashed."""
    note: str = ""
    """What a reader has to know."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the lifetimes of one agent gave of one metric."""

    values: Mapping[int, float]
    """By seed; NaN where a lifetime has none."""
    failed: int = 0
    """Of these, those that crashed, whether or not a value stands in for theirs."""
    notes: Sequence[str] = ()

    @property
    def array(self) -> Array:
        """The values in the order of seeds."""
        return np.array([self.values[seed] for seed in sorted(self.values)], dtype=float)


def sample(
    values: Mapping[int, float],
    crashed: Sequence[int] = (),
    stand_in: Mapping[int, float] | None = None,
    better: str = "high",
) -> Sample:
    """The values with every crashed lifetime in its place.

    Args:
        values: Of every lifetime by seed; what crashed ones say is not looked at.
        crashed: Seeds of those that crashed.
        stand_in: By seed, the score that a crashed lifetime is given, such as a random policy's.
            Where the agent's own worst is worse still, that counts: to crash never pays.
        better: ``high`` or ``low``; otherwise nothing is better, and nothing stands in.
    """
    lived = [value for seed, value in values.items() if seed not in crashed]
    filled = {
        seed: _given(seed, lived, stand_in, better) if seed in crashed else value
        for seed, value in values.items()
    }
    failed = [seed for seed in values if seed in crashed]
    empty = sum(math.isnan(value) for value in filled.values())
    notes = []
    if failed:
        given = all(math.isfinite(filled[seed]) for seed in failed)
        how = "the stand-in's score or the agent's own worst" if given else "no value"
        notes.append(f"{len(failed)} of {len(values)} crashed, counted with {how}")
    if lacking := empty - sum(math.isnan(filled[seed]) for seed in failed):
        notes.append(f"not defined in {lacking} of {len(values)}")
    return Sample(filled, len(failed), tuple(notes))


def estimate(
    values: Sample | Mapping[int, float],
    rng: np.random.Generator,
    level: float = 0.95,
    interval: Interval = "t",
) -> Estimate:
    """The mean over lifetimes."""
    of = values if isinstance(values, Sample) else Sample(values)
    n = len(of.values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, 0, "no lifetimes")
    low, high = _interval(of.array, rng, level, interval)
    notes = list(of.notes)
    if interval == "bootstrap_t" and np.isfinite(of.array).all() and not math.isfinite(high - low):
        notes.append("too few or too equal values for bootstrap-t")
    return Estimate(float(of.array.mean()), low, high, n, of.failed, noted(n, notes))


def aggregate(
    statistic: Statistic, scores: Array, rng: np.random.Generator, level: float = 0.95
) -> Estimate:
    """A statistic of ``scores [runs, tasks]``, such as ``aggregates.iqm``; whole runs drawn again.

    The interval is the expanded percentile's.
    """
    return _drawn(
        float(statistic(scores)), lambda: resample(statistic, scores, rng), [scores], level
    )


def aggregate_of_two(
    statistic: Callable[[Array, Array], float],
    first: Array,
    second: Array,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Estimate:
    """A statistic of two independent sets of runs, each drawn again, such as ``improvement``.

    Or of runs and the reference runs that they share: then n is that of the smaller set, which is
    what the certainty of the result hangs on.
    """
    value = statistic(first, second)
    return _drawn(
        value, lambda: resample_both(statistic, first, second, rng), [first, second], level
    )


def noted(n: int, notes: Sequence[str] = ()) -> str:
    """The notes, and what so many lifetimes are good for."""
    size = ["smoke, no claim"] if n <= SMOKE else ["exploratory"] if n <= EXPLORATORY else []
    return SEPARATOR.join([*size, *notes])


def _interval(array: Array, rng: np.random.Generator, level: float, interval: Interval) -> Bounds:
    if interval == "t" or len(array) < 2 or not np.isfinite(array).all():
        return t_interval(array, level)
    if interval == "bootstrap_t":
        return bootstrap_t_interval(array, rng, level)
    scores = array[:, None]
    drawn = resample(mean, scores, rng)
    if interval == "expanded":
        return expanded_interval(drawn, len(array), level)
    if interval == "percentile":
        return percentile_interval(drawn, level)
    return bca_interval(mean, scores, drawn, level)


def _drawn(
    value: float, draw: Callable[[], Array], sets: Sequence[Array], level: float
) -> Estimate:
    n = min(map(len, sets))
    missing = sum(int(np.isnan(scores.reshape(len(scores), -1)).any(1).sum()) for scores in sets)
    notes = [f"{missing} lifetimes without a score"] if missing else []
    bounds: Bounds = (np.nan, np.nan)
    if not missing:
        bounds = expanded_interval(draw(), n, level)
        if n > 1 and bounds[0] == bounds[1]:
            notes.append("the same in every resample: the interval says nothing")
    return Estimate(value, *bounds, n, 0, noted(n, notes))


def _given(
    seed: int, lived: Sequence[float], stand_in: Mapping[int, float] | None, better: str
) -> float:
    if stand_in is None or better not in ("high", "low"):
        return math.nan
    worst = min if better == "high" else max
    candidates = [stand_in.get(seed, math.nan), *lived]
    # min() keeps or loses a NaN depending on the order, so it is looked for.
    return math.nan if any(map(math.isnan, candidates)) else worst(candidates)
