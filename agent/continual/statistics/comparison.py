"""Two agents on the same seeds: their difference, its interval, and how surprising it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import stats

from agent.continual.statistics.aggregates import improvement, paired_improvement
from agent.continual.statistics.estimate import (
    Estimate,
    Interval,
    Sample,
    aggregate_of_two,
    estimate,
    noted,
)
from agent.continual.statistics.intervals import Array, wilson_interval

Name = TypeVar("Name", bound=Hashable)
_EXACT = 16
"""Pairs up to which all sign changes are gone through."""
_DRAWS = 20000
_P_HAS_A_FLOOR = 5
"""Pairs up to which not even one sign for all is less likely than .05."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One metric of two agents."""

    first: Estimate
    second: Estimate
    difference: Estimate
    """First minus second; over the seeds that both have, if paired."""
    p: float
    """Two-sided; paired: of the exact sign-flip test, otherwise of Welch's."""
    better: Estimate
    """Probability that the first is the better one, ties half."""
    p_holm: float = math.nan
    """``p`` corrected for all comparisons that were made together."""


def compare(
    first: Sample,
    second: Sample,
    rng: np.random.Generator,
    *,
    better: str = "high",
    paired: bool = True,
    level: float = 0.95,
    interval: Interval = "t",
) -> Comparison:
    """Compare two agents in one metric; ``better`` is what is good of it, ``high`` or ``low``."""
    sign = -1.0 if better == "low" else 1.0
    ours, theirs = estimate(first, rng, level, interval), estimate(second, rng, level, interval)
    if not paired:
        difference, p = _welch(first, second, level)
        a, b = sign * first.array[:, None], sign * second.array[:, None]
        return Comparison(ours, theirs, difference, p, aggregate_of_two(improvement, a, b, rng))
    seeds = sorted(first.values.keys() & second.values.keys())
    notes = _notes(first, second)
    if alone := len(first.values.keys() ^ second.values.keys()):
        notes.append(f"{alone} seeds of one agent only are not in the difference")
    if 0 < len(seeds) <= _P_HAS_A_FLOOR:
        notes.append(f"p of {len(seeds)} pairs cannot be below {2 ** (1 - len(seeds)):.2g}")
    a = np.array([first.values[seed] for seed in seeds])
    b = np.array([second.values[seed] for seed in seeds])
    pairs = Sample(dict(zip(seeds, (a - b).tolist(), strict=True)), 0, notes)
    difference = dataclasses.replace(
        estimate(pairs, rng, level, interval), failed=first.failed + second.failed
    )
    share = paired_improvement(sign * a, sign * b) if seeds else math.nan
    n = len(seeds)
    bounds = wilson_interval(share, n, level) if n else (math.nan, math.nan)
    return Comparison(
        ours, theirs, difference, sign_flip_p(a - b, rng), Estimate(share, *bounds, n)
    )


def sign_flip_p(differences: Array, rng: np.random.Generator) -> float:
    """Two-sided permutation test of paired differences: how often is the mean as far from zero?

    Exact up to 16 pairs, from there on with random signs.
    """
    n = len(differences)
    if n == 0 or not np.isfinite(differences).all():
        return math.nan
    exact = n <= _EXACT
    if exact:
        flips = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        flips = rng.integers(2, size=(_DRAWS, n))
    sums = np.abs((1 - 2 * flips) @ differences)
    # Sums that are equal on paper differ in the last bits.
    as_far = sums >= abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    # The signs that were seen are one of the possible ones; random draws need not contain them.
    return float(as_far.mean() if exact else (as_far.sum() + 1) / (_DRAWS + 1))


def sign_p(differences: Array) -> float:
    """Two-sided sign test, exact; pairs without a difference do not count."""
    if not np.isfinite(differences).all():
        return math.nan
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given.

    One that is NaN stays so, and yet counts: it was meant to be tested.
    """
    values = np.array(p, dtype=float)
    order = np.argsort(values)  # NaN last
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def corrected(comparisons: Mapping[Name, Comparison]) -> dict[Name, Comparison]:
    """The comparisons, by any name, with ``p_holm`` for all of them together."""
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    return {
        name: dataclasses.replace(comparison, p_holm=p)
        for (name, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }


def _welch(first: Sample, second: Sample, level: float) -> tuple[Estimate, float]:
    """The difference of independent means, with Welch's interval and p."""
    a, b = first.array, second.array
    n = min(len(a), len(b))
    note = noted(n, [*_notes(first, second), "not paired"])
    mean = float(a.mean() - b.mean()) if n else math.nan
    low = high = p = math.nan
    if n > 1 and math.isfinite(mean):
        parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
        error = math.sqrt(parts.sum())
        if error == 0:
            low = high = mean
        else:
            freedom = error**4 / (parts**2 / [len(a) - 1, len(b) - 1]).sum()
            half = error * stats.t.ppf(0.5 + level / 2, freedom)
            low, high = float(mean - half), float(mean + half)
            p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return Estimate(mean, low, high, n, first.failed + second.failed, note), p


def _notes(first: Sample, second: Sample) -> list[str]:
    """Of both; what is said of both alike, once."""
    return list(dict.fromkeys([*first.notes, *second.notes]))
