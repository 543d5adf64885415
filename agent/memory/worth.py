"""What a policy would have returned in episodes that another one acted in."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.policy import GaussianMlp
from agent.types import Trajectories


@torch.no_grad()
def reweighted_return(
    policy: GaussianMlp, params: Tensor, acted: Tensor, episodes: Trajectories
) -> float:
    """Estimated mean return of ``params [P]`` from one task's episodes of ``acted [1, P]``.

    Weighted per-decision importance sampling (Precup 2000): every reward counts by how much
    likelier the actions up to it are under ``params``, shares of the episodes summing to one at
    each step. Meant for policies that are nearly the same, such as one and its coded form: it costs
    no episodes, and far from ``acted`` it says nothing. NaN if every episode diverged.
    """
    device = policy.device
    theirs = policy.along(params.to(device)[None], episodes).log_prob(episodes.action)
    ours = policy.along(acted.to(device), episodes).log_prob(episodes.action)
    valid = episodes.mask[0].double()
    kept = ~episodes.diverged[0]
    if not bool(kept.any()):
        return float("nan")
    log_ratio = ((theirs - ours)[0].double() * valid).cumsum(-1)[kept]
    share = log_ratio.softmax(0)  # no sum of ratios: over many steps all of them underflow
    return float((share * episodes.reward[0].double()[kept] * valid[kept]).sum())
