"""The evaluation matrix R of every agent, and what each visit did to the other tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from agent.continual.life import Life
from agent.continual.metrics.forgetting import cora_pairs
from agent.continual.metrics.scores import scores_of
from agent.report.stream.data import View, mean_matrix, task_names, visited_tasks
from agent.report.style import digits_for, finite_mean, number, short, styled

_RETURNS, _LOST = (colormaps[name].with_extremes(bad="#F2F2F2") for name in ("cividis", "PuOr_r"))
_WIDTH = 10.0


@styled
def return_matrices(view: View) -> Figure:
    """A heat map per agent: test return at each checkpoint (across) on each task (down)."""
    names, visits = task_names(view.protocol), len(view.protocol.schedule)
    values = {a: mean_matrix(view.in_order(view.lives(a)), names, visits) for a in view.agents}
    known = _finite(values.values())
    norm = Normalize(*((known.min(), known.max()) if known.size else (0, 1)))

    def draw(axes: Axes, agent: str) -> AxesImage:
        image = axes.imshow(values[agent], norm=norm, cmap=_RETURNS, aspect="auto")
        _frame_visits(axes, view, names)
        axes.set_xticks(range(0, visits + 1, max(1, (visits + 1) // 8)))
        return image

    label = "return"
    return _panels(view, names, visits + 1, values, draw, "visits that were over", label)


@styled
def forgetting_matrices(view: View) -> Figure:
    """A heat map per agent: what was lost on a task (down) while another was visited (across)."""
    names = visited_tasks(view.protocol)
    values = {agent: mean_lost(view.lives(agent), names) for agent in view.agents}
    known = np.abs(_finite(values.values()))
    reach = float(known.max()) if known.size and known.max() > 0 else 1.0
    norm = TwoSlopeNorm(0.0, -reach, reach)

    def draw(axes: Axes, agent: str) -> AxesImage:
        image = axes.imshow(values[agent], norm=norm, cmap=_LOST, aspect="auto")
        if len(names) <= 12:
            axes.set_xticks(range(len(names)), [short(name, 6) for name in names])
        return image

    return _panels(view, names, len(names), values, draw, "task that was visited", "return lost")


def mean_lost(lives: Sequence[Life], names: Sequence[str]) -> NDArray[np.float64]:
    """``forget.cora`` by pair, averaged over lifetimes: ``[tasks, visited tasks]``, in returns."""
    found = [cora_pairs(scores_of(life)) for life in lives]
    each = [[[pairs.get((i, j), math.nan) for j in names] for i in names] for pairs in found]
    return finite_mean(np.array(each))


def _panels(
    view: View,
    rows: Sequence[str],
    columns: int,
    values: dict[str, NDArray[np.float64]],
    draw: Callable[[Axes, str], AxesImage],
    across: str,
    label: str,
) -> Figure:
    """Small multiples with one scale: a panel per agent, numbers in the cells if they have room."""
    beside = min(len(view.agents), 2 if columns > 12 else 4)
    lines = -(-len(view.agents) // beside)
    height = max(0.5, min(2.6, 0.21 * len(rows)))
    figure = Figure(figsize=(_WIDTH, 0.95 + (0.4 + height) * lines), layout="constrained")
    grid = figure.subplots(lines, beside, sharex=True, sharey=True, squeeze=False)
    digits = digits_for(_finite(values.values()))
    texts = {a: {c: number(v, digits) for c, v in _cells(values[a])} for a in view.agents}
    longest = max((len(text) for each in texts.values() for text in each.values()), default=0)
    room = 0.9 * _WIDTH / beside / columns > 0.062 * longest and len(rows) <= 12
    image = None
    for axes, agent in zip(grid.flat, view.agents, strict=False):
        image = draw(axes, agent)
        _title(axes, view, agent)
        if room:
            _write(axes, values[agent], image, texts[agent])
    every = max(1, math.ceil(0.11 * len(rows) / height))
    grid[0, 0].set_yticks(range(0, len(rows), every), [short(n, 14) for n in rows][::every])
    for axes in grid.flat[len(view.agents) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(view.agents) - beside) : len(view.agents)]:
        axes.tick_params(labelbottom=True)  # also above a gap in the last row
    figure.supxlabel(across, fontsize="medium")
    if image is not None:
        bar = figure.colorbar(
            image,
            ax=grid,
            location="top",
            shrink=0.35,
            aspect=34,
            pad=0.14 / figure.get_figheight(),
        )
        bar.set_label(label, fontsize="small")
        bar.ax.tick_params(labelsize="small", length=2)
    return figure


def _title(axes: Axes, view: View, agent: str) -> None:
    title = axes.set_title(view.label(agent), loc="left", fontsize="small", pad=3)
    title.set(color=view.looks[agent].colour if agent in view.drawn else "#333333")
    title.set_fontweight("bold" if agent == view.primary else "normal")
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize="small")
    axes.spines[:].set_visible(False)


Place = tuple[int, ...]


def _cells(values: NDArray[np.float64]) -> list[tuple[Place, float]]:
    return [(place, float(v)) for place, v in np.ndenumerate(values) if math.isfinite(v)]


def _write(
    axes: Axes, values: NDArray[np.float64], image: AxesImage, texts: dict[Place, str]
) -> None:
    """The cells' numbers, dark on light and light on dark."""
    colours = image.to_rgba(values)
    for (i, j), text in texts.items():
        light = colours[i, j, :3] @ (0.299, 0.587, 0.114) > 0.5
        place = {"ha": "center", "va": "center", "fontsize": 6.5}
        axes.text(j, i, text, color="black" if light else "white", **place)


def _frame_visits(axes: Axes, view: View, names: Sequence[str]) -> None:
    """A frame around what had just been visited."""
    for number_, planned in enumerate(view.protocol.schedule):
        if planned.drifting:
            continue
        corner = (number_ + 0.5, names.index(planned.task) - 0.5)
        frame = Rectangle(corner, 1, 1, fill=False, ec="#D55E00", lw=1.1, clip_on=False, zorder=3)
        axes.add_patch(frame)


def _finite(arrays: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    every = np.concatenate([np.ravel(a) for a in arrays])
    return every[np.isfinite(every)]
