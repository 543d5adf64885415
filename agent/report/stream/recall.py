"""First visit and re-visits on the same axes: what an agent still knows when a task comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agent.continual.life import Life, Visit
from agent.report.stream.data import View, matrix, over_lives
from agent.report.style import RING, finite_mean, styled

MAX_TURNS = 5
"""Visits to the same task that are drawn: the first ones."""
_LINES = ((0, (2, 1.2)), "-", (0, (7, 1.5, 1.3, 1.5)), (0, (1, 1)), (0, (9, 2)))
_MARKERS = ("x", "o", "s", "^", "D")


@styled
def recall_panels(view: View, notes: dict[str, str]) -> Figure | None:
    """A panel per drawn agent: mean return in the first, second, ... visit to a task.

    Only tasks that come again count. ``notes`` stand below the agents' names. None where no task
    comes again.
    """
    turns = {agent: by_turn(view.lives(agent)) for agent in view.drawn}
    most = max(map(len, turns.values()))
    if most < 2:
        return None
    beside = 2 if len(view.drawn) == 4 else min(3, len(view.drawn))
    lines = -(-len(view.drawn) // beside)
    figure = Figure(figsize=(10, 0.8 + 2.5 * lines), layout="constrained")
    grid = figure.subplots(lines, beside, sharex=True, sharey=True, squeeze=False)
    for axes, agent in zip(grid.flat, view.drawn, strict=False):
        for turn, visits in enumerate(turns[agent]):
            _turn(axes, visits, turn)
        name = axes.set_title(f"{view.label(agent)}\n", loc="left", fontsize="medium")
        name.set(color=view.looks[agent].colour, fontweight="bold")
        axes.text(0, 1.02, notes.get(agent, ""), transform=axes.transAxes, fontsize="small")
    for axes in grid.flat[len(view.drawn) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(view.drawn) - beside) : len(view.drawn)]:
        axes.tick_params(labelbottom=True)  # also above a gap in the last row
    figure.supxlabel("episodes of the visit", fontsize="medium")
    figure.supylabel("return per episode", fontsize="medium")
    widest = grid.flat[int(np.argmax([len(turns[agent]) for agent in view.drawn]))]
    figure.legend(*widest.get_legend_handles_labels(), loc="outside upper center", ncols=MAX_TURNS)
    return figure


Lived = tuple[Life, Visit]


def by_turn(lives: Sequence[Life]) -> list[list[Lived]]:
    """The first visits, the second ones, ... to the tasks that come again, with their lifetimes.

    As many as every such task has, so that all are of the same tasks.
    """
    out: list[list[Lived]] = []
    for life in lives:
        schedule = life.protocol.schedule
        planned = Counter(visit.task for visit in schedule if not visit.drifting)
        again = {task: times for task, times in planned.items() if times > 1}
        # As many as all of them have: another line of other tasks would be of other returns.
        turns = min([MAX_TURNS, *again.values()])
        count: dict[str, int] = {}
        for visit in life.visits:
            if schedule[visit.visit].drifting:
                continue
            turn = count[visit.task] = count.get(visit.task, -1) + 1
            if visit.task in again and turn < turns:
                while len(out) <= turn:
                    out.append([])
                out[turn].append((life, visit))
    return out


def turn_curve(lived: Sequence[Lived]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Episodes of the visit, and the mean return; at 0, the test return before any learning."""
    grid, values = over_lives([visit for _, visit in lived])
    before = [matrix(life).get((visit.visit, visit.task), np.nan) for life, visit in lived]
    return np.append(0.0, grid), np.append(finite_mean(before), finite_mean(values))


def _turn(axes: Axes, lived: Sequence[Lived], turn: int) -> None:
    x, mean = turn_curve(lived)
    colour = "#777777" if turn == 0 else colormaps["viridis"](0.12 + 0.2 * (turn - 1))
    label = "first visit" if turn == 0 else f"re-visit {turn}"
    every = max(1, len(x) // 8)
    shape = {"ls": _LINES[turn], "marker": _MARKERS[turn], "ms": 3.5, "markevery": (1, every)}
    axes.plot(x, mean, color=colour, lw=1.7, label=label, **shape)
    axes.plot(0, mean[0], "o", color=colour, clip_on=False, zorder=5, **RING)
