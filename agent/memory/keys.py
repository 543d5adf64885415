"""Which task is this: a small linear model of it, fitted to probe episodes of one fixed policy.

Ridge regression of the reward on (s, s'-s, a, |a|^2, 1) and of the one-step change s'-s on
(s, a, 1); the coefficients are the key. Each coordinate is weighed by how well it tells tasks apart
(its reliability), and the whole scaled so that two probes of the same task lie within about 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent.policy import ObsNormalizer
from agent.types import Trajectories

_RIDGE = 1e-2
_FEWEST_TASKS = 8
# How much further apart than two probes of one task those of other tasks must lie.
_CLEARLY_APART = 1.5


class IndistinguishableTasksError(ValueError):
    """Probes of different tasks are no further apart than probes of the same task."""


def task_coefficients(episodes: Trajectories, normalizer: ObsNormalizer) -> Tensor:
    """Ridge coefficients of reward and dynamics, ``[T, D]`` in float64.

    D = 2O + A + 2 + (O + A + 1) O. NaN for a task all of whose episodes diverged: nothing is known
    of it, and the memory recalls nothing for a key that is not finite.
    """
    obs, after = normalizer(episodes.obs).double(), normalizer(episodes.next_obs()).double()
    change, action = after - obs, episodes.action.double().clamp(-1, 1)
    energy = action.square().sum(-1, keepdim=True)
    one = torch.ones_like(energy)
    reward = _ridge([obs, change, action, energy, one], episodes.reward[..., None], episodes.mask)
    dynamics = _ridge([obs, action, one], change, episodes.mask)
    coefficients = torch.cat([reward.flatten(1), dynamics.flatten(1)], -1)
    return coefficients.masked_fill((episodes.mask.sum((1, 2)) == 0)[:, None], torch.nan)


def _ridge(features: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
    """Coefficients ``[T, F, M]`` of ``target [T, E, H, M]`` on the features, over valid steps."""
    x, y = torch.cat(features, -1).flatten(1, 2), target.double().flatten(1, 2)
    weighted = x * mask.double().flatten(1)[..., None]
    gram = weighted.mT @ x
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + _RIDGE * eye, weighted.mT @ y)


@dataclass(frozen=True)
class KeyMetric:
    """Which coordinates matter: ``key = coefficients * weight``; one task lies within about 1."""

    weight: Tensor
    """``[D]``, float64."""

    @classmethod
    def fit(cls, first: Tensor, second: Tensor) -> KeyMetric:
        """From two independent probes ``[M, D]`` each of the same M training tasks.

        A coordinate weighs reliability / sd_within, with reliability = between / (between +
        within): what a task cannot be told by is left out, and what is left counts in units of its
        own noise. (The unbounded Fisher weight sqrt(between / within) / sd_within lets the noise of
        one very telling coordinate, a direction's reward slope, drown all others: top-1 0.40-0.52
        against 0.99-1.00 on HalfCheetah faults, scripts/benchmark.py.) Everything is then divided
        by the 95 % quantile of the same-task distance: its median would be too tight a unit where
        few coordinates count (a noiseless robot), for the distance then varies by a factor of 3.
        """
        if first.shape == second.shape:
            known = (torch.isfinite(first) & torch.isfinite(second)).all(-1)
            first, second = first[known], second[known]
        if first.shape != second.shape or len(first) < _FEWEST_TASKS:
            raise IndistinguishableTasksError(
                f"need two probes of at least {_FEWEST_TASKS} tasks, "
                f"got {tuple(first.shape)}, {tuple(second.shape)}"
            )
        if _told_apart(first, second) < _CLEARLY_APART:
            raise IndistinguishableTasksError(
                "probes of different training tasks are no further apart than two probes of one "
                "task, so the memory would not know one from the other (is there only one task, or "
                "does nothing that is observed or rewarded depend on the parameters?)"
            )
        weight = _reliable(first, second)
        return cls(weight / ((first - second) * weight).norm(dim=-1).quantile(0.95))

    def key(self, coefficients: Tensor) -> Tensor:
        """``[T, D] -> [T, D]``: coordinates whose Euclidean distance is that between tasks."""
        return coefficients * self.weight


def _reliable(first: Tensor, second: Tensor) -> Tensor:
    """Weight ``[D]`` of each coordinate: its reliability over the sd of repeated probes."""
    within = (first - second).square().mean(0) / 2 + 1e-12
    # The mean of two probes varies by half the within-task variance even between equal tasks.
    between = (((first + second) / 2).var(0) - within / 2).clamp(min=0)
    return between / (between + within) / within.sqrt()


def _told_apart(first: Tensor, second: Tensor) -> float:
    """How many times further apart other tasks lie than the same, on tasks not fitted to.

    Weights from half of the tasks are judged on the other half, for on their own half they find
    differences in pure noise. Upper quartiles are compared, since in a family of two tasks half of
    the "other" pairs are the same task.
    """
    half = len(first) // 2
    weight = _reliable(first[:half], second[:half])
    apart = torch.cdist(first[half:] * weight, second[half:] * weight)
    own = torch.eye(len(apart), dtype=torch.bool, device=apart.device)
    same, other = apart[own].quantile(0.75), apart[~own].quantile(0.75)
    return float(other / same) if same > 0 else 0.0
