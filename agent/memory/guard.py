"""Watches a remembered policy while it acts, and stops it when its own record says it is wrong."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.candidates import Candidates, StepEvidence

_WALKS = 8000
_MOST_EPISODES = 32
_SHORTEST = 2
# Fewer episodes say little of their own spread: then it is held to be no less than a sixth of the
# gain, so that three standard deviations are half of it.
_FEW_EPISODES = 6
_GAIN_IN_SDS = 6.0


@dataclass(kw_only=True, config={"extra": "forbid"})
class GuardConfig:
    """How easily a remembered policy is stopped inside an episode."""

    false_abort: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Chance that an episode of the right row is stopped for its return, over the whole episode;
    and as much again for its model residual, where one is given."""
    looks: Annotated[int, Field(ge=1)] = 25
    """Evenly spaced steps of an episode at which the return so far is compared."""
    floor: Annotated[float, Field(ge=0)] = 0.005
    """Added to the record's standard deviation, as a share of the row's gain over the
    meta-initialisation: a smaller loss is never a reason to stop."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """Bounds for T candidates; ``watch`` starts a batch of episodes."""

    lowest: Tensor
    """``[T, H]`` return so far below which the candidate is stopped; -inf: no look there."""
    fallback: Tensor
    """``[T, P]`` what acts on from the next step."""
    evidence: StepEvidence | None = None
    """The model residual, if any."""
    most_evidence: float = math.inf
    """Summed evidence at which the candidate is stopped."""

    def watch(self, episodes: int, horizon: int) -> Watch:
        """Watch E episodes of each task from their first step.

        Raises:
            ValueError: The records are of episodes of another length.
        """
        if self.lowest.shape[1] != horizon:
            raise ValueError(
                f"the records are of episodes of {self.lowest.shape[1]} steps, "
                f"the episodes to be guarded have {horizon}"
            )
        return Watch(self, episodes)


class Watch:
    """E episodes of T tasks under a guard."""

    def __init__(self, guard: Guard, episodes: int) -> None:
        self._guard, self._step = guard, 0
        t, horizon = guard.lowest.shape
        shape, device = (t, episodes), guard.lowest.device
        self.tripped = torch.zeros(shape, dtype=torch.bool, device=device)
        """``[T, E]`` bool: the fallback acts."""
        self.switched = torch.full(shape, horizon, device=device)
        """``[T, E]`` first step that it acts in, H if none."""
        self._so_far = torch.zeros(shape, dtype=torch.float64, device=device)
        self._against = torch.zeros(shape, dtype=torch.float64, device=device)
        self._alive = torch.ones(shape, dtype=torch.bool, device=device)

    def step(
        self, obs: Tensor, action: Tensor, reward: Tensor, after: Tensor, alive: Tensor
    ) -> None:
        """Take in one step; ``alive [T, E]`` where the episode goes on after it."""
        # What has ended may hold anything, and a step that did not count says nothing.
        self._so_far += torch.where(self._alive, reward, 0.0).nan_to_num()
        stop = self._so_far < self._guard.lowest[:, self._step, None]
        if self._guard.evidence is not None:
            said = self._guard.evidence(obs, action, reward, after).double()
            self._against += torch.where(self._alive, said, 0.0).nan_to_num()
            stop |= self._against > self._guard.most_evidence
        self._step += 1
        self._alive = alive.clone()  # the caller goes on writing in its own
        stop &= alive & ~self.tripped
        if self._step < self._guard.lowest.shape[1]:
            self.switched[stop] = self._step
            self.tripped |= stop


def guard_for(
    candidates: Candidates,
    place: Tensor,
    config: GuardConfig,
    evidence: StepEvidence | None = None,
    threshold: float | None = None,
) -> Guard:
    """Guard the candidates at ``place [T]`` (-1: the meta-initialisation, which is not guarded).

    One that is below its record, but not below the meta-initialisation's own return so far where
    that is known, goes on: there is nothing better to stop it for.
    ``threshold`` replaces that for random walks, if it was measured (``measured_threshold``).
    """
    tasks = torch.arange(len(place), device=place.device)
    horizon = candidates.so_far.shape[-1]
    slot = place.clamp(min=0)
    so_far = candidates.so_far[tasks, slot].double()
    n = candidates.n
    least = negligible(candidates, config.floor)[tasks, slot, None]
    scale = band(spread(candidates)[tasks, slot], n[tasks, slot, None]) + least
    each = [
        abort_threshold(int(k), min(config.looks, horizon), config.false_abort)
        if threshold is None
        else threshold
        for k in n[tasks, slot].tolist()
    ]
    c = torch.tensor(each, dtype=scale.dtype, device=scale.device)
    lowest = so_far - c[:, None] * scale
    if candidates.home_so_far is not None:
        home = candidates.home_so_far.double()
        lowest = torch.where(home < lowest, home, lowest)  # false for NaN
    unseen = torch.ones(horizon, dtype=torch.bool, device=place.device)
    unseen[look_steps(horizon, config.looks)] = False
    lowest = lowest.masked_fill(unseen | (place < 0)[:, None], -torch.inf)
    most = math.inf if evidence is None else math.log(1 / config.false_abort)
    fallback = candidates.anchor.expand(len(place), -1)
    return Guard(lowest, fallback, evidence, most)


def band(sd: Tensor, n: Tensor) -> Tensor:
    """Standard deviation of a new episode's return about a mean of ``n`` episodes."""
    return sd * torch.sqrt(1 + 1 / n.clamp(min=1))


