"""The lifetimes of a run folder with all their numbers: what tables and reports start from."""

from __future__ import annotations

import dataclasses
import fcntl
import math
from collections.abc import Mapping
from pathlib import Path

from agent.continual.life import Episode, Life, read_episodes, read_life
from agent.continual.metrics.catalog import METRICS, measure, notes
from agent.continual.metrics.references import References
from agent.files import BadFileError, read_json

REFERENCES = "references.json"
"""In a run folder: for each of random, scratch and expert, the folder of the lifetime by seed."""
KINDS = tuple(field.name for field in dataclasses.fields(References))


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
    notes: dict[tuple[str, int], list[str]] = dataclasses.field(default_factory=dict)
    """By agent and seed: why metrics are NaN, and which others are to be doubted."""

    @property
    def agents(self) -> list[str]:
        """Names, in the order of ``lives``."""
        return list(dict.fromkeys(life.agent for life in self.lives))

    def values(self, metric: str, agent: str) -> dict[int, float]:
        """A metric of an agent by seed; NaN for a lifetime that has none.

        Raises:
            ValueError: No such metric.
        """
        if metric not in METRICS and not any(metric in found for found in self.metrics.values()):
            raise ValueError(f"there is no metric {metric!r}; there are {', '.join(METRICS)}")
        return {
            seed: found.get(metric, math.nan)
            for (name, seed), found in self.metrics.items()
            if name == agent
        }


def read_results(run: Path) -> Results:
    """The lifetimes under ``<run>/lifetimes``; those being lived right now are left out.

    Raises:
        BadFileError: A file is not what it should be, or two folders hold the same lifetime.
    """
    folders = sorted((run / "lifetimes").glob("*/life.json"))
    found: dict[tuple[str, int], tuple[Path, Life]] = {}
    for folder in (path.parent for path in folders):
        life = read_life(folder)
        if life.status == "stopped" and _being_lived(folder):
            continue
        key = life.agent, life.seed
        if key in found:
            raise BadFileError(
                f"{folder} and {found[key][0]} are both agent {life.agent!r} with seed "
                f"{life.seed}; was a folder copied?"
            )
        found[key] = folder, life
    agents = list(dict.fromkeys(agent for agent, _ in found))
    order = sorted(found, key=lambda key: (agents.index(key[0]), key[1]))
    lives = {key: found[key][1] for key in order}
    episodes = {key: _episodes(*found[key]) for key in order}
    references = read_references(run)
    of_seed = {seed: _of_seed(references, seed) for _, seed in order}
    return Results(
        lives=list(lives.values()),
        episodes=episodes,
        references=references,
        metrics={k: measure(life, episodes[k], of_seed[k[1]]) for k, life in lives.items()},
        notes={k: notes(life, of_seed[k[1]]) for k, life in lives.items()},
    )


def read_references(run: Path) -> dict[tuple[str, int], Life]:
    """The reference lifetimes that a run names and that are there, by kind and seed."""
    path = run / REFERENCES
    if not path.is_file():
        return {}
    index = read_json(path)
    if not isinstance(index, Mapping) or not set(index) <= set(KINDS):
        raise BadFileError(f"{path}: expected folders by seed under {', '.join(KINDS)}")
    out = {}
    for kind, folders in index.items():
        if not isinstance(folders, Mapping) or not all(seed.isdecimal() for seed in folders):
            raise BadFileError(f"{path}: {kind}: expected a folder for each seed")
        for seed, folder in folders.items():
            if (run / folder / "life.json").is_file():  # else it is still to be lived
                out[kind, int(seed)] = read_life(run / folder)
    return out


def _of_seed(references: Mapping[tuple[str, int], Life], seed: int) -> References:
    return References(**{kind: references.get((kind, seed)) for kind in KINDS})


def _episodes(folder: Path, life: Life) -> list[Episode]:
    if (folder / "episodes.jsonl").is_file():
        return read_episodes(folder)
    if life.status == "done":
        raise BadFileError(
            f"{folder}: holds a whole lifetime, but no episodes.jsonl; was it moved?"
        )
    return []


def _being_lived(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    path = folder / ".lock"
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
