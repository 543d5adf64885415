"""Numbers in words, with no more digits than their uncertainty leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping

from agent.continual.statistics.estimate import SEPARATOR, Estimate

MISSING = "n/a"


def parts(estimate: Estimate) -> tuple[str, str, str]:
    """The mean and the ends of the interval, to two digits of the interval's half width."""
    half = (estimate.high - estimate.low) / 2
    known = math.isfinite(half) and half > 0
    # Without an interval, three digits of the mean itself.
    scale, digits = (half, 2) if known else (abs(estimate.mean), 3)
    decimals = _decimals(scale, digits)
    low, mean, high = (  # plus zero: no minus before a rounded zero
        f"{round(value, decimals) + 0.0:,.{decimals}f}" if math.isfinite(value) else MISSING
        for value in (estimate.low, estimate.mean, estimate.high)
    )
    return mean, low, high


def with_interval(estimate: Estimate) -> str:
    """Such as ``0.81 [0.70, 0.92]``; the mean alone where there is no interval."""
    mean, low, high = parts(estimate)
    return mean if low == high == MISSING else f"{mean} [{low}, {high}]"


def remarks(notes: Mapping[str, str]) -> list[str]:
    """The notes of several estimates, by what they are of: each thing said once, and of which."""
    where: dict[str, list[str]] = {}
    for name, note in notes.items():
        for remark in filter(None, note.split(SEPARATOR)):
            where.setdefault(remark, []).append(name)
    return [
        f"{remark}: {'all' if len(names) == len(notes) > 1 else ', '.join(names)}"
        for remark, names in where.items()
    ]


def _decimals(scale: float, digits: int) -> int:
    if not (math.isfinite(scale) and scale > 0):
        return 2
    return min(4, max(0, digits - 1 - math.floor(math.log10(scale))))
