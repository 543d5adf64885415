"""The default reader: try the likeliest row under guard, and believe only what its record says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.candidates import Candidates
from agent.memory.guard import (
    Guard,
    GuardConfig,
    StepEvidence,
    band,
    guard_for,
    negligible,
    spread,
)
from agent.memory.reader.base import Picked, Trial


@dataclass(kw_only=True, config={"extra": "forbid"})
class Guarded:
    """Row after row, each stopped inside its episode as soon as it falls below its own record.

    If no row is borne out, one that clearly beat the meta-initialisation on the task at hand will
    do, where the probe tells what that returns.
    """

    trials: Annotated[int, Field(ge=1)] = 3
    """Rows tried at most, an episode each."""
    accept_sd: Annotated[float, Field(gt=0)] = 3.0
    """A row is right if its episode returned no less than this many standard deviations below its
    record's mean."""
    guard: GuardConfig | None = field(default_factory=GuardConfig)
    """Stops wrong rows inside the episode; None lets every episode run to its end."""
    residual: bool = False
    """Stop a row also when the probe's own model of the task explains new steps better than the
    row's does. Off: where robots are not linear, a model of the probe's states is wrong about
    those that the row goes to (HalfCheetah faults: regret 3.9 with it, 1.9 without; see
    scripts/ablate.py)."""
    rival: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How much a rejected row takes its likes down with it: 1 by the whole probability that they
    are of one task."""

    def open(
        self,
        candidates: Candidates,
        generator: torch.Generator | None = None,
        evidence: Callable[[Tensor], StepEvidence] | None = None,
        threshold: float | None = None,
    ) -> Trial:
        """Begin with the likeliest row.

        ``evidence(place [T])`` gives the model residual of the rows tried, and ``threshold`` the
        guard's, if it was measured (``guard.measured_threshold``).
        """
        if evidence is None and candidates.residual is not None and self.residual:
            evidence = _by_place(candidates)
        return _Sequential(self, candidates, evidence, threshold)


class _Sequential(Picked):
    """Tries rows in the order of a posterior that every rejection changes."""

    def __init__(
        self,
        settings: Guarded,
        candidates: Candidates,
        evidence: Callable[[Tensor], StepEvidence] | None,
        threshold: float | None,
    ) -> None:
        super().__init__(candidates)
        self._settings, self._evidence, self._threshold = settings, evidence, threshold
        self.weight, self.null = _shares(candidates.weight, candidates.null)
        self._tried = torch.zeros_like(self.null)
        self._open = candidates.known & _worth_it(candidates)
        share = settings.guard.floor if settings.guard else GuardConfig.floor
        scale = band(spread(candidates)[..., -1], candidates.n) + negligible(candidates, share)
        self._slack = settings.accept_sd * scale
        self.matched = torch.zeros_like(self._done)
        """``[T]`` bool: the choice did as its record says. Else it only beat the
        meta-initialisation."""
        self._second = candidates.home.double()
        self._next()

    def place(self) -> Tensor:
        """The likeliest row that was not rejected."""
        return self.weight.masked_fill(~self._open, -1.0).argmax(-1)

    def guard(self, place: Tensor) -> Guard | None:
        """Of those that are still on trial: what was accepted is no longer watched."""
        config = self._settings.guard
        if config is None or bool(self._done.all()):
            return None
        watched = place.masked_fill(self._done, -1)
        evidence = None if self._evidence is None else self._evidence(watched)
        return guard_for(self.candidates, watched, config, evidence, self._threshold)

    def learn(self, returns: Tensor, place: Tensor, tripped: Tensor) -> None:
        """Accept what its record bears out; else lower it and its likes, and go on."""
        tasks, slot = torch.arange(len(place), device=place.device), place.clamp(min=0)
        slack, home = self._slack[tasks, slot], self.candidates.home
        on_trial = ~self._done & ~tripped
        # False for NaN returns: it diverged. Not false for a NaN home.
        enough = (returns >= self.candidates.mean[tasks, slot] - slack) & ~(returns < home)
        accepted = on_trial & enough
        better = on_trial & ~enough & (returns > home + slack) & (returns > self._second)
        self.choice = torch.where(accepted | better, place, self.choice)
        self._second = torch.where(better, returns.double(), self._second)
        on_trial = ~self._done
        rejected = (on_trial & ~accepted)[:, None]
        likes = self.candidates.affinity[tasks, slot].clamp(0, 1)
        kept = self.weight * (1 - self._settings.rival * likes)
        kept[tasks, slot] = 0.0
        self.weight = torch.where(rejected, kept, self.weight)
        self._open[tasks, slot] &= ~rejected[:, 0]
        self.weight, self.null = _shares(self.weight, self.null)
        self._tried += on_trial
        self.matched = self.matched | accepted
        self._done = self._done | accepted
        self._next()

    def _next(self) -> None:
        """Stop where no row is left that is worth an episode.

        Then it is the best of those that beat the meta-initialisation, or that itself.
        """
        left = self.weight.masked_fill(~self._open, 0.0).sum(-1)
        over = (left < self.null) | (left <= 0) | (self._tried >= self._settings.trials)
        self._done = self._done | over


def _by_place(candidates: Candidates) -> Callable[[Tensor], StepEvidence]:
    """The candidates' residual, asked for places rather than rows."""
    residual = candidates.residual
    if residual is None:
        raise ValueError("these candidates come from a key that has no residual")
    return lambda place: residual(candidates.row(place))


def _shares(weight: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Both so that they sum to one; "none of these" for certain where nothing is left."""
    total = weight.sum(-1) + null
    safe = total.clamp(min=1e-30)
    return weight / safe[:, None], torch.where(total > 1e-30, null / safe, 1.0)


def _worth_it(candidates: Candidates) -> Tensor:
    """``[T, K]`` bool: its record is better than the meta-initialisation is on the task at hand."""
    return ~(candidates.mean <= candidates.home[:, None])
