"""Generalised advantage estimation over a linear baseline fitted to each task's own episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.policy import ObsNormalizer
from agent.types import Trajectories

_RIDGE = 1e-3


def returns_to_go(reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each step on, ``[T, E, H]``.

    Steps that the mask leaves out are jumped over, as in ``gae``.
    """
    out, ahead = torch.zeros_like(reward), torch.zeros_like(reward[..., 0])
    for h in reversed(range(reward.shape[-1])):
        ahead = torch.where(mask[..., h] > 0, reward[..., h] + gamma * ahead, ahead)
        out[..., h] = ahead * mask[..., h]
    return out


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates ``[T, E, H]`` (Schulman 2016, eq. 16).

    ``value [T, E, H]`` is the baseline at each step; the value after the last step is 0, since the
    tasks are of finite horizon and the baseline sees the time. Steps that the mask leaves out are
    jumped over, so that H may be several episodes of a trial, one after the other.
    """
    out, ahead = torch.zeros_like(reward), torch.zeros_like(reward[..., 0])
    next_value = torch.zeros_like(reward[..., 0])
    for h in reversed(range(reward.shape[-1])):
        delta = reward[..., h] + gamma * next_value - value[..., h]
        valid = mask[..., h] > 0
        ahead = torch.where(valid, delta + gamma * lam * ahead, ahead)
        next_value = torch.where(valid, value[..., h], next_value)
        out[..., h] = ahead * mask[..., h]
    return out


def linear_baseline(obs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Least-squares fit of ``target [T, E, H]`` on (obs, obs^2, t, t^2, t^3, 1), task by task.

    After Duan 2016. ``obs [T, E, H, O]`` should be normalised. Returns the fitted values
    ``[T, E, H]``. Solved in float64: the features are close to collinear.
    """
    horizon = obs.shape[2]
    time = torch.arange(horizon, device=obs.device, dtype=torch.float64) / horizon
    powers = torch.stack([time, time**2, time**3, torch.ones_like(time)], -1)  # [H, 4]
    powers = powers.expand(*obs.shape[:3], 4)
    features = torch.cat([obs.double(), obs.double().square(), powers], -1)
    features = features.flatten(1, 2)  # [T, E*H, F]
    weighted = features * mask.double().flatten(1)[..., None]
    gram = weighted.mT @ features
    gram = gram + _RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    moment = weighted.mT @ target.double().flatten(1)[..., None]
    solution = torch.linalg.solve(gram, moment)
    return (features @ solution).squeeze(-1).unflatten(1, obs.shape[1:3]).to(target.dtype)


def normalize(advantage: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit sd over each task's valid steps; ``[T, E, H]``."""
    count = mask.sum((1, 2), keepdim=True).clamp(min=1)
    centred = (advantage - (advantage * mask).sum((1, 2), keepdim=True) / count) * mask
    sd = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / (sd + 1e-8)


def estimate(
    episodes: Trajectories, normalizer: ObsNormalizer, gamma: float, lam: float
) -> Trajectories:
    """The episodes with their advantages, normalised per task."""
    with torch.no_grad():
        obs, reward, mask = normalizer(episodes.obs), episodes.reward, episodes.mask
        return episodes.with_advantage(advantages(obs, reward, mask, gamma, lam))


def advantages(obs: Tensor, reward: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Of each step ``[T, E, H]`` over each task's own baseline, normalised per task.

    ``obs [T, E, H, O]`` should be normalised.
    """
    value = linear_baseline(obs, returns_to_go(reward, mask, gamma), mask)
    return normalize(gae(reward, value, mask, gamma, lam), mask)
