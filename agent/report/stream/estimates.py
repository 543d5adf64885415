"""Numbers over lifetimes, as the page prints and draws them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from agent.continual.metrics.catalog import METRICS
from agent.continual.statistics.comparison import compare
from agent.continual.statistics.estimate import Estimate, Sample, estimate
from agent.continual.statistics.lifetimes import sample_of
from agent.report.stream.data import View

_SEED = 0
"""Of the resampling: the same run makes the same page."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """An estimate; where a lifetime without a value leaves none, what the others come to."""

    estimate: Estimate
    partial: float
    """Mean of the values there are; not an estimate where a lifetime is missing from it."""
    partial_n: int

    @property
    def known(self) -> bool:
        """Whether every lifetime that counts has a value."""
        return math.isfinite(self.estimate.mean)


Cells = Callable[[View, str, str], Cell]


def score(view: View, metric: str, agent: str) -> Cell:
    """A metric of an agent."""
    sample = sample_of(view.results, metric, agent)
    return _cell(estimate(sample, np.random.default_rng(_SEED)), sample.array)


def difference(view: View, metric: str, agent: str) -> Cell:
    """The agent less the primary one, by seed: lifetimes of equal seeds had the same tasks."""
    own, primary = (sample_of(view.results, metric, name) for name in (agent, view.primary))
    rng, better = np.random.default_rng(_SEED), METRICS[metric].better
    return _cell(compare(own, primary, rng, better=better).difference, _less(own, primary))


def _less(own: Sample, primary: Sample) -> list[float]:
    shared = own.values.keys() & primary.values.keys()
    return [own.values[seed] - primary.values[seed] for seed in sorted(shared)]


def _cell(found: Estimate, values: Iterable[float]) -> Cell:
    known = [value for value in values if math.isfinite(value)]
    return Cell(found, float(np.mean(known)) if known else math.nan, len(known))
