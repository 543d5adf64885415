"""``engram curves``: several meta-training runs beside each other, by env steps and by time."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.config import ConfigError, build
from agent.files import write_atomic
from agent.progress import console
from agent.report.learning import Band, Learning, learning_picture, saved
from agent.run_curve import RunCurve, read_curve

_ENDINGS = ("svg", "png", "pdf")
_SECONDS_IN_MINUTES_FROM = 300.0
_FILE_WIDTH = 110


@dataclass(kw_only=True, config={"extra": "forbid"})
class CurvesSettings:
    """``engram curves``."""

    runs: Annotated[list[str], Field(min_length=1)]
    """Run folders that were trained with ``curve.every``."""
    labels: list[str]
    """A name for each run; runs of equal names are one line. Empty: made of the folders' names."""
    steps: Annotated[int, Field(ge=1)]
    """Adaptation steps after which a learner is shown."""
    time: Literal["cpu", "wall"]
    """Seconds of the second panel."""
    lines: dict[str, float]
    """Horizontal lines by name."""
    threshold: float | None
    """A return after ``steps``, for the table."""
    out: str
    """The picture."""
    csv: str | None
    """File to write: a row per run and point of its curve."""


@plain_dataclass(frozen=True)
class Group:
    """The runs that are one line: a learner, with one seed or several."""

    label: str
    runs: list[RunCurve]


def curves(config: dict[str, Any], typed: str) -> None:
    """Draw the picture, print the table."""
    if not config["runs"]:
        raise ConfigError("runs: name some run folders, as in: engram curves runs/a runs/b")
    settings = build(config, "", CurvesSettings)
    ending = Path(settings.out).suffix.removeprefix(".")
    if ending not in _ENDINGS:
        raise ConfigError(f"out={settings.out!r}: expected a name ending in .svg, .png or .pdf")
    groups = grouped([read_curve(Path(run)) for run in settings.runs], settings.labels)
    first = _checked(groups, settings).runs[0]
    unit, label = _unit(groups, settings.time)
    learners = [_learning(group, settings, unit) for group in groups]
    figure = learning_picture(
        learners, settings.lines, first.family, first.horizon, settings.steps, label
    )
    # A file has no width; it need not be that of a narrow terminal.
    wide = console if console.is_terminal else Console(file=console.file, width=_FILE_WIDTH)
    wide.print(curves_table(groups, settings.steps, settings.threshold))
    write_atomic(Path(settings.out), saved(figure, ending))
    written = [settings.out]
    if settings.csv is not None:
        write_atomic(Path(settings.csv), points_csv(groups).encode())
        written.append(settings.csv)
    console.print(f"Wrote {' and '.join(written)}")


def grouped(runs: Sequence[RunCurve], labels: Sequence[str]) -> list[Group]:
    """Runs that differ in nothing but the seed as one; or as the labels say."""
    if labels and len(labels) != len(runs):
        raise ConfigError(f"labels: {len(labels)} names for {len(runs)} runs; give one for each")
    keys = list(labels) or [run.settings for run in runs]
    found: dict[str, list[RunCurve]] = {}
    for key, run in zip(keys, runs, strict=True):
        found.setdefault(key, []).append(run)
    for members in found.values():
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            raise ConfigError(
                f"{', '.join(str(run.folder) for run in members)}: the same settings and the same "
                "seed, or a label given twice; runs of one line must have seeds of their own"
            )
    names = list(found) if labels else _names(list(found.values()))
    return [Group(name, runs) for name, runs in zip(names, found.values(), strict=True)]


def _names(groups: Sequence[Sequence[RunCurve]]) -> list[str]:
    """What tells the folders of different groups apart, without their seeds."""
    names = [_seedless(runs[0]) for runs in groups]
    if len(set(names)) < len(names):
        return [str(runs[0].folder) for runs in groups]
    cut = len(_shared_words(names)) if len(names) > 1 else 0
    return [name[cut:] or name for name in names]


def _shared_words(names: Sequence[str]) -> str:
    """The longest beginning of all names that ends in a separator."""
    low, high = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: max(low.rfind(mark, 0, same) for mark in "_-") + 1]


def _seedless(run: RunCurve) -> str:
    """The folder's name without an ending that is the seed: ``maml-seed3``, ``maml/3``."""
    path = re.sub(rf"[/_-](seed|s)?[_-]?{run.seed}$", "", run.folder.resolve().as_posix())
    return Path(path).name


def _checked(groups: Sequence[Group], settings: CurvesSettings) -> Group:
    """The first group, if all may stand on the same axes."""
    runs = [run for group in groups for run in group.runs]
    for run in runs:
        if (run.family, run.horizon) != (runs[0].family, runs[0].horizon):
            raise ConfigError(
                f"{run.folder} is of {run.family} ({run.horizon} steps), {runs[0].folder} of "
                f"{runs[0].family} ({runs[0].horizon} steps): returns of different tasks share no "
                "axis; draw them apart"
            )
        if settings.steps >= run.returns.shape[1]:
            raise ConfigError(
                f"steps={settings.steps}: {run.folder} was evaluated after up to "
                f"{run.returns.shape[1] - 1} (curve.size.steps)"
            )
        if settings.time == "cpu" and np.isnan(run.cpu_seconds).any():
            raise ConfigError(f"{run.folder}: has no CPU time in its log; use time=wall")
    return groups[0]


