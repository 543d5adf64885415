"""The numbers of the page, ready to be printed: agents, tasks, and all metrics."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from matplotlib.ticker import EngFormatter

from agent.continual.life import Life
from agent.continual.metrics.catalog import METRICS
from agent.continual.statistics.lifetimes import STAND_IN
from agent.continual.summary import known_metrics
from agent.report.stream.data import View, matrix, task_names
from agent.report.stream.estimates import Cell, score
from agent.report.style import digits_for, finite_mean, number


@dataclasses.dataclass(frozen=True)
class Text:
    """A cell of a table: what it shows, what it is sorted by, and what stands small beside it."""

    text: str
    sort: str = ""
    small: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """An agent's line in the headline table."""

    number: int
    agent: str
    done: int
    failed: int
    unfinished: int
    cells: list[Text]


def headline_rows(view: View) -> list[Row]:
    """A row per agent, with a cell per headline metric."""
    columns = [_column(view, metric) for metric in view.headline]
    rows = []
    for i, agent in enumerate(view.agents):
        status = Counter(life.status for life in view.lives(agent))
        counts = (status["done"], status["crashed"], status["stopped"])
        rows.append(Row(i + 1, agent, *counts, [c[agent] for c in columns]))
    return rows


def _column(view: View, metric: str) -> dict[str, Text]:
    """A headline metric of every agent; the best of those that were not told the task is marked."""
    cells = {agent: score(view, metric, agent) for agent in view.agents}
    show = _formatter(metric, [cell.partial for cell in cells.values()])
    better = METRICS[metric].better
    fair = [a for a, cell in cells.items() if cell.known and a != STAND_IN and not view.told(a)]
    sign = {"high": 1, "low": -1}.get(better, 0)
    best = (
        max(fair, key=lambda a: sign * cells[a].estimate.mean) if len(fair) > 1 and sign else None
    )
    return {a: _cell(cell, show, a == best) for a, cell in cells.items()}


def _formatter(metric: str, values: Sequence[float]) -> Callable[[float], str]:
    """Shows values of a metric with the same decimals; bytes in thousands or millions."""
    if METRICS[metric].unit == "bytes":
        return EngFormatter(places=1, sep="")
    return functools.partial(number, digits=digits_for(values))


def _cell(cell: Cell, show: Callable[[float], str], best: bool) -> Text:
    found = cell.estimate
    if cell.known:
        interval = ""
        if math.isfinite(found.low) and math.isfinite(found.high):
            low, high = show(found.low), show(found.high)
            interval = f"[{low}, {high}]" if low != high else ""
        return Text(show(found.mean), repr(found.mean), interval, best)
    if cell.partial_n:
        return Text("n/a", "", f"{show(cell.partial)} in {cell.partial_n} of {found.n}")
    return Text("n/a")


def notes(view: View) -> list[str]:
    """What the estimates of the headline table say about themselves, each once, and of whom."""
    found: dict[str, list[str]] = {}
    for agent, metric in itertools.product(view.agents, view.headline):
        cell = score(view, metric, agent)
        # An agent that has a metric in no lifetime needs no note on each.
        for note in cell.estimate.note.split("; ") if cell.partial_n else []:
            if note and agent not in found.setdefault(note, []):
                found[note].append(agent)
    every = len(view.agents)
    return [n if len(who) == every else f"{n}: {', '.join(who)}" for n, who in found.items()]


TASK_COLUMNS = (
    "before the stream",
    "first visit: start",
    "first visit: end",
    "last re-visit: start",
    "end of the stream",
)


def task_rows(view: View) -> list[tuple[str, str, list[Text]]]:
    """For each task and agent, mean test returns at the moments of ``TASK_COLUMNS``."""
    found: dict[tuple[str, str], list[float]] = {}
    for task in task_names(view.protocol):
        for agent in view.agents:
            found[task, agent] = finite_mean(
                [_moments(x, task) for x in view.lives(agent)]
            ).tolist()
        for kind, shown in (("random", {0}), ("expert", {2})):
            if lives := view.references(kind):
                means = finite_mean([_moments(life, task) for life in lives]).tolist()
                kept = [mean if i in shown else math.nan for i, mean in enumerate(means)]
                found[task, f"{kind} (reference)"] = kept
    digits = digits_for(value for row in found.values() for value in row)
    return [(task, who, [_text(v, digits) for v in row]) for (task, who), row in found.items()]


def _moments(life: Life, task: str) -> list[float]:
    """Test returns of a lifetime on a task, as ``TASK_COLUMNS`` names them."""
    entries = matrix(life)
    visits = [visit for visit in life.visits if visit.task == task]
    first = visits[0] if visits else None
    again = visits[-1] if len(visits) > 1 else None
    return [
        entries.get((0, task), math.nan),
        entries.get((first.visit, task), math.nan) if first else math.nan,
        first.end_mean if first else math.nan,
        entries.get((again.visit, task), math.nan) if again else math.nan,
        entries.get((len(life.protocol.schedule), task), math.nan),
    ]


def _text(value: float, digits: int) -> Text:
    return Text(number(value, digits), repr(value) if math.isfinite(value) else "")


def metric_rows(view: View) -> list[tuple[str, list[Text]]]:
    """A row per metric that any lifetime has a number of, with a cell per agent."""
    rows = []
    for metric in known_metrics(view.results):
        cells = [score(view, metric, agent) for agent in view.agents]
        if any(cell.partial_n for cell in cells):
            show = _formatter(metric, [cell.partial for cell in cells])
            rows.append((metric, [_short_cell(cell, show) for cell in cells]))
    return rows


def _short_cell(cell: Cell, show: Callable[[float], str]) -> Text:
    if not cell.partial_n:
        return Text("n/a")
    return Text(
        show(cell.partial), repr(cell.partial), "" if cell.known else f"of {cell.partial_n}"
    )


def dictionary(metrics: Iterable[str]) -> list[tuple[str, str, str, str, str]]:
    """Id, definition, unit, better side and source of metrics."""
    side = {"high": "higher", "low": "lower", "": ""}
    found = [METRICS[name] for name in metrics]
    return [(m.id, m.what, m.unit, side[m.better], m.source) for m in found]
