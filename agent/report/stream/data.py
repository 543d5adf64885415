"""The lifetimes of a run, arranged for the page: which agents, in which order, and their curves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.continual.life import Life, Protocol, Visit
from agent.continual.metrics.catalog import HEADLINES, RAW
from agent.continual.results import Results
from agent.report.style import Look, finite_mean, looks, short

PRIMARY = "engram"
MAX_DRAWN = 6
_BASELINES = ("oracle_library", "meta_init", "finetune", "scratch", "memory_only", "replay")
"""Drawn in line plots before any other: the bounds and the ablations of the primary agent."""


@dataclasses.dataclass(frozen=True)
class View:
    """Everything that the sections of the page are made from."""

    results: Results
    agents: list[str]
    """Best first, by the mean of the first headline metric that has numbers; then by name."""
    primary: str
    """The agent that the others are compared with."""
    drawn: list[str]
    """Those in line plots: the primary one, then a few others in the order of ``agents``."""
    headline: list[str]
    """Ids of the metrics of the headline table."""

    @functools.cached_property
    def looks(self) -> dict[str, Look]:
        """How each agent is drawn."""
        return looks(self.agents, self.drawn)

    @property
    def protocol(self) -> Protocol:
        """That of the first lifetime; the page says where others differ."""
        return self.results.lives[0].protocol

    def lives(self, agent: str) -> list[Life]:
        """All of an agent's lifetimes, crashed ones included."""
        return [life for life in self.results.lives if life.agent == agent]

    def in_order(self, lives: Iterable[Life]) -> list[Life]:
        """Those that met the tasks in the order of the first lifetime, so that visits match."""
        return [life for life in lives if life.protocol.schedule == self.protocol.schedule]

    def references(self, kind: str) -> list[Life]:
        """The reference lifetimes of a kind, by seed."""
        found = {s: life for (k, s), life in self.results.references.items() if k == kind}
        return [found[seed] for seed in sorted(found)]

    def told(self, agent: str) -> bool:
        """Whether the agent was told in which task it was, in any lifetime."""
        return any(life.knew.task for life in self.lives(agent))

    def label(self, agent: str, width: int = 24) -> str:
        """The agent's name for a figure, marked if it was told the task."""
        return short(agent, width) + (" †" if self.told(agent) else "")

    def values(self, metric: str, agent: str) -> NDArray[np.float64]:
        """A metric in each of the agent's lifetimes that has it."""
        each = np.array(list(self.results.values(metric, agent).values()), float)
        return each[np.isfinite(each)]


def view_of(results: Results) -> View:
    """The lifetimes of a run in the order of the page; there must be at least one."""
    headline = [chosen for metric in HEADLINES if (chosen := with_numbers(results, metric))]

    def rank(agent: str) -> tuple[float, str]:
        each = list(results.values(headline[0], agent).values()) if headline else []
        mean = float(finite_mean(each)) if each else math.nan
        return (-mean if math.isfinite(mean) else math.inf, agent)

    agents = sorted(results.agents, key=rank)
    primary = PRIMARY if PRIMARY in agents else agents[0]
    wanted = [primary, *(name for name in _BASELINES if name in agents), *agents]
    chosen = list(dict.fromkeys(wanted))[:MAX_DRAWN]
    drawn = [primary, *(name for name in agents if name in chosen and name != primary)]
    return View(results, agents, primary, drawn, headline)


def with_numbers(results: Results, metric: str) -> str | None:
    """The metric, or the same of raw returns, whichever has a number in any lifetime."""
    for name in (metric, metric + RAW):
        if any(math.isfinite(each.get(name, math.nan)) for each in results.metrics.values()):
            return name
    return None


def offsets(protocol: Protocol) -> list[int]:
    """Episodes of the life that are over when each visit begins, and when the last one ends."""
    return [0, *np.cumsum([planned.episodes for planned in protocol.schedule]).tolist()]


def over_lives(visits: Sequence[Visit]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Episodes ``[X]`` and returns ``[visits, X]``, at the points of any of the curves."""
    grid = np.array(sorted({point.episodes for visit in visits for point in visit.curve}), float)
    values = np.full((len(visits), len(grid)), np.nan)
    for row, visit in zip(values, visits, strict=True):
        known = [(p.episodes, p.value) for p in visit.curve if math.isfinite(p.value)]
        if known:
            row[:] = np.interp(grid, *zip(*known, strict=True), left=np.nan, right=np.nan)
    return grid, values


def matrix(life: Life) -> dict[tuple[int, str], float]:
    """R: the mean return at each checkpoint on each task that was evaluated there."""
    return {(entry.checkpoint, entry.task): entry.mean for entry in life.evaluations}


def mean_matrix(lives: Iterable[Life], tasks: Sequence[str], visits: int) -> NDArray[np.float64]:
    """R averaged over lifetimes: ``[tasks, visits + 1]``, NaN where no lifetime has a number."""
    each = [
        [[entries.get((c, task), math.nan) for c in range(visits + 1)] for task in tasks]
        for entries in map(matrix, lives)
    ]
    return finite_mean(np.array(each)) if each else np.full((len(tasks), visits + 1), np.nan)


def visited_tasks(protocol: Protocol) -> list[str]:
    """Tasks in the order of their first visits; steps of a drift are on the way to one."""
    return list(dict.fromkeys(p.task for p in protocol.schedule if not p.drifting))


def task_names(protocol: Protocol) -> list[str]:
    """``visited_tasks``, then those that are only evaluated."""
    visited = visited_tasks(protocol)
    return [*visited, *(name for name in protocol.held_out if name not in visited)]