def spread(candidates: Candidates) -> Tensor:
    """Standard deviation between episodes of each record's return so far, ``[T, K, H]``.

    Where a record has few, it is held to be no less than a sixth of the gain.
    """
    horizon = candidates.so_far.shape[-1]
    time = torch.linspace(1 / horizon, 1, horizon, device=candidates.mean.device).double()
    gain = (candidates.mean - candidates.baseline).double().abs()
    guess = gain[..., None] / _GAIN_IN_SDS * time.sqrt()
    own, few = candidates.so_far_sd.double(), (candidates.n < _FEW_EPISODES)[..., None]
    return torch.where(few, torch.maximum(own, guess), own)


def negligible(candidates: Candidates, share: float) -> Tensor:
    """``[T, K]``: what a return may differ by without meaning anything, ``share`` of the gain."""
    mean, baseline = candidates.mean.double(), candidates.baseline.double()
    rounding = 1e-6 * (mean.abs() + baseline.abs() + 1e-6)
    return share * (mean - baseline).abs() + rounding


def look_steps(horizon: int, looks: int) -> Tensor:
    """The steps (from 0) after which the return so far is looked at; the last one is among them."""
    looks = min(looks, horizon)
    return (torch.arange(1, looks + 1) * horizon) // looks - 1


@lru_cache(maxsize=256)
def abort_threshold(n: int, looks: int, rate: float) -> float:
    """Deviations below a record of n episodes that ``rate`` of the right episodes ever reach.

    The return so far is compared at several looks and with a standard deviation that n episodes
    gave, so neither the normal's quantile nor Student's will do. Simulated for rewards that are
    independent from step to step: there the looks differ most, so that of one episode's all the
    more are false. Where a whole episode goes better or worse, fewer are. The spread of a record of
    few episodes is not its own (see ``spread``), and counts as known.
    """
    episodes = min(n, _MOST_EPISODES) if n >= _FEW_EPISODES else _MOST_EPISODES
    generator = torch.Generator().manual_seed(0)
    walks = torch.randn(_WALKS, episodes + 1, looks, generator=generator).cumsum(-1)
    return _quantile_of_worst(walks[:, :-1], walks[:, -1], rate)


def measured_threshold(paths: Tensor, rate: float, looks: int = GuardConfig.looks) -> float:
    """The same from real episodes: rewards ``[M, E, H]`` of E episodes of one policy per task.

    Each episode is held against the record of the E - 1 others. Needs M * E of 1 / rate or more.
    """
    m, e, horizon = paths.shape
    if e <= _SHORTEST or m * e * rate < 1:
        raise ValueError(
            f"{m} x {e} episodes cannot measure a rate of {rate}: needs 3 of each task, and "
            f"{math.ceil(1 / rate)} in all"
        )
    so_far = paths.double().cumsum(-1)[..., look_steps(horizon, looks)]
    others = torch.stack([so_far.roll(-i, 1)[:, 1:] for i in range(e)], 1).flatten(0, 1)
    return _quantile_of_worst(others, so_far.flatten(0, 1), rate)


def _quantile_of_worst(record: Tensor, new: Tensor, rate: float) -> float:
    """Of ``record [M, n, looks]`` and new episodes ``[M, looks]``: the (1 - rate) quantile."""
    n = torch.tensor(float(record.shape[1]))
    scale = band(record.std(1), n).clamp(min=1e-12)
    worst = ((record.mean(1) - new) / scale).amax(-1)
    return float(worst.quantile(1 - rate))
