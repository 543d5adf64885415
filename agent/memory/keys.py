"""Which task is this: a small linear model of it, fitted to probe episodes of one fixed policy.

Ridge regression of the reward on (s, s'-s, a, |a|^2, 1) and of the one-step change s'-s on
(s, a, 1); the coefficients are the key. Each coordinate is weighed by how well it tells tasks apart
(its reliability), and the whole scaled so that two probes of the same task lie about 1 apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent.policy import ObsNormalizer
from agent.types import Trajectories

_RIDGE = 1e-2
# How much further apart than two probes of one task those of different tasks must lie. Fitted to
# pure noise from 40 tasks the metric gives 1.05-1.26, from 100 tasks 1.01-1.15 (20 draws each).
_CLEARLY_APART = 1.3


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
    """Which coordinates matter: ``key = coefficients * weight``, same-task distance about 1."""

    weight: Tensor
    """``[D]``, float64."""

    @classmethod
    def fit(cls, first: Tensor, second: Tensor) -> KeyMetric:
        """From two independent probes ``[M, D]`` each of the same M training tasks.

        A coordinate weighs reliability / sd_within, with reliability = between / (between +
        within): what a task cannot be told by is left out, and what is left counts in units of its
        own noise. (The unbounded Fisher weight sqrt(between / within) / sd_within lets the noise of
        one very telling coordinate, a direction's reward slope, drown all others: top-1 0.51-0.57
        against 1.00 on HalfCheetah faults, scripts/benchmark.py.) Everything is then divided by the
        median same-task distance.
        """
        if first.shape == second.shape:
            known = (torch.isfinite(first) & torch.isfinite(second)).all(-1)
            first, second = first[known], second[known]
        if first.shape != second.shape or len(first) < 3:
            raise IndistinguishableTasksError(
                "need two probes of at least 3 tasks, "
                f"got {tuple(first.shape)}, {tuple(second.shape)}"
            )
        within = (first - second).square().mean(0) / 2 + 1e-12
        # The mean of two probes varies by half the within-task variance even between equal tasks.
        between = (((first + second) / 2).var(0) - within / 2).clamp(min=0)
        weight = between / (between + within) / within.sqrt()
        key_1, key_2 = first * weight, second * weight
        apart = torch.cdist(key_1, key_2)
        same = apart.diagonal().median()
        different = apart[~torch.eye(len(apart), dtype=torch.bool, device=apart.device)].median()
        if not float(different) > _CLEARLY_APART * float(same) > 0:
            raise IndistinguishableTasksError(
                "probes of different training tasks are no further apart than two probes of one "
                "task, so the memory would not know one from the other (is there only one task, or "
                "does nothing that is observed or rewarded depend on the parameters?)"
            )
        return cls(weight / same)

    def key(self, coefficients: Tensor) -> Tensor:
        """``[T, D] -> [T, D]``: coordinates whose Euclidean distance is that between tasks."""
        return coefficients * self.weight
