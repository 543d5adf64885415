"""The visits of a life in a row, with each agent's learning curves and the scratch reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from agent.continual.life import Life
from agent.report.stream.data import View, matrix, offsets, over_lives
from agent.report.style import RING, Look, finite_mean, short, styled

_BANDS = {"first": "#FFFFFF", "revisit": "#EEF3F8", "drift": "#F4F1E6"}
_REFERENCE = "#333333"
_GAINED = "#009E73"
_LOST: dict[str, Any] = {"fc": "#F6D5C3", "ec": "#D55E00", "hatch": "/////", "lw": 0}
_MAX_NAMES = 60
"""Visits whose tasks can be named above a panel."""


@styled
def timeline(view: View) -> Figure:
    """A panel per drawn agent: mean return of its batches along the life, and the reference."""
    figure = Figure(figsize=(10, 1.0 + 1.5 * len(view.drawn)), layout="constrained")
    grid = figure.subplots(len(view.drawn), sharex=True, sharey=True, squeeze=False)
    reference = scratch_lives(view)
    for axes, agent in zip(grid[:, 0], view.drawn, strict=True):
        _bands(axes, view)
        curves = mean_curves(view.in_order(view.lives(agent)))
        _area(axes, view, curves, mean_curves(reference))
        _lifetimes(axes, view, agent)
        for x, y in _placed(view, mean_curves(reference)):
            axes.plot(x, y, color=_REFERENCE, lw=1.1, ls=(0, (3, 1.5)), zorder=4)
        title = axes.set_title(view.label(agent), loc="left", fontsize="medium")
        title.set(fontweight="bold", color=view.looks[agent].colour)
    _names(grid[0, 0], view)
    grid[-1, 0].set_xlabel("episodes since the stream began")
    figure.supylabel("return per episode", fontsize="medium")
    _legend(figure, view, bool(reference))
    return figure


def scratch_lives(view: View) -> list[Life]:
    """Lifetimes that began every visit anew, on the same schedule: the single-task reference."""
    found = view.references("scratch") or view.lives("scratch")
    return view.in_order(found)


Curve = tuple[np.ndarray, np.ndarray]


def mean_curves(lives: Sequence[Life]) -> dict[int, Curve]:
    """By visit: the episodes of it, and the mean return over the lifetimes that got there."""
    out = {}
    for number in sorted({visit.visit for life in lives for visit in life.visits}):
        grid, values = over_lives([v for life in lives for v in life.visits if v.visit == number])
        if grid.size:
            out[number] = grid, finite_mean(values)
    return out


def _placed(view: View, curves: dict[int, Curve]) -> list[Curve]:
    starts = offsets(view.protocol)
    return [(grid + starts[number], mean) for number, (grid, mean) in curves.items()]


def _lifetimes(axes: Axes, view: View, agent: str) -> None:
    """Mean, lowest and highest of the lifetimes at each visit, and the test return at its start."""
    look, lives = view.looks[agent], view.in_order(view.lives(agent))
    for x, mean in _placed(view, mean_curves(lives)):
        axes.plot(x, mean, color=look.colour, lw=1.7, marker="o", ms=2.2, zorder=5)
    for number, start in enumerate(offsets(view.protocol)[:-1]):
        grid, values = over_lives([v for life in lives for v in life.visits if v.visit == number])
        if len(values) > 1 and grid.size:
            masked = np.ma.masked_invalid(values)
            band = (masked.min(0), masked.max(0))
            axes.fill_between(grid + start, *band, color=look.colour, alpha=0.13, lw=0)
        _start(axes, view, lives, number, look)


def _start(axes: Axes, view: View, lives: Sequence[Life], number: int, look: Look) -> None:
    task = view.protocol.schedule[number].task
    before = [matrix(life).get((number, task), np.nan) for life in lives]
    if np.isfinite(before).any():
        x = offsets(view.protocol)[number]
        axes.plot(x, finite_mean(before), "o", color=look.colour, zorder=6, **RING)


def _area(axes: Axes, view: View, curves: dict[int, Curve], reference: dict[int, Curve]) -> None:
    """Shades what the agent gained on the reference, and hatches what it lost."""
    starts = offsets(view.protocol)
    for number in curves.keys() & reference.keys():
        grid, mean = curves[number]
        other = np.interp(grid, *reference[number], left=np.nan, right=np.nan)
        x, gained = grid + starts[number], mean >= other
        axes.fill_between(
            x, mean, other, where=gained, interpolate=True, color=_GAINED, alpha=0.38, lw=0
        )
        axes.fill_between(x, mean, other, where=~gained, interpolate=True, **_LOST)


def _bands(axes: Axes, view: View) -> None:
    schedule, starts = view.protocol.schedule, offsets(view.protocol)
    for number, planned in enumerate(schedule):
        again = planned.task in [earlier.task for earlier in schedule[:number]]
        kind = "drift" if planned.drifting else "revisit" if again else "first"
        axes.axvspan(starts[number], starts[number + 1], color=_BANDS[kind], lw=0, zorder=0)
        axes.axvline(starts[number], color="#BBBBBB", lw=0.6, zorder=1)
    axes.set_xlim(-0.006 * starts[-1], starts[-1])
    axes.grid(axis="x", visible=False)


def _names(axes: Axes, view: View) -> None:
    """The tasks' names above the first panel, upright where they would not fit side by side."""
    schedule, starts = view.protocol.schedule, offsets(view.protocol)
    if len(schedule) > _MAX_NAMES:
        return
    names = ["~" if planned.drifting else short(planned.task, 14) for planned in schedule]
    narrow = max(map(len, names)) * len(schedule) > 110
    for name, left, right in zip(names, starts, starts[1:], strict=False):
        rotation = 90 if narrow else 0
        transform = axes.get_xaxis_transform()
        place = {"ha": "center", "va": "bottom", "rotation": rotation, "fontsize": "small"}
        axes.text((left + right) / 2, 1.16, name, transform=transform, **place)


def _legend(figure: Figure, view: View, reference: bool) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color="#555555", lw=1.7, label="agent, mean"),
        Patch(color="#555555", alpha=0.2, label="lowest to highest lifetime"),
        Line2D(
            [], [], color="#555555", marker="o", ls="", label="test return at the start", **RING
        ),
        Patch(color=_BANDS["revisit"], label="re-visit"),
    ]
    if any(planned.drifting for planned in view.protocol.schedule):
        handles.append(Patch(color=_BANDS["drift"], label="drift"))
    if reference:
        dashed = Line2D([], [], color=_REFERENCE, lw=1.1, ls=(0, (3, 1.5)), label="from scratch")
        gained = Patch(color=_GAINED, alpha=0.38, label="gained on it")
        lost = Patch(label="lost", **_LOST)
        handles += [dashed, gained, lost]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
