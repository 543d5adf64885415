"""The figures of the report, as SVG text. One colour per agent, everywhere."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from agent.report import Agent, Evaluation, HeldOutTask, Iteration, Summary, Visit

# Okabe and Ito's palette: told apart by colour-blind readers too.
AGENT_COLOURS = {
    "engram": "#0072B2",
    "meta_init": "#E69F00",
    "finetune": "#CC79A7",
    "scratch": "#D55E00",
    "random": "#7F7F7F",
    "oracle": "#000000",
}
_OTHER_COLOURS = ("#009E73", "#56B4E9", "#882255", "#999933", "#332288", "#44AA99")
RECALL_COLOURS = {"same": "#BFE6D8", "other": "#F7CDB8", "none": "#E6E6E6"}
_BANDS = {"first": "#F8F8F8", "revisit": "#E9EEF4"}
MAX_PANELS = 12
_RING: dict[str, Any] = {"mfc": "white", "mew": 1.7, "ms": 6}
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "engram",  # the same run makes the same bytes
    "text.parse_math": False,  # a label may hold dollar signs
}


def agent_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each agent; unknown names get spare ones, in sorted order."""
    wanted = set(names)
    others = sorted(wanted - AGENT_COLOURS.keys())
    spare = {name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(others)}
    return {name: spare.get(name) or AGENT_COLOURS[name] for name in sorted(wanted)}


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


@mpl.rc_context(_STYLE)
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
    return _svg(figure)


@mpl.rc_context(_STYLE)
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
    return _svg(figure)


@mpl.rc_context(_STYLE)
def stream_timeline(summary: Summary) -> str:
    """The agents' returns along the stream and, below it, what those with a memory recalled."""
    remembering = [name for name, agent in summary.agents.items() if agent.remembers]
    strip = 0.45 + 0.36 * len(summary.seeds)
    figure = Figure(figsize=(10, 3.9 + strip * len(remembering)), layout="constrained")
    heights = [3.6, *(strip for _ in remembering)]
    grid = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)
    axes = grid[:, 0]
    _bands(axes[0], summary)
    colours, count = agent_colours(summary.agents), len(summary.agents)
    gap = min(0.006 * len(summary.stream.order), 0.5 / count)  # rings side by side, in visits
    for i, (name, agent) in enumerate(summary.agents.items(), 1):
        _lifetime(axes[0], agent, summary, name, colours[name], dodge=gap * i)
    axes[0].set_ylabel(_return_label(summary.stream.horizon))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)))
    for row, name in zip(axes[1:], remembering, strict=True):
        _recall_strip(row, summary, name)
    axes[-1].set_xlabel("episodes since the stream began")
    return _svg(figure)


def over_seeds(visits: Sequence[Visit]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Episodes ``[X]`` and returns ``[seeds, X]`` of one visit, at the points of any seed."""
    grid = np.array(sorted({point.episodes for visit in visits for point in visit.curve}), float)
    values = np.full((len(visits), len(grid)), np.nan)
    for row, visit in zip(values, visits, strict=True):
        known = [(p.episodes, p.value) for p in visit.curve if np.isfinite(p.value)]
        if known:
            row[:] = np.interp(grid, *zip(*known, strict=True), left=np.nan, right=np.nan)
    return grid, values


def finite_mean(values: NDArray[np.float64] | Sequence[float]) -> NDArray[np.float64]:
    """Mean over the first axis of what is finite; NaN where nothing is."""
    return np.ma.masked_invalid(values).mean(0, keepdims=True).filled(np.nan)[0]


def _lifetime(
    axes: Axes, agent: Agent, summary: Summary, name: str, colour: str, dodge: float
) -> None:
    budget = summary.stream.budget_episodes
    for k in range(len(summary.stream.order)):
        visits = [visit for visit in agent.visits if visit.visit == k]
        if not visits:
            continue
        grid, values = over_seeds(visits)
        masked = np.ma.masked_invalid(values)
        x = grid + k * budget
        axes.fill_between(x, masked.min(0), masked.max(0), color=colour, alpha=0.16, lw=0)
        axes.plot(x, finite_mean(values), ".-", color=colour, lw=1.7, ms=4)
        start = finite_mean([visit.start for visit in visits])
        axes.plot((k + dodge) * budget, start, "o", color=colour, zorder=5, **_RING)
    axes.plot([], [], "o-", color=colour, lw=1.7, label=_short(name, 24), **_RING)


def _bands(axes: Axes, summary: Summary) -> None:
    order, budget = summary.stream.order, summary.stream.budget_episodes
    for k, name in enumerate(order):
        kind = "revisit" if name in order[:k] else "first"
        axes.axvspan(k * budget, (k + 1) * budget, color=_BANDS[kind], lw=0, zorder=0)
        axes.axvline(k * budget, color="#BBBBBB", linewidth=0.6, zorder=1)
        word = {"first": "first visit", "revisit": "re-visit"}[kind] if len(order) <= 8 else ""
        text = f"{_short(name, 10)}  {word}".strip()
        colour = "#333333" if kind == "first" else "#1F4E79"
        where = ((k + 0.5) * budget, 1.02)
        axes.text(*where, text, transform=axes.get_xaxis_transform(), ha="center", color=colour)
    axes.set_xlim(0, len(order) * budget)
    axes.grid(axis="x", visible=False)


def _recall_strip(axes: Axes, summary: Summary, name: str) -> None:
    agent, budget = summary.agents[name], summary.stream.budget_episodes
    for visit in agent.visits:
        y, kind = summary.seeds.index(visit.seed), agent.recall_kind(visit)
        corner, shape = (visit.visit * budget, y - 0.46), (budget, 0.92)
        axes.add_patch(Rectangle(corner, *shape, fc=RECALL_COLOURS[kind], ec="white", lw=1.5))
        text = _recall_text(visit, kind, len(summary.stream.order))
        axes.text((visit.visit + 0.5) * budget, y, text, ha="center", va="center", fontsize=7.5)
    ticks = range(len(summary.seeds))
    axes.set_yticks(ticks, [f"seed {seed}" for seed in summary.seeds])
    axes.set_ylim(len(summary.seeds) - 0.5, -0.5)
    title = f"what {_short(name, 24)} recalled at the start of each visit"
    axes.set_title(title, fontsize="medium")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, axis="y")


def _recall_text(visit: Visit, kind: str, visits: int) -> str:
    mark, recalled = {"same": "✓", "other": "✗", "none": ""}[kind], visit.recalled
    if visits > 18:  # the cells are too narrow for words
        return mark
    if recalled.row is None:
        return "new"
    source = "?" if recalled.of_visit is None else recalled.of_visit
    more = f"\nfrom visit {source}, p {recalled.weight or 0:.2f}" if visits < 8 else ""
    return f"{mark} row {recalled.row}{more}"


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
    axes.set_title("\n".join(textwrap.wrap(_short(task.label, 56), 30)), fontsize="medium")
    axes.set_xticks(episodes)


def _return_label(horizon: int | None) -> str:
    return f"return per episode\n({f'{horizon} steps' if horizon else 'whole episode'})"


def _short(text: str, width: int) -> str:
    """One printable line, cut to ``width``: a control character would make the SVG unreadable."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= width else line[: width - 1] + "…"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
