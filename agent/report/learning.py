"""Learning curves of several learners on the same axes: by env steps, and beside it by time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from agent.report.style import GREY, short, styled

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#882255",
    "#999933",
    "#332288",
    "#44AA99",
    "#8C564B",
    "#DD4477",
    "#6B8E23",
)
_LABEL_HEIGHT = 0.042  # of the panel


@dataclass(frozen=True)
class Band:
    """A curve ``[n]``: the mean over seeds, and their range."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Learning:
    """One learner: what it reaches before and after adapting, by env steps and by time."""

    label: str
    before: tuple[Band, Band]
    after: tuple[Band, Band]


@styled
def learning_picture(
    learners: Sequence[Learning],
    lines: Mapping[str, float],
    title: str,
    horizon: int,
    steps: int,
    time: str,
) -> Figure:
    """The figure; ``steps`` of adaptation are shown, ``time`` is the second panel's label."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, (axes, name) in enumerate(
        zip(panels, ("env steps of meta-training", time), strict=True)
    ):
        for learner, colour in zip(learners, _cycled(len(learners)), strict=True):
            _draw(axes, learner.before[number], learner.after[number], colour)
        axes.set_xlabel(name)
        axes.set_xlim(0, None)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel(f"return per episode\n({horizon} steps)")
    figure.suptitle(short(title, 100), x=0.01, ha="left", fontsize="large")
    values = [*lines.values(), *panels[0].get_ylim()]
    margin = 0.02 * (max(values) - min(values))
    panels[0].set_ylim(min(values) - margin, max(values) + margin)
    for number, axes in enumerate(panels):
        _draw_lines(axes, lines)
        ends = [learner.after[number] for learner in learners]
        _label_ends(axes, [learner.label for learner in learners], ends)
    several = any((line.after[0].low < line.after[0].high).any() for line in learners)
    figure.legend(handles=_key(steps, several), loc="outside upper right", ncols=3)
    return figure


@styled
def saved(figure: Figure, ending: str) -> bytes:
    """The picture as a file of that kind: ``svg``, ``png`` or ``pdf``; always of the same bytes."""
    buffer = io.BytesIO()
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(buffer, format=ending, dpi=160, metadata=dated.get(ending))
    return buffer.getvalue()


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions from 0 to 1 nearest to those wanted, in their order, at least ``gap`` apart.

    Least squares: neighbours that are too near form a block that is centred on what they want.
    """
    gap = min(gap, 1 / max(len(wanted) - 1, 1))
    order = np.argsort(np.asarray(wanted, float), kind="stable")
    blocks: list[tuple[float, int]] = []  # mean of (wanted - place * gap), size
    for place, index in enumerate(order):
        mean, size = float(wanted[index]) - place * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    highest = 1 - gap * (len(wanted) - 1)
    flat = [min(max(mean, 0.0), highest) for mean, size in blocks for _ in range(size)]
    out = [0.0] * len(wanted)
    for place, index in enumerate(order):
        out[index] = flat[place] + place * gap
    return out


def _cycled(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _draw(axes: Axes, before: Band, after: Band, colour: str) -> None:
    marker = "o" if len(after.x) == 1 else ""
    axes.fill_between(after.x, after.low, after.high, color=colour, alpha=0.15, lw=0)
    axes.plot(before.x, before.mean, color=colour, ls=(0, (3, 2)), lw=1.0, alpha=0.5, marker=marker)
    axes.plot(after.x, after.mean, color=colour, lw=1.8, marker=marker)


def _draw_lines(axes: Axes, lines: Mapping[str, float]) -> None:
    for name, value in lines.items():
        axes.axhline(value, color=GREY, ls=(0, (1, 1.5)), lw=1.1, zorder=1)
        axes.annotate(
            f"{short(name, 30)} {value:g}",
            (0.012, value),
            (0, 1.5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color="#555555",
            fontsize="small",
            va="bottom",
            zorder=5,
            bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.6, "lw": 0},
        )


def _label_ends(axes: Axes, labels: Sequence[str], ends: Sequence[Band]) -> None:
    """Names to the right of the panel, each at the height where its line ends, or next to it."""
    low, high = axes.get_ylim()
    heights = [(float(band.mean[-1]) - low) / (high - low) for band in ends]
    places = spread_out(heights, _LABEL_HEIGHT)
    right = axes.get_xlim()[1]
    axes.set_xlim(0, right)
    pairs = zip(labels, ends, heights, places, _cycled(len(labels)), strict=True)
    for label, band, height, place, colour in pairs:
        start = float(band.x[-1]) / right
        axes.annotate(
            short(label, 28),
            (start, height),
            (1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.45},
            annotation_clip=False,
        )


def _key(steps: int, several: bool) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=GREY, ls=(0, (3, 2)), lw=1.0, label="before adaptation"),
        Line2D([], [], color=GREY, lw=1.8, label=f"after {steps} step{'s' * (steps > 1)}"),
    ]
    return [*handles, Patch(color=GREY, alpha=0.25, label="range of seeds")] if several else handles