def _unit(groups: Sequence[Group], time: Literal["cpu", "wall"]) -> tuple[float, str]:
    """Seconds in the unit of the second panel, and its label."""
    longest = max(float(_seconds(run, time)[-1]) for group in groups for run in group.runs)
    unit, name = (60.0, "minutes") if longest >= _SECONDS_IN_MINUTES_FROM else (1.0, "seconds")
    return unit, f"{'CPU ' if time == 'cpu' else ''}{name} of meta-training"


def _seconds(run: RunCurve, time: Literal["cpu", "wall"]) -> NDArray[np.float64]:
    return run.cpu_seconds if time == "cpu" else run.seconds


def _learning(group: Group, settings: CurvesSettings, unit: float) -> Learning:
    def bands(step: int) -> tuple[Band, Band]:
        values = [run.returns[:, step] for run in group.runs]
        steps = [run.env_steps for run in group.runs]
        times = [_seconds(run, settings.time) / unit for run in group.runs]
        return band(steps, values), band(times, values)

    return Learning(group.label, bands(0), bands(settings.steps))


def band(xs: Sequence[NDArray[np.float64]], ys: Sequence[NDArray[np.float64]]) -> Band:
    """Mean and range over seeds at every point of any, between them linear, where all have been."""
    begin, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    grid = np.unique(np.concatenate(xs))
    grid = grid[(grid >= begin) & (grid <= end)]
    if not len(grid):
        raise ConfigError(
            "runs of one line have no part of their curves in common; give them labels of their own"
        )
    rows = np.stack([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)])
    return Band(grid, rows.mean(0), rows.min(0), rows.max(0))


def curves_table(groups: Sequence[Group], steps: int, threshold: float | None) -> Table:
    """One row per learner, means over its seeds."""
    most = max(run.returns.shape[1] for group in groups for run in group.runs)
    table = Table(
        title="Return per episode before adaptation (0) and after 1, 2, ... steps of it, at the "
        "end of each curve; means over n seeds",
        caption=f"steps, min: env steps and CPU minutes of training; best: highest return after "
        f"{steps} in the curve; /s: env steps per second with learning included, and beside it as "
        "a share of simulation alone",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("learner", no_wrap=True, min_width=8)
    names = ["n", "steps", "min", *map(str, range(most))]
    names += ["best"] + ([f"to {threshold:g}"] if threshold is not None else [])
    for name in [*names, "/s", ""]:
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        table.add_row(escape(group.label), *_cells(group, most, steps, threshold))
    return table


def _cells(group: Group, most: int, steps: int, threshold: float | None) -> list[str]:
    runs = group.runs
    padded = [
        np.pad(r.returns[-1], (0, most - r.returns.shape[1]), constant_values=np.nan) for r in runs
    ]
    best = float(np.mean([np.nanmax(run.returns[:, steps]) for run in runs]))
    reach = [] if threshold is None else [_reached(runs, steps, threshold)]
    wall = sum(run.wall for run in runs)
    return [
        str(len(runs)),
        _amount(float(np.mean([run.total_steps for run in runs]))),
        _number(float(np.mean([run.cpu for run in runs])) / 60),
        *(_number(float(value)) for value in np.mean(padded, axis=0)),
        _number(best),
        *reach,
        _amount(sum(run.total_steps for run in runs) / wall),
        f"{sum(run.physics for run in runs) / wall:.0%}",
    ]


def _reached(runs: Sequence[RunCurve], steps: int, threshold: float) -> str:
    """Env steps to the first point at or above the threshold; of the seeds that get there."""
    found = [steps_to(run, steps, threshold) for run in runs]
    there = [value for value in found if value is not None]
    if not there:
        return "never"
    share = f" ({len(there)} of {len(found)})" if len(there) < len(found) else ""
    return _amount(float(np.mean(there))) + share


def steps_to(run: RunCurve, steps: int, threshold: float) -> float | None:
    """Env steps at the first point of the curve that is at or above the threshold; None: never."""
    above = np.flatnonzero(run.returns[:, steps] >= threshold)
    return float(run.env_steps[above[0]]) if len(above) else None


def points_csv(groups: Sequence[Group]) -> str:
    """A row per run and point: env steps, seconds, returns before and after each step."""
    most = max(run.returns.shape[1] for group in groups for run in group.runs)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    names = ["learner", "run", "seed", "env_steps", "seconds", "cpu_seconds"]
    rows.writerow([*names, *(f"after_{n}" for n in range(most))])
    for group in groups:
        for run in group.runs:
            columns = zip(run.env_steps, run.seconds, run.cpu_seconds, run.returns, strict=True)
            for steps, seconds, cpu, returns in columns:
                values = [float(x) for x in (seconds, cpu, *returns)]
                shown = ["" if math.isnan(x) else repr(x) for x in values]
                rows.writerow([group.label, run.folder, run.seed, int(steps), *shown])
    return text.getvalue()


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def _amount(value: float) -> str:
    """A large number in three digits: 9.41k, 12.8M."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e3 else f"{value:.3g}"
