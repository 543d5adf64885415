"""Readers that decide at once, on the posterior alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.candidates import Candidates
from agent.memory.reader.base import Picked, Proposal, Trial, recall_of
from agent.types import Recall, Trajectories


def first_place(candidates: Candidates, gated: bool) -> Tensor:
    """``[T]`` place of the likeliest row; -1 where there is none, or "none of these" wins."""
    best = candidates.weight.argmax(-1)
    best = best.masked_fill(~candidates.known.any(-1), -1)
    return best.masked_fill(candidates.null_wins, -1) if gated else best


def softmax(candidates: Candidates, temperature: float) -> Tensor:
    """``[T, K]`` weights proportional to posterior^(1/temperature) over the rows that there are.

    All 0 where there is none. Temperature 0 is the likeliest row alone, infinity a plain average.
    """
    known = candidates.known
    if temperature == 0:
        places = torch.arange(candidates.size[1], device=known.device)
        chosen = places == first_place(candidates, False)[:, None]
        return chosen.to(candidates.params.dtype)
    logits = (candidates.weight.double().log() / temperature).masked_fill(~known, -torch.inf)
    logits = logits - logits.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    raised = torch.where(known, logits.exp(), 0.0)
    total = raised.sum(-1, keepdim=True).clamp(min=1e-300)
    return (raised / total).to(candidates.params.dtype)


class Mixed:
    """A trial that needs no episode and answers with a weighted mean of several rows."""

    def __init__(self, candidates: Candidates, weights: Tensor, jump: bool = True) -> None:
        """Answer with ``weights [T, K]``; start from the mean if ``jump``, else do not move."""
        candidates.refuse_mixing(weights)
        self.candidates, self._weights, self._jump = candidates, weights, jump

    @property
    def done(self) -> Tensor:
        """All decided."""
        return torch.ones_like(self.candidates.null, dtype=torch.bool)

    def propose(self) -> Proposal:
        """Where to start; as no single row is meant, the likeliest is named."""
        row = self.candidates.row(self._weights.argmax(-1))
        moved = self._weights.sum(-1) > 0
        row = torch.where(moved & self._jump, row, -1)
        return Proposal(self.start(), row)

    def observe(self, episodes: Trajectories, tripped: Tensor) -> None:
        """Nothing is learned from trying."""

    def recall(self) -> Recall:
        """All the rows that were mixed."""
        return recall_of(self.candidates, self._weights)

    def start(self) -> Tensor:
        """The mean of the rows; exactly the meta-initialisation where there is none."""
        anchor = self.candidates.anchor.expand(self.candidates.size[0], -1)
        return anchor + self.recall().pull(anchor) if self._jump else anchor.clone()


@dataclass(kw_only=True, config={"extra": "forbid"})
class Gated:
    """Whether "none of these" is an answer."""

    gated: bool = True
    """Stay at the meta-initialisation where "none of these" is likelier than all rows together."""

    def shown(self, candidates: Candidates) -> Candidates:
        """The candidates, without any row where the gate is shut."""
        if not self.gated:
            return candidates
        shut = candidates.null_wins[:, None]
        return dataclasses.replace(candidates, weight=candidates.weight.masked_fill(shut, 0.0))


@dataclass(kw_only=True, config={"extra": "forbid"})
class Top1(Gated):
    """The likeliest row, without trying it."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Decide."""
        return _Decided(candidates, first_place(candidates, self.gated))


@dataclass(kw_only=True, config={"extra": "forbid"})
class SoftmaxTopK(Gated):
    """The mean of the rows, weighted by their posterior."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Flattens the posterior: 0 is the likeliest row alone, infinity a plain average."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Decide."""
        return Mixed(candidates, softmax(self.shown(candidates), self.temperature))


@dataclass(kw_only=True, config={"extra": "forbid"})
class Average(Gated):
    """The plain mean of the K likeliest rows."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Decide."""
        return Mixed(candidates, softmax(self.shown(candidates), math.inf))


@dataclass(kw_only=True, config={"extra": "forbid"})
class SeedLiteral(Gated):
    """The project's first rule as it was written: no jump, all rows pull, and always.

    Use it with the constant pull.
    """

    gated: bool = False
    """The rule as written knows no "none of these"."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Flattens the posterior."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Decide."""
        weights = softmax(self.shown(candidates), self.temperature)
        return Mixed(candidates, weights, jump=False)


class _Decided(Picked):
    def __init__(self, candidates: Candidates, choice: Tensor) -> None:
        super().__init__(candidates)
        self.choice = choice
        self._done = torch.ones_like(self._done)
