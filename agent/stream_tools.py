"""What one asks of the lifetimes of a run: ``engram compare | power | export``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.markup import escape

from agent.config import ConfigError, build
from agent.continual.export import estimates_latex, values_csv
from agent.continual.results import Results, read_results
from agent.continual.statistics.estimate import Interval
from agent.continual.statistics.lifetimes import check_comparable, compare_agents, sample_of
from agent.continual.summary import headline_metrics, known_metrics
from agent.files import BadFileError, write_atomic
from agent.progress import console
from agent.stream_tables import Spread, comparison_tables, power_table, spread_of

PRIMARY = "engram"
"""The agent that the others are compared with if none is named."""
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(kw_only=True, config={"extra": "forbid"})
class CompareSettings:
    """``engram compare``."""

    run: str
    """The run folder."""
    agents: list[str]
    """The first is compared with each of the others; empty: all of the run."""
    metric: str | list[str] | None
    """An id, or several; null: those of the headline table."""
    paired: bool
    """Whether lifetimes of equal seeds are compared with each other; otherwise Welch's test."""
    level: Share
    """Of the intervals."""
    interval: Interval
    """Kind of interval of the means and the paired difference."""
    stand_in: str | None
    """The agent whose score a crashed lifetime is given; null: it has none, nor has the mean."""
    seed: Annotated[int, Field(ge=0)]
    """Of the resampling."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class PowerSettings:
    """``engram power``."""

    run: str | None
    """The folder of a pilot run, which shows how much lifetimes vary."""
    agents: list[str]
    """The first is compared with each of the others; empty: all of the run."""
    metric: str
    """Its id."""
    delta: float | None
    """The difference that is to be found, in the unit of the metric."""
    sd: Annotated[float, Field(gt=0)] | None
    """Without a run: the standard deviation over lifetimes."""
    power: Share
    """Probability to find it."""
    level: Share
    """One minus the probability to find a difference where there is none."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class ExportSettings:
    """``engram export``."""

    run: str
    """The run folder."""
    csv: str | None
    """File to write: a row per agent, seed and metric."""
    latex: str | None
    """File to write: a table of agents by metrics."""
    metric: str | list[str] | None
    """Columns of the LaTeX table, an id or several; null: those of the headline table."""
    level: Share
    """Of the intervals."""
    stand_in: str | None
    """The agent whose score a crashed lifetime is given; null: it has none, nor has the mean."""


def compare(config: dict[str, Any], typed: str) -> None:
    """Print one agent beside others: differences, intervals, p."""
    settings = build(config, "", CompareSettings)
    results = _results(settings.run)
    first, others = _agents(results, settings.agents)
    metrics = _metrics(results, settings.metric)
    found = compare_agents(
        results,
        first,
        others,
        metrics,
        np.random.default_rng(settings.seed),
        paired=settings.paired,
        level=settings.level,
        interval=settings.interval,
        stand_in=settings.stand_in,
    )
    console.print(comparison_tables(first, found, settings.level))


def power(config: dict[str, Any], typed: str) -> None:
    """Print how many seeds it takes to find a difference."""
    settings = build(config, "", PowerSettings)
    if settings.delta is None or settings.delta == 0:
        raise ConfigError(
            "delta: the difference that is to be found, in the unit of the metric, such as delta=.1"
        )
    if (settings.run is None) == (settings.sd is None):
        raise ConfigError(
            "run, sd: expected one of them, a pilot run (engram power runs/x) or a standard "
            "deviation (sd=.1)"
        )
    spreads = _spreads(settings)
    try:
        table = power_table(
            settings.metric if settings.run else None,
            spreads,
            settings.delta,
            settings.power,
            settings.level,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    console.print(table)


def export(config: dict[str, Any], typed: str) -> None:
    """Write the numbers of a run to files."""
    settings = build(config, "", ExportSettings)
    if settings.csv is None and settings.latex is None:
        raise ConfigError("csv, latex: expected a file to write, such as csv=numbers.csv")
    results = _results(settings.run)
    texts = {}
    if settings.csv is not None:
        texts[settings.csv] = values_csv(results)
    if settings.latex is not None:
        metrics = _metrics(results, settings.metric)
        texts[settings.latex] = estimates_latex(results, metrics, settings.level, settings.stand_in)
    for name, text in texts.items():
        write_atomic(Path(name), text.encode())
        console.print(escape(f"Wrote {name}"))


def _results(run: str) -> Results:
    results = read_results(Path(run))
    if not results.lives:
        raise BadFileError(
            f"{run}: has no lifetimes; expected the run folder of engram continual, with lifetimes/"
        )
    return results


def _agents(results: Results, wanted: Sequence[str], fewest: int = 2) -> tuple[str, list[str]]:
    """The agent that is compared, and those that it is compared with."""
    names = list(dict.fromkeys(wanted)) or sorted(results.agents, key=lambda name: name != PRIMARY)
    for name in names:
        if name not in results.agents:
            raise ConfigError(f"agents: {_unknown(name, results.agents)}")
    if len(names) < fewest:
        raise ConfigError(
            f"agents=[{','.join(names)}]: expected two or more of {', '.join(results.agents)}"
        )
    return names[0], names[1:]


def _metrics(results: Results, wanted: str | list[str] | None) -> list[str]:
    known = known_metrics(results)
    if wanted is None:
        return headline_metrics(results)
    names = [wanted] if isinstance(wanted, str) else wanted
    if not names:
        raise ConfigError("metric=[]: expected an id or several, or null for the headline table")
    for name in names:
        if name not in known:
            raise ConfigError(f"metric: {_unknown(name, known)}")
    return names


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{name!r} is not in the run; {hint}"


def _spreads(settings: PowerSettings) -> list[Spread]:
    """What is known of the SD: of the first agent and each other, and of their differences."""
    if settings.sd is not None:
        return [Spread("sd", paired, settings.sd) for paired in (True, False)]
    results = _results(settings.run or "")
    [metric] = _metrics(results, settings.metric)
    first, others = _agents(results, settings.agents, fewest=1)
    check_comparable(results, [first, *others])
    ours = _lived(results, metric, first)
    if not others:
        return [spread_of(first, False, list(ours.values()))]
    out = []
    for other in others:
        theirs = _lived(results, metric, other)
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        what = f"{first} - {other}"
        out.append(spread_of(what, True, pairs))
        out.append(spread_of(what, False, list(ours.values()), list(theirs.values())))
    return out


def _lived(results: Results, metric: str, agent: str) -> dict[int, float]:
    values = sample_of(results, metric, agent, None).values
    return {seed: value for seed, value in values.items() if math.isfinite(value)}
