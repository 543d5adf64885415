"""What one row of the memory is made of, as values: nothing here knows where rows are kept.

A row by itself lies on the CPU; the bank puts it where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from agent.types import Trajectories


@dataclass(frozen=True)
class ReturnRecord:
    """Returns of a stored policy on its own task, from episodes that were really acted in.

    By the policy itself, or by the one that it was made from in one more adaptation step.
    """

    mean: float
    """Mean return of an episode."""
    sd: float
    """Standard deviation between episodes; 0 with fewer than two."""
    n: int
    """Episodes that the record is made of; diverged ones do not count."""
    so_far: Tensor
    """Mean return up to and including each step, ``[H]``."""
    so_far_sd: Tensor
    """Its standard deviation between episodes, ``[H]``."""

    @classmethod
    def of(cls, episodes: Trajectories) -> ReturnRecord:
        """From E episodes of one task (T = 1), all by the same policy.

        An episode that ended early keeps its return from there on.

        Raises:
            ValueError: Every episode diverged, or there are several tasks.
        """
        if len(episodes.reward) != 1:
            raise ValueError(f"a record is of one task, got {len(episodes.reward)}")
        kept = ~episodes.diverged[0]
        if not bool(kept.any()):
            raise ValueError("all episodes diverged: there is no return to keep a record of")
        so_far = (episodes.reward * episodes.mask)[0][kept].double().cumsum(-1)
        n = len(so_far)
        sd = so_far.std(0) if n > 1 else torch.zeros_like(so_far[0])
        return cls(
            mean=float(so_far[:, -1].mean()),
            sd=float(sd[-1]),
            n=n,
            so_far=so_far.mean(0).float().cpu(),
            so_far_sd=sd.float().cpu(),
        )


@dataclass(frozen=True)
class Transitions:
    """Raw steps of one task, kept so that its key can be computed anew by another encoder."""

    obs: Tensor
    """``[M, O]``, raw."""
    action: Tensor
    """``[M, A]``, as the policy drew it."""
    reward: Tensor
    """``[M]``."""
    next_obs: Tensor
    """``[M, O]``, raw."""
    first: Tensor
    """``[M]`` bool: whether an episode begins with this step."""

    @classmethod
    def of(cls, episodes: Trajectories, most: int) -> Transitions:
        """The first ``most`` valid steps of one task's episodes (T = 1), episode after episode."""
        valid = episodes.mask[0] > 0
        first = torch.zeros_like(valid)
        first[:, 0] = True
        columns = (episodes.obs, episodes.action, episodes.reward, episodes.next_obs())
        obs, action, reward, after = (column[0][valid][:most].cpu() for column in columns)
        return cls(obs, action, reward, after, first[valid][:most].cpu())

    def trajectories(self) -> Trajectories:
        """The same steps as one task's episodes ``[1, E, H]``, the last one perhaps cut short."""
        starts = [*self.first.nonzero()[:, 0].tolist(), len(self.first)]
        spans = list(pairwise(starts))
        horizon = max(stop - start for start, stop in spans)

        def laid_out(column: Tensor) -> Tensor:
            out = column.new_zeros(1, len(spans), horizon, *column.shape[1:])
            for episode, (start, stop) in enumerate(spans):
                out[0, episode, : stop - start] = column[start:stop]
            return out

        mask = laid_out(torch.ones_like(self.reward))
        obs, after = laid_out(self.obs), laid_out(self.next_obs)
        final = torch.stack([self.next_obs[stop - 1] for _, stop in spans])[None]
        for episode, (start, stop) in enumerate(spans):
            if stop - start < horizon:  # what ``next_obs`` of the last step must be
                obs[0, episode, stop - start] = after[0, episode, stop - start - 1]
        none = torch.zeros(1, len(spans), dtype=torch.bool, device=obs.device)
        return Trajectories(
            obs=obs,
            action=laid_out(self.action),
            log_prob=torch.zeros_like(mask),
            reward=laid_out(self.reward),
            mask=mask,
            final_obs=final,
            terminated=none,
            diverged=none,
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One remembered policy and all that is kept with it."""

    key: Tensor
    """Evidence of the task ``[D]`` float32, as the key's ``encode`` made it."""
    encoder: str
    """Version of the key that made it; keys of different versions are never compared."""
    params: Tensor
    """The policy ``[P]`` float32, decoded."""
    lineage: str
    """Names the family of meta-initialisations in whose coordinates ``params`` is meaningful."""
    record: ReturnRecord
    """How it does on its task."""
    baseline: float
    """Mean return of the meta-initialisation on the same task (its probe)."""
    probe: Transitions
    """Raw probe steps of the meta-initialisation on the task."""
    visits: int = 1
    """Visits that the row was found to be of."""
    recalls: int = 0
    """How often it was tried, and how often that was right:"""
    accepted: int = 0
    time: int = 0
    """Env steps of the lifetime when it was last written."""
    info: dict[str, Any] = field(default_factory=dict)
    """Plain JSON for readers (the task's label, the run); no decision ever looks at it."""

    @property
    def gain(self) -> float:
        """What it is worth: mean return above the meta-initialisation's."""
        return self.record.mean - self.baseline

    def with_(self, **changes: Any) -> Row:
        """The same row with some fields changed."""
        return replace(self, **changes)
