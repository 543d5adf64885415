"""Comparisons of agents, and numbers of seeds, as tables for the terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from agent.continual.metrics.catalog import METRICS
from agent.continual.statistics.comparison import Comparison
from agent.continual.statistics.estimate import Estimate
from agent.continual.statistics.power import cautious_sd, seeds_needed
from agent.continual.statistics.text import MISSING, remarks, with_interval


@dataclasses.dataclass(frozen=True)
class Spread:
    """How much lifetimes vary."""

    what: str
    """In words."""
    paired: bool
    """Whether ``sd`` is that of differences between lifetimes of equal seeds."""
    sd: float
    """Over lifetimes, or over pairs of them."""
    n: int = 0
    """Lifetimes of each agent (the fewer), or pairs, that it is from; 0: it is known."""
    freedom: int = 0
    """Degrees of freedom that it is estimated with."""


def spread_of(what: str, paired: bool, *groups: Sequence[float]) -> Spread:
    """The SD pooled over groups of values; NaN where no group has two."""
    arrays = [np.array(group) for group in groups]
    freedom = sum(max(len(array) - 1, 0) for array in arrays)
    squares = sum(float(((array - array.mean()) ** 2).sum()) for array in arrays if len(array))
    sd = math.sqrt(squares / freedom) if freedom else math.nan
    return Spread(what, paired, sd, min(map(len, arrays)), freedom)


def comparison_tables(
    first: str, comparisons: Mapping[tuple[str, str], Comparison], level: float
) -> Group:
    """A table for each of the other agents, a line for each metric; then what has to be known."""
    others = dict.fromkeys(other for _, other in comparisons)
    tables = [
        _comparison_table(
            first, other, {m: found for (m, name), found in comparisons.items() if name == other}
        )
        for other in others
    ]
    low = [metric for metric, _ in comparisons if METRICS[metric].better == "low"]
    notes = {f"{metric} ({other})": c.difference.note for (metric, other), c in comparisons.items()}
    lines = [
        f"In brackets: {level:.0%} intervals, and p after Holm for {len(comparisons)} comparisons.",
        *([f"Low is better: {', '.join(dict.fromkeys(low))}."] if low else []),
        *remarks(notes),
    ]
    return Group(*tables, escape("\n".join(lines)))


def _comparison_table(first: str, other: str, comparisons: Mapping[str, Comparison]) -> Table:
    table = Table(
        "metric", "n", escape(first), escape(other), "difference", "p", "P better",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for metric, found in comparisons.items():
        table.add_row(
            escape(metric),
            f"{found.difference.n}",
            _stacked(found.first),
            _stacked(found.second),
            _stacked(found.difference),
            f"{_p(found.p)}\n({_p(found.p_holm)})",
            _stacked(found.better),
        )
    return table


def _stacked(estimate: Estimate) -> str:
    """The mean above its interval."""
    return escape(with_interval(estimate).replace(" [", "\n[", 1))


def power_table(
    metric: str | None,
    spreads: Sequence[Spread],
    delta: float,
    power: float = 0.8,
    level: float = 0.95,
) -> Table:
    """How many seeds it takes by each of the spreads to find a difference of ``delta``.

    Raises:
        ValueError: No number of seeds does.
    """
    table = Table(
        "from", "design", "pilot n", "SD", "seeds", "cautious",
        title=escape(
            f"Seeds per agent to find a difference of {delta:g}{f' in {metric}' if metric else ''} "
            f"with probability {power:g} (two-sided t test, level {1 - level:.2g})"
        ),
        caption="A pilot's SD is too small as often as not: 'cautious' takes a value that the true "
        "one is below with probability .8. Crashed lifetimes are not in it; where all are equal, "
        "the pilot says nothing.",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for column in table.columns[2:]:
        column.justify = "right"
    for spread in spreads:
        known = spread.n == spread.freedom == 0
        sds = [spread.sd] if known else [spread.sd, cautious_sd(spread.sd, spread.freedom)]
        seeds = [_seeds(sd, delta, spread.paired, power, level) for sd in sds]
        table.add_row(
            escape(spread.what),
            "same seeds" if spread.paired else "seeds of their own",
            f"{spread.n}" if spread.n else "",
            f"{spread.sd:.3g}" if math.isfinite(spread.sd) else MISSING,
            *seeds,
        )
    return table


def _seeds(sd: float, delta: float, paired: bool, power: float, level: float) -> str:
    if not (math.isfinite(sd) and sd > 0):
        return MISSING
    return f"{seeds_needed(sd, delta, paired=paired, power=power, level=level):,}"


def _p(p: float) -> str:
    return MISSING if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}"
