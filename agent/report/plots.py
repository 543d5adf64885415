"""The figures of meta-training and of adapting to held-out tasks, as SVG text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from agent.report import Evaluation, HeldOutTask, Iteration
from agent.report.style import AGENT_COLOURS, short, styled, svg

MAX_PANELS = 12


def smooth(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Centred moving average over ``window`` values, fewer at the ends; NaNs are left out of it."""
    raw = np.asarray(values, float)
    known = np.isfinite(raw)
    kernel = np.ones(min(window, len(raw)))
    total = np.convolve(np.where(known, raw, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def smoothing_window(iterations: int) -> int:
    """Iterations that the learning curve averages over: odd, about a twentieth of all."""
    return max(1, iterations // 20) // 2 * 2 + 1


@styled
def learning_curve(log: Sequence[Iteration], horizon: int | None) -> str:
    """Return before and after adaptation against env steps; the raw values are faint behind."""
    figure = Figure(figsize=(10, 3.1), layout="constrained")
    axes = figure.subplots()
    steps, window = [line.env_steps for line in log], smoothing_window(len(log))
    curves = {"after": [line.after for line in log], "before": [line.before for line in log]}
    for (when, values), dash in zip(curves.items(), ("-", (0, (4, 2))), strict=True):
        colour, marker = AGENT_COLOURS["engram"], "o" if len(log) == 1 else ""
        axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
        smoothed = smooth(values, window)
        label = f"engram, {when} adaptation"
        axes.plot(steps, smoothed, color=colour, ls=dash, lw=1.8, marker=marker, label=label)
    axes.set(xlabel="env steps of meta-training", ylabel=_return_label(horizon), xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(loc="best")
    return svg(figure)


@styled
def adaptation_curves(evaluation: Evaluation) -> str:
    """One panel per held-out task: return against the episodes that were used to adapt to it."""
    tasks = evaluation.tasks[:MAX_PANELS]
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(10, 2.1 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    episodes = np.arange(len(evaluation.mean.meta)) * evaluation.episodes_per_step
    levels = {"random": ":", "oracle": "--"}
    shown = {k: v for k, v in levels.items() if any(np.isfinite(getattr(t, k)) for t in tasks)}
    for axes, task in zip(grid.flat, tasks, strict=False):
        _adaptation_panel(axes, task, episodes, shown)
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(tasks) - columns) : len(tasks)]:
        axes.tick_params(labelbottom=True)  # also above a gap in the last row
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel("episodes used to adapt", fontsize="medium")
    figure.supylabel(_return_label(evaluation.horizon), fontsize="medium")
    return svg(figure)


def _adaptation_panel(
    axes: Axes, task: HeldOutTask, episodes: NDArray[np.int64], levels: dict[str, str]
) -> None:
    mean, sd = np.array(task.returns), np.array(task.returns_sd)
    engram, scratch = AGENT_COLOURS["engram"], AGENT_COLOURS["scratch"]
    axes.fill_between(episodes, mean - sd, mean + sd, color=engram, alpha=0.2, lw=0)
    axes.plot(episodes, mean, "o-", color=engram, ms=3.5, label="engram (shade: ±1 sd)")
    axes.plot(episodes, task.scratch, "s-", color=scratch, ms=3, label="scratch")
    for name, dash in levels.items():
        value, colour = getattr(task, name), AGENT_COLOURS[name]
        axes.axhline(value, color=colour, ls=dash, lw=1.2, label=name)
    axes.set_title("\n".join(textwrap.wrap(short(task.label, 56), 30)), fontsize="medium")
    axes.set_xticks(episodes)


def _return_label(horizon: int | None) -> str:
    return f"return per episode\n({f'{horizon} steps' if horizon else 'whole episode'})"
