"""All agents beside each other: every headline metric, and each agent less the primary one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agent.continual.metrics.catalog import METRICS
from agent.continual.statistics.aggregates import profile, profile_band
from agent.continual.statistics.lifetimes import task_scores
from agent.report.stream.data import View
from agent.report.stream.estimates import Cell, Cells, difference, score
from agent.report.style import styled

_PLAIN = ("", "1", "score", "ratio", "share")
"""Units that go without saying."""
_COLUMNS = 6
"""Headline metrics that a figure has room for."""


@styled
def dots(view: View) -> Figure | None:
    """A row per agent, a column per headline metric: mean and interval."""
    return _forest(view, view.agents, score)


@styled
def differences(view: View) -> Figure | None:
    """As ``dots``, of each agent less the primary one; None where there is none."""
    others = [agent for agent in view.agents if agent != view.primary]
    figure = _forest(view, others, difference) if others else None
    for axes in figure.axes if figure else []:
        axes.axvline(0, color="black", lw=0.9, zorder=1)
    return figure


@styled
def profiles(view: View) -> Figure | None:
    """Share of scores above each value, for the drawn agents; None where there are no scores."""
    panels = [panel for panel in _scores(view) if panel[1]][:3]
    if not panels:
        return None
    figure = Figure(figsize=(10, 3.0), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, scores) in zip(grid, panels, strict=True):
        _profile(axes, view, scores)
        axes.set(xlabel=title, ylim=(-0.03, 1.03))
    grid[0].set_ylabel("share above")
    named = {
        label: h
        for axes in grid
        for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    place = {"loc": "outside upper center", "ncols": len(named), "fontsize": "small"}
    figure.legend(list(named.values()), list(named), **place)
    return figure


Scores = dict[str, NDArray[np.float64]]
"""By agent, ``[lifetimes, scores of each]``; only agents that have all of them."""


def _scores(view: View) -> list[tuple[str, Scores]]:
    """What there are profiles of: final scores by task, then the headline metrics."""
    final = {agent: task_scores(view.results, agent)[1] for agent in view.drawn}
    out = [("final score, lifetime by task →", final)]
    for metric in view.headline:
        values = {agent: view.values(metric, agent)[:, None] for agent in view.drawn}
        if METRICS[metric].better == "high" and metric != "ap.final":
            out.append((titled(metric), values))
    return [
        (title, {a: s for a, s in each.items() if s.size and np.isfinite(s).all()})
        for title, each in out
    ]


def _profile(axes: Axes, view: View, scores: Scores) -> None:
    every = np.concatenate([np.ravel(each) for each in scores.values()])
    edge = 0.05 * (np.ptp(every) or 1.0)
    thresholds = np.linspace(every.min() - edge, every.max() + edge, 200)
    for agent, each in scores.items():
        look = view.looks[agent]
        low, high = profile_band(each, thresholds, np.random.default_rng(0))
        axes.fill_between(thresholds, low, high, color=look.colour, alpha=0.09, lw=0)
        above, name = profile(each, thresholds), view.label(agent)
        axes.plot(thresholds, above, color=look.colour, ls=look.line, lw=1.7, label=name)


def titled(metric: str) -> str:
    """The metric's id with its unit and an arrow to the better side."""
    unit = METRICS[metric].unit
    return f"{metric}{'' if unit in _PLAIN else f' [{unit}]'}{arrow(metric)}"


def arrow(metric: str, high: str = " →", low: str = " ←") -> str:
    """Points to the better side of an axis; empty where neither is."""
    return {"high": high, "low": low, "": ""}[METRICS[metric].better]


def _forest(view: View, agents: Sequence[str], cells: Cells) -> Figure | None:
    found = {m: [cells(view, m, agent) for agent in agents] for m in view.headline}
    columns = [m for m, each in found.items() if any(cell.partial_n for cell in each)][:_COLUMNS]
    if not columns:
        return None
    figure = Figure(figsize=(10, 0.9 + 0.215 * len(agents)), layout="constrained")
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, metric in zip(grid, columns, strict=True):
        for row, agent in enumerate(agents):
            _dot(axes, row, found[metric][row], view, agent)
        axes.set_title(titled(metric).replace(" [", "\n["), fontsize="medium")
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="y", color="#EEEEEE", lw=4.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(agents)), [view.label(agent) for agent in agents])
    grid[0].set_ylim(len(agents) - 0.4, -0.6)
    for label, agent in zip(grid[0].get_yticklabels(), agents, strict=True):
        label.set(fontweight="bold" if agent == view.primary else "normal")
    return figure


def _dot(axes: Axes, row: int, cell: Cell, view: View, agent: str) -> None:
    look, found = view.looks[agent], cell.estimate
    if not cell.known:
        if math.isfinite(cell.partial):  # without an interval: crashed lifetimes are missing
            axes.plot(cell.partial, row, "x", color=look.colour, ms=5, mew=1.4)
        return
    if math.isfinite(found.low):
        axes.plot([found.low, found.high], [row, row], color=look.colour, lw=1.6)
    face = "white" if view.told(agent) else look.colour
    axes.plot(found.mean, row, look.marker, color=look.colour, mfc=face, ms=5.5, mew=1.4)
