"""What a metric is, and the few averages that all of them are made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

Better = Literal["high", "low", ""]


@dataclasses.dataclass(frozen=True)
class Metric:
    """An entry of the catalog."""

    id: str
    what: str
    """The exact definition: over which visits, tasks and episodes, and what NaN means."""
    unit: str
    better: Better = ""
    """Which way is good; empty where neither is."""
    source: str = ""
    """Who defined it; empty for this project."""
    headline: bool = False
    """Whether it belongs in the first table of a report."""
    raw: bool = False
    """In a group of metrics: whether there is also an ``.raw`` one, on returns as they are."""


def mean(values: Iterable[float]) -> float:
    """Mean of all values: NaN if one of them is, or if there are none."""
    kept = list(values)
    return float(np.mean(kept)) if kept else math.nan


def known_mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers: NaN if there are none."""
    return mean(value for value in values if math.isfinite(value))


def ratio(part: float, whole: float) -> float:
    """``part / whole``: NaN where it is not defined."""
    return part / whole if whole else math.nan


def slope(points: Iterable[tuple[float, float]]) -> float:
    """Least-squares slope of y over x: NaN with fewer than two different x, or with a NaN."""
    pairs = np.array(list(points), dtype=float).reshape(-1, 2)
    x, y = pairs[:, 0], pairs[:, 1]
    centred = x - mean(x)
    return ratio(float(centred @ y), float(centred @ centred)) if len(pairs) > 1 else math.nan
