"""A lifetime as numbers: the matrix R and the curves of its visits, raw or normalised."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from agent.continual import life as stored
from agent.continual.life import Episode, Life
from agent.continual.metrics.metric import known_mean


@dataclasses.dataclass(frozen=True)
class Visit:
    """A visit that is scored: not a step of a drift."""

    number: int
    """In the lifetime, from 0; also the checkpoint at its start."""
    task: str
    start: float
    """R before it, on its own task."""
    end: float
    """What it led to, before the agent decided what to keep of it."""
    curve: np.ndarray
    """Return ``[episodes]`` of each episode, as the mean of the batch that it was acted in."""
    before: tuple[Visit, ...]
    """Earlier visits to the same task, first one first; empty at a first visit."""

    @property
    def auc(self) -> float:
        """Area under the curve: its mean over the episodes that did not diverge."""
        return known_mean(self.curve)

    @property
    def tail(self) -> float:
        """Where the curve ends: its mean over the last tenth of the episodes, at least one."""
        return known_mean(self.curve[-max(1, len(self.curve) // 10) :])


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the metrics of learning, keeping and recalling are computed from."""

    tasks: tuple[str, ...]
    """Those visited, first visited first."""
    held_out: tuple[str, ...]
    matrix: Mapping[str, np.ndarray]
    """R by task, ``[checkpoints]``; NaN where it was not evaluated."""
    visits: tuple[Visit, ...]
    normalised: bool = False
    """Whether 0 is the random agent and 1 the expert; if not, all are returns."""

    @property
    def first(self) -> list[Visit]:
        """First visits."""
        return [visit for visit in self.visits if not visit.before]

    @property
    def again(self) -> list[Visit]:
        """Re-visits."""
        return [visit for visit in self.visits if visit.before]

    def after(self, visit: Visit) -> np.ndarray:
        """R ``[checkpoints]`` on the task of a visit after each later visit."""
        later = [v.number + 1 for v in self.visits if v.number > visit.number]
        return self.matrix[visit.task][later]

    def final(self, task: str) -> float:
        """R on a task when all is over."""
        return float(self.matrix[task][-1])

    def last(self, task: str) -> Visit:
        """The last visit to a task."""
        return next(visit for visit in reversed(self.visits) if visit.task == task)


def scores_of(life: Life, episodes: Sequence[Episode] = ()) -> Scores:
    """The scores of a lifetime, as returns.

    Args:
        life: The lifetime.
        episodes: All that it acted in; without them, curves are made of the means of batches, and
            probes and trials count as the batch after them.
    """
    schedule, matrix = life.protocol.schedule, _matrix(life)
    acted: defaultdict[int, list[Episode]] = defaultdict(list)
    for episode in episodes:
        acted[episode.visit].append(episode)
    earlier: defaultdict[str, list[Visit]] = defaultdict(list)
    visits = []
    for lived in life.visits:
        if schedule[lived.visit].drifting:
            continue
        number, task = lived.visit, lived.task
        start, curve = float(matrix[task][number]), curve_of(lived, acted[number])
        visit = Visit(number, task, start, lived.end_mean, curve, tuple(earlier[task]))
        earlier[task].append(visit)
        visits.append(visit)
    held_out = tuple(life.protocol.held_out)
    return Scores(tuple(earlier), held_out, matrix, tuple(visits))


def _matrix(life: Life) -> dict[str, np.ndarray]:
    checkpoints = len(life.protocol.schedule) + 1
    matrix = {name: np.full(checkpoints, math.nan) for name in life.protocol.tasks}
    for entry in life.evaluations:
        if entry.task not in matrix or entry.checkpoint >= checkpoints:
            raise ValueError(
                f"lifetime {life.agent}-{life.seed}: task {entry.task!r} was evaluated at "
                f"checkpoint {entry.checkpoint}, but its protocol has the tasks {list(matrix)} and "
                f"the checkpoints 0 to {checkpoints - 1}; was life.json edited?"
            )
        matrix[entry.task][entry.checkpoint] = entry.mean
    return matrix


def curve_of(visit: stored.Visit, episodes: Sequence[Episode]) -> np.ndarray:
    """For each episode of a visit, the mean return of its batch; a probe or trial is a batch."""
    ends = [point.episodes for point in visit.curve]
    if not episodes:
        values = [point.value for point in visit.curve]
        return np.repeat(np.array(values, dtype=float), np.diff([0, *ends]))
    batches: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    ordered = sorted(episodes, key=lambda episode: episode.episode)
    for place, episode in enumerate(ordered):
        number = int(np.searchsorted(ends, episode.episode, side="right"))
        batches[number, -1 if episode.purpose == "learn" else place].append(place)
    curve = np.empty(len(ordered))
    for places in batches.values():
        kept = [ordered[p].value for p in places if not ordered[p].diverged]
        curve[places] = known_mean(kept)
    return curve


def normalise(scores: Scores, low: Mapping[str, float], high: Mapping[str, float]) -> Scores:
    """The same with 0 at ``low`` and 1 at ``high``, by task; NaN for a task that has no bounds."""
    zero = {task: low.get(task, math.nan) for task in scores.matrix}
    width = {task: high.get(task, math.nan) - zero[task] for task in scores.matrix}
    width = {task: value if value > 0 else math.nan for task, value in width.items()}
    done: dict[int, Visit] = {}
    for visit in scores.visits:
        bottom, scale = zero[visit.task], width[visit.task]
        done[visit.number] = dataclasses.replace(
            visit,
            start=(visit.start - bottom) / scale,
            end=(visit.end - bottom) / scale,
            curve=(visit.curve - bottom) / scale,
            before=tuple(done[earlier.number] for earlier in visit.before),
        )
    matrix = {task: (row - zero[task]) / width[task] for task, row in scores.matrix.items()}
    return dataclasses.replace(scores, matrix=matrix, visits=tuple(done.values()), normalised=True)
