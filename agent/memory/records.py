"""Comparing and pooling what is known of policies; by differences, so returns may be negative."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from agent.memory.row import ReturnRecord, Transitions


def beats(record: ReturnRecord, other: ReturnRecord, margin: float) -> bool:
    """Whether a mean return is the higher one by more than ``margin`` standard errors.

    A record of a single episode borrows the spread of the other. False if either is not finite.
    """
    pair = (record, other)
    borrowed = max((r.sd for r in pair if r.n > 1), default=0.0)
    variance = sum((r.sd if r.n > 1 else borrowed) ** 2 / max(r.n, 1) for r in pair)
    return record.mean - other.mean > margin * math.sqrt(variance)


def keeps_gain(measured: float, mean: float, baseline: float, share: float) -> bool:
    """Whether a return ``measured`` keeps ``share`` of the gain ``mean - baseline``.

    Written as the loss allowed below ``mean``: ``share`` of a negative return would be a higher
    one. False if anything is not finite.
    """
    return measured >= mean - (1 - share) * abs(mean - baseline)


def pooled(first: ReturnRecord, more: ReturnRecord, most: int | None = None) -> ReturnRecord:
    """The record that all the episodes of two records together would have made.

    With ``most``, the first counts as at most so many episodes, so that records age.
    """
    if first.so_far.shape != more.so_far.shape:
        raise ValueError(
            f"records of episodes of {len(first.so_far)} and {len(more.so_far)} steps do not add up"
        )
    if most is not None and first.n > most:
        first = replace(first, n=most)
    n = first.n + more.n

    def joint(a: Tensor, a_sd: Tensor, b: Tensor, b_sd: Tensor) -> tuple[Tensor, Tensor]:
        within = a_sd.square() * max(first.n - 1, 0) + b_sd.square() * max(more.n - 1, 0)
        between = (b - a).square() * (first.n * more.n / n)
        return a + (b - a) * (more.n / n), ((within + between) / max(n - 1, 1)).sqrt()

    mean, sd = joint(*(torch.tensor(x).double() for r in (first, more) for x in (r.mean, r.sd)))
    curve, band = joint(*(x.double() for r in (first, more) for x in (r.so_far, r.so_far_sd)))
    return ReturnRecord(float(mean), float(sd), n, curve.float(), band.float())


def both_probes(first: Transitions, more: Transitions) -> Transitions:
    """Steps of two probes of one task, no more than the longer of the two has.

    Each gives half, or more where the other has less.
    """
    most = max(len(first.reward), len(more.reward))
    fewer = min(len(first.reward), len(more.reward), most // 2)
    counts = (
        (most - fewer, fewer) if len(first.reward) >= len(more.reward) else (fewer, most - fewer)
    )
    names = ("obs", "action", "reward", "next_obs", "first")
    columns = {
        name: torch.cat(
            [getattr(p, name)[:count] for p, count in zip((first, more), counts, strict=True)]
        )
        for name in names
    }
    return Transitions(**columns)
