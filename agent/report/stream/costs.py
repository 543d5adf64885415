"""What agents reach against what they carry and what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from agent.continual.life import Life
from agent.report.stream.comparison import titled
from agent.report.stream.data import View
from agent.report.stream.estimates import score
from agent.report.style import finite_mean, styled


def carried_bytes(life: Life) -> float:
    """All that the agent carried after its last visit; NaN where nobody counted."""
    last = life.visits[-1].state_bytes if life.visits else {}
    return float(sum(last.values())) if last else math.nan


def cpu_seconds(life: Life) -> float:
    """Of all visits together."""
    return float(sum(visit.cpu_seconds for visit in life.visits)) if life.visits else math.nan


COSTS: dict[str, tuple[Callable[[Life], float], str]] = {
    "bytes carried at the end": (carried_bytes, "B"),
    "CPU-seconds of the visits": (cpu_seconds, "s"),
}
_HEIGHT, _GAP, _BESIDE = 180, 0.055, 0.07
"""Of a panel, in points; between labels, and between points that are side by side, in panels."""


@styled
def score_against_cost(view: View) -> Figure | None:
    """A panel per cost: a numbered point per agent. None where no cost or no score is known."""
    metric = view.headline[0] if view.headline else None
    if metric is None:
        return None
    scores = [score(view, metric, agent).partial for agent in view.agents]
    figure = Figure(figsize=(10, max(3.3, 0.8 + 0.155 * len(view.agents))), layout="constrained")
    *panels, key = figure.subplots(1, 3, width_ratios=[1, 1, 0.42])
    for axes, (name, (cost, unit)) in zip(panels, COSTS.items(), strict=True):
        spent = [mean_cost(view, agent, cost) for agent in view.agents]
        _scatter(axes, view, spent, scores)
        axes.set_xlabel(name)
        axes.xaxis.set_major_formatter(EngFormatter(unit=unit))
        if axes.get_xscale() == "linear":
            axes.locator_params(axis="x", nbins=5)
    panels[0].set_ylabel(titled(metric))
    _key(key, view)
    return figure


def mean_cost(view: View, agent: str, cost: Callable[[Life], float]) -> float:
    """Mean over the agent's finished lifetimes; an unfinished one has not paid for all of it."""
    each = [cost(life) for life in view.lives(agent) if life.status == "done"]
    return float(finite_mean(each)) if each else math.nan


def spread(wanted: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Positions in the same order, at least ``gap`` apart, and close to the wanted ones."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    # Isotonic regression: pooled neighbours share one mean.
    pools: list[tuple[float, int]] = []
    for value in wanted[order] - steps:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (first, n), (second, m) = pools[-2:]
            pools[-2:] = [((first * n + second * m) / (n + m), n + m)]
    out = np.empty(len(order))
    out[order] = np.concatenate([np.full(n, value) for value, n in pools] or [[]]) + steps
    return out


def _scatter(axes: Axes, view: View, spent: Sequence[float], scores: Sequence[float]) -> None:
    there = [i for i, pair in enumerate(zip(spent, scores, strict=True)) if np.isfinite(pair).all()]
    if not there:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#777777")
        axes.set(xticks=[], yticks=[])
        return
    x, y = (np.array([values[i] for i in there]) for values in (spent, scores))
    if x.min() > 0 and x.max() > 20 * x.min():
        axes.set_xscale("log")
        x = np.log(x)
    reach = np.ptp(y) or 1.0
    axes.set_ylim(y.min() - 0.1 * reach, y.max() + 0.1 * reach)
    axes.margins(x=0.1)
    shifts = label_shifts(x / (np.ptp(x) or 1.0), y / reach)
    for i, shift in zip(there, shifts, strict=True):
        look = view.looks[view.agents[i]]
        face = "white" if view.told(view.agents[i]) else look.colour
        axes.plot(spent[i], scores[i], look.marker, color=look.colour, mfc=face, ms=5.5, zorder=3)
        arrow = {"arrowstyle": "-", "color": "#AAAAAA", "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
        place: dict[str, Any] = {"xytext": (8, shift * _HEIGHT), "textcoords": "offset points"}
        place |= {"arrowprops": arrow} if abs(shift) > 0.02 else {}
        axes.annotate(str(i + 1), (spent[i], scores[i]), va="center", fontsize=7, zorder=6, **place)


def label_shifts(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far up each label moves so that none covers another; all in shares of the panel."""
    shifts, order = np.zeros(len(x)), np.argsort(x, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(x[order]) > _BESIDE) + 1)
    for group in groups:
        shifts[group] = spread(y[group], _GAP) - y[group]
    return shifts


def _key(axes: Axes, view: View) -> None:
    """Names of the numbers."""
    axes.set_axis_off()
    step = min(0.07, 1 / max(1, len(view.agents)))
    for i, agent in enumerate(view.agents):
        y, look = 1 - (i + 0.5) * step, view.looks[agent]
        face = "white" if view.told(agent) else look.colour
        axes.plot(
            0.02,
            y,
            look.marker,
            color=look.colour,
            mfc=face,
            ms=5,
            transform=axes.transAxes,
            clip_on=False,
        )
        text = f"{i + 1}  {view.label(agent, 22)}"
        axes.text(0.09, y, text, transform=axes.transAxes, va="center", fontsize=7.5)
