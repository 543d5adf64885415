"""Readers that run candidates and the meta-initialisation side by side, round after round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import stats
from torch import Tensor

from agent.memory.candidates import Candidates
from agent.memory.reader.base import Picked, Trial


class _Rule(Protocol):
    """What happens when all episodes of a round were acted."""

    def first(self, rows: list[int]) -> list[int]:
        """The places of the first round, from those of the rows, likeliest first."""
        ...

    def judge(self, returns: Sequence[Sequence[float]], alive: list[int]) -> list[int]:
        """Who is left of ``alive``; one is the winner. ``returns`` by place, best of all last."""
        ...


@dataclass(kw_only=True, config={"extra": "forbid"})
class Halving:
    """Successive halving (Jamieson 2016): all for an episode, then the better half, and so on."""

    candidates: Annotated[int, Field(ge=1)] = 8
    """Rows in the first round, beside the meta-initialisation."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Begin."""
        return _Rounds(self, candidates)

    def first(self, rows: list[int]) -> list[int]:
        """The likeliest rows and the meta-initialisation, once each."""
        return [*rows[: self.candidates], -1]

    def judge(self, returns: Sequence[Sequence[float]], alive: list[int]) -> list[int]:
        """The better half, by mean return."""
        ranked = sorted(alive, key=lambda place: _mean(returns[place]), reverse=True)
        return ranked[: -(-len(ranked) // 2)]


@dataclass(kw_only=True, config={"extra": "forbid"})
class TTest:
    """A fixed number of episodes each, then the best row that is significantly better than none.

    As FAME (2026) chooses its warm start.
    """

    candidates: Annotated[int, Field(ge=1)] = 2
    """Rows compared with the meta-initialisation."""
    episodes: Annotated[int, Field(ge=2)] = 10
    """Episodes of each."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """A row wins if its returns would be this much better by chance with this probability only."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Begin."""
        return _Rounds(self, candidates)

    def first(self, rows: list[int]) -> list[int]:
        """Each as often as is needed."""
        return [place for place in [*rows[: self.candidates], -1] for _ in range(self.episodes)]

    def judge(self, returns: Sequence[Sequence[float]], alive: list[int]) -> list[int]:
        """One: the best of the significantly better ones, or the meta-initialisation."""
        better = [p for p in alive if p >= 0 and self._p(returns[p], returns[-1]) < self.level]
        return [max(better, key=lambda place: _mean(returns[place]), default=-1)]

    def _p(self, row: Sequence[float], none: Sequence[float]) -> float:
        """One-sided Welch test of "the row is no better"; what diverged does not count."""
        ours, theirs = (np.array(x)[np.isfinite(x)] for x in (row, none))
        if min(len(ours), len(theirs)) < 2:
            return 1.0
        if ours.std() == theirs.std() == 0:
            return float(ours.mean() <= theirs.mean())
        test = stats.ttest_ind(ours, theirs, equal_var=False, alternative="greater")
        return float(test[1])  # pyright: ignore[reportArgumentType]


class _Rounds(Picked):
    """A queue of places for each task; when it is empty, the rule says who goes on."""

    def __init__(self, rule: _Rule, candidates: Candidates) -> None:
        super().__init__(candidates)
        self._rule = rule
        self._queues: list[list[int]] = []
        self._alive: list[list[int]] = []
        for task, known in enumerate(candidates.known):
            rows = known.nonzero()[:, 0].tolist()
            self._queues.append(rule.first(rows) if rows else [])
            self._alive.append(list(dict.fromkeys(self._queues[-1])))
            self._done[task] = not rows

    def place(self) -> Tensor:
        """Whoever is next."""
        next_ = [queue[0] if queue else -1 for queue in self._queues]
        return torch.tensor(next_, device=self.choice.device)

    def learn(self, returns: Tensor, place: Tensor, tripped: Tensor) -> None:
        """Take them off the queue; judge when the round is over."""
        for task in (~self._done).nonzero()[:, 0].tolist():
            self._queues[task].pop(0)
            if self._queues[task]:
                continue
            self._alive[task] = self._rule.judge(self.returns[task], self._alive[task])
            self._queues[task] = list(self._alive[task])
            self.choice[task] = self._alive[task][0]
            self._done[task] = len(self._alive[task]) == 1


def _mean(returns: Sequence[float]) -> float:
    """Of the episodes so far; the worst there is if one of them diverged or none was finished."""
    if not returns or not all(map(math.isfinite, returns)):
        return -math.inf
    return math.fsum(returns) / len(returns)
