"""How many seeds it takes to see a difference, from the spread that a pilot showed."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

MOST_SEEDS = 1_000_000


def power_of(n: int, delta: float, sd: float, *, paired: bool, level: float = 0.95) -> float:
    """Probability that a two-sided t test of n seeds (per agent) finds a difference of ``delta``.

    Args:
        n: Seeds of each agent.
        delta: The true difference, in the unit of the metric.
        sd: Paired: of the differences between the agents; otherwise of either agent.
        paired: Whether both agents live on the same seeds and their differences are tested.
        level: One minus the probability to see a difference where there is none.
    """
    freedom = n - 1 if paired else 2 * n - 2
    if sd == 0:
        return 1.0
    shift = abs(delta) / sd * math.sqrt(n if paired else n / 2)
    critical = stats.t.ppf(0.5 + level / 2, freedom)
    upper, lower = stats.nct.sf(critical, freedom, [shift, -shift])
    return float(upper + lower)


def seeds_needed(
    sd: float, delta: float, *, paired: bool, power: float = 0.8, level: float = 0.95
) -> int:
    """The fewest seeds (per agent) with which a difference is found with that probability.

    A few more than with the normal approximation, 2 ((z_level + z_power) sd / delta)^2, which
    takes ``sd`` for known: 17 against 16 where ``delta`` is one ``sd``.

    Raises:
        ValueError: ``sd``, ``delta`` or ``power`` is out of range, or a million seeds do not do.
    """
    if not (sd >= 0 and math.isfinite(sd)):
        raise ValueError(f"sd={sd}: expected a standard deviation, at least 0")
    if not (delta != 0 and math.isfinite(delta)):
        raise ValueError(f"delta={delta}: expected a difference other than 0")
    if not 0 < power < 1:
        raise ValueError(f"power={power}: expected a probability between 0 and 1")

    def enough(n: int) -> bool:
        return power_of(n, delta, sd, paired=paired, level=level) >= power

    high = 2
    while not enough(high):
        high *= 2
        if high > MOST_SEEDS:
            raise ValueError(f"delta={delta}: too small beside sd={sd:.3g} to be found at all")
    low = high // 2  # not enough, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def cautious_sd(sd: float, freedom: int, confidence: float = 0.8) -> float:
    """What the true SD is below with some confidence; NaN without degrees of freedom.

    A pilot's SD is too small as often as not, and then are the seeds too few. After Browne, "On
    the use of a pilot sample for sample size determination" (1995).
    """
    if freedom < 1:
        return math.nan
    return float(sd * np.sqrt(freedom / stats.chi2.ppf(1 - confidence, freedom)))
