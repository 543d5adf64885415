"""When agents noticed that their task had changed, where nobody told them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agent.continual.life import Life
from agent.continual.metrics.change import changes, delays
from agent.report.stream.data import View, offsets
from agent.report.style import styled


def split(life: Life) -> tuple[dict[int, int], list[int]]:
    """Changes of task that were noticed, with when, as ``change.delay`` counts; false alarms."""
    pairs = zip(changes(life), delays(life), strict=True)
    noticed = {change: change + delay for change, delay in pairs if delay is not None}
    false = sorted((Counter(life.detected) - Counter(noticed.values())).elements())
    return noticed, false


def listening(view: View) -> list[str]:
    """Agents that said anything about changes in any lifetime, in the order of the page."""
    return [a for a in view.agents if any(life.detected for life in view.lives(a))]


@styled
def detections(view: View, notes: dict[str, str]) -> Figure | None:
    """A row per lifetime: bars from a change until it was noticed, crosses for false alarms.

    ``notes`` stand beside the agents' names. None where no agent said anything.
    """
    agents = listening(view)
    if not agents:
        return None
    counts = [len(view.lives(agent)) for agent in agents]
    heights = [0.3 + 0.11 * max(count, 2) for count in counts]
    figure = Figure(figsize=(10, 0.9 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(agents), sharex=True, squeeze=False, height_ratios=heights)
    for axes, agent in zip(grid[:, 0], agents, strict=True):
        _rows(axes, view.lives(agent), view.looks[agent].colour)
        title = f"{view.label(agent)}   {notes.get(agent, '')}"
        axes.set_title(title, loc="left", fontsize="small", pad=3)
        axes.grid(visible=False)
    grid[-1, 0].set(xlabel="episodes since the stream began", xlim=(0, offsets(view.protocol)[-1]))
    return figure


def _rows(axes: Axes, lives: list[Life], colour: str) -> None:
    for row, life in enumerate(lives):
        noticed, false = split(life)
        axes.vlines(changes(life), row - 0.5, row + 0.5, color="black", lw=0.9, zorder=1)
        for edge, said in noticed.items():
            axes.plot([edge, said], [row, row], color=colour, lw=3, solid_capstyle="butt")
            axes.plot(said, row, "|", color=colour, ms=6, mew=1.6)
        axes.plot(false, np.full(len(false), row), "x", color="#D55E00", ms=4.5, mew=1.3)
    axes.set_yticks(range(len(lives)), [str(life.seed) for life in lives], fontsize=6)
    axes.set_ylim(len(lives) - 0.4, -0.6)
