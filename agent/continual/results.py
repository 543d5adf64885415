"""The lifetimes of a run folder with all their numbers: what tables, tests and reports start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from agent.continual.life import Episode, Life

REFERENCES = "references.json"
"""In a run folder: for each of random, scratch and expert, the folder of the lifetime by seed."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Every lifetime of a run, crashed and unfinished ones included, and its metrics."""

    lives: list[Life]
    """In the order of agents as first met in the folder, then of seeds."""
    episodes: dict[tuple[str, int], list[Episode]]
    """By agent and seed."""
    references: dict[tuple[str, int], Life]
    """By kind (random, scratch, expert) and seed; those that there are."""
    metrics: dict[tuple[str, int], dict[str, float]]
    """By agent and seed, then by metric id; NaN where it is not defined or the lifetime crashed."""

    @property
    def agents(self) -> list[str]:
        """Names, in the order of ``lives``."""
        return list(dict.fromkeys(life.agent for life in self.lives))

    def values(self, metric: str, agent: str) -> dict[int, float]:
        """A metric of an agent by seed; NaN for a lifetime that has none."""
        raise NotImplementedError


def read_results(run: Path) -> Results:
    """The lifetimes under ``<run>/lifetimes``; those being lived right now are left out."""
    raise NotImplementedError
