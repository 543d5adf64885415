"""What the memory took each visit's task for, against what it was."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from agent.continual.life import Life, Visit
from agent.report.stream.data import View, visited_tasks
from agent.report.style import short, styled

NONE = "none of these"
_TRUE = "#D55E00"


def with_memory(view: View) -> dict[str, Life]:
    """For each agent that weighs memories, its first lifetime that did; drawn agents come first."""
    out = {}
    for agent in dict.fromkeys([*view.drawn, *view.agents]):
        weighing = [life for life in view.lives(agent) if any(map(_weighs, life.visits))]
        if weighing:
            out[agent] = min(weighing, key=lambda life: life.seed)
    return out


def posterior(life: Life) -> tuple[list[str], NDArray[np.float64]]:
    """Names of tasks and "none of these" last, and the weights ``[names, visits]``.

    NaN where the memory held nothing of that task, or nothing was weighed.
    """
    seen = dict.fromkeys(v for v in visited_tasks(life.protocol) if v in _lived(life))
    others = dict.fromkeys(name for visit in life.visits for name in visit.recalled.weights)
    names = [*(seen | others), NONE]
    values = np.full((len(names), len(life.visits)), np.nan)
    for column, visit in enumerate(life.visits):
        for name, weight in visit.recalled.weights.items():
            values[names.index(name), column] = weight
        if visit.recalled.null is not None:
            values[-1, column] = visit.recalled.null
    return names, values


def right_answers(life: Life, names: Sequence[str]) -> list[int | None]:
    """By visit, the row of ``names`` that is right: none of these where the task is new.

    None in a drift, where there is no right answer.
    """
    drifting = [planned.drifting for planned in life.protocol.schedule]
    new = len(names) - 1
    return [
        None if drifting[v.visit] else names.index(v.task) if v.revisit else new
        for v in life.visits
    ]


def started_from(life: Life, names: Sequence[str]) -> list[int | None]:
    """By visit, the row of ``names`` that it started from; None where nothing was weighed."""
    out: list[int | None] = []
    for visit in life.visits:
        source = visit.recalled.of_task
        known = names.index(source) if source in names else None
        fresh = len(names) - 1 if _weighs(visit) else None
        out.append(known if visit.recalled.row is not None else fresh)
    return out


@styled
def retrieval_timeline(lives: dict[str, Life]) -> Figure:
    """A panel per agent: weights (dark) by visit (across) and task (down), the true task framed."""
    heights = [0.35 + 0.24 * len(posterior(life)[0]) for life in lives.values()]
    figure = Figure(figsize=(10, 0.5 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(lives), squeeze=False, height_ratios=heights)
    for axes, (agent, life) in zip(grid[:, 0], lives.items(), strict=True):
        _panel(axes, life)
        title = f"{short(agent, 24)}, seed {life.seed}"
        axes.set_title(title, loc="left", fontsize="medium", pad=4)
    grid[-1, 0].set_xlabel("visit, and the task that it was to")
    return figure


def _panel(axes: Axes, life: Life) -> None:
    names, values = posterior(life)
    colours = colormaps["Greys"].with_extremes(bad="#FFFFFF")
    axes.imshow(values, vmin=0, vmax=1.25, cmap=colours, aspect="auto")
    few = len(life.visits) <= 16
    for (row, column), weight in np.ndenumerate(values):
        if few and math.isfinite(weight):
            colour = "white" if weight > 0.62 else "black"
            place = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(column - 0.18, row, f"{weight:.2f}", **place)
    for column, row in enumerate(right_answers(life, names)):
        if row is None:
            continue
        frame = Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, ec=_TRUE, lw=1.8)
        axes.add_patch(frame)
    for column, row in enumerate(started_from(life, names)):
        if row is not None:
            axes.plot(column + 0.27, row, "o", mfc="#56B4E9", mec="white", ms=6, mew=0.9)
    axes.set_yticks(range(len(names)), [short(name, 16) for name in names], fontsize="small")
    step = max(1, len(life.visits) // 25)
    ticks = [f"{v.visit}\n{short(v.task, 10)}" if few else str(v.visit) for v in life.visits]
    axes.set_xticks(range(0, len(ticks), step), ticks[::step], fontsize="small")
    axes.set_xticks(np.arange(len(ticks) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color="#DDDDDD", lw=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _lived(life: Life) -> set[str]:
    return {visit.task for visit in life.visits}


def _weighs(visit: Visit) -> bool:
    return bool(visit.recalled.weights) or visit.recalled.null is not None
