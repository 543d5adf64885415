"""How good recognition is: precision, calibration, and whether new tasks are known to be new."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.memory.posterior import Posterior


def precision_at(scores: Tensor, own: Tensor, k: int) -> float:
    """Share of queries whose own row ``own [T]`` is among the best k of ``scores [T, N]``.

    Ties count against it: a key that cannot tell rows apart has found nothing. So does a row
    without a score.
    """
    mine = scores.gather(1, own[:, None])
    ahead = (scores >= mine).sum(-1)
    return float(((ahead <= k) & torch.isfinite(mine[:, 0])).double().mean())


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Probability that one drawn from ``positive [n]`` is greater than one of ``negative [m]``.

    Ties count half. 0.5 says nothing; 1 is perfect.
    """
    if len(positive) == 0 or len(negative) == 0:
        raise ValueError("an AUROC needs cases of both kinds")
    greater = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    return float(greater.mean())


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    """Expected calibration error of ``confidence [n]`` in [0, 1] against ``correct [n]`` bool.

    The mean over bins of equal width, weighted by their cases, of the distance between the mean
    confidence and the share that was correct.
    """
    index = (confidence * bins).long().clamp(0, bins - 1)
    gap = confidence.double() - correct.double()
    sums = torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add(0, index, gap)
    return float(sums.abs().sum() / len(gap))


def chosen(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """The likeliest answer ``[T]``, N for none of the rows, and its probability ``[T]``."""
    everything = torch.cat([posterior.weight, posterior.null[:, None]], -1)
    best = everything.max(-1)
    return best.indices, best.values


def posterior_error(posterior: Posterior, truth: Tensor, bins: int = 10) -> float:
    """Expected calibration error of the likeliest answer, "none of these" (N) among them."""
    answer, confidence = chosen(posterior)
    return calibration_error(confidence, answer == truth, bins)


def brier(posterior: Posterior, truth: Tensor) -> float:
    """Mean squared distance of the posterior to the truth ``[T]`` (N: none); 0 best, 2 worst."""
    everything = torch.cat([posterior.weight, posterior.null[:, None]], -1)
    target = torch.nn.functional.one_hot(truth, everything.shape[1]).to(everything.dtype)
    return float((everything - target).square().sum(-1).mean())
