"""Per-task policy losses ``[T]``, as functions of flat parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.policy import Policy
from agent.types import Trajectories


def likelihood_ratio(policy: Policy, params: Tensor, episodes: Trajectories) -> Tensor:
    """``pi_theta(a|s) / pi_old(a|s)`` at each step, ``[T, E, H]``; pi_old is the one that acted."""
    return ratio_of(policy.along(params, episodes).log_prob(episodes.action), episodes)


def ratio_of(log_prob: Tensor, episodes: Trajectories) -> Tensor:
    """The same for log-densities ``[T, E, H]`` of the actions under theta."""
    # Masked steps may hold anything; the bound keeps them, and wild updates, from overflowing.
    return torch.exp(((log_prob - episodes.log_prob) * episodes.mask).clamp(-20.0, 20.0))


def surrogate(policy: Policy, params: Tensor, episodes: Trajectories) -> Tensor:
    """``-E[ratio * A]``, ``[T]``: its gradient at the acting policy is the policy gradient.

    Differentiated once more it gives the low-variance curvature of ProMP (Rothfuss 2019, eq. 10).
    """
    ratio = likelihood_ratio(policy, params, episodes)
    return -mean_over_steps(ratio * _advantage(episodes), episodes.mask)


def clipped_surrogate(
    policy: Policy, params: Tensor, episodes: Trajectories, clip: float
) -> Tensor:
    """PPO's pessimistic surrogate (Schulman 2017, eq. 7), ``[T]``."""
    return clipped(likelihood_ratio(policy, params, episodes), episodes, clip)


def clipped(ratio: Tensor, episodes: Trajectories, clip: float) -> Tensor:
    """The same for likelihood ratios ``[T, E, H]`` that are known already."""
    advantage = _advantage(episodes)
    worse = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -mean_over_steps(worse, episodes.mask)


def mean_over_steps(values: Tensor, mask: Tensor) -> Tensor:
    """Mean ``[T]`` of ``values [T, E, H]`` over each task's valid steps."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)


def _advantage(episodes: Trajectories) -> Tensor:
    if episodes.advantage is None:
        raise ValueError("these episodes have no advantages; call advantage.estimate first")
    return episodes.advantage
