"""The plainest key: means and spreads of what was seen. What better keys are compared with."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.key.fisher import WeightedKey
from agent.memory.key.summed import Seen
from agent.types import Trajectories


@dataclass(kw_only=True, config={"extra": "forbid"})
class Stats(WeightedKey):
    """Mean and standard deviation of s, ds, a and the reward, weighed by reliability."""

    KIND = "stats"

    def sums(self, episodes: Trajectories) -> Tensor:
        """Steps, sums and sums of squares, ``1 + 2 (2 O + A + 1)``."""
        seen = Seen.of(episodes, self.normalizer)
        valid = seen.mask[..., None] > 0
        values = torch.cat([seen.obs, seen.change, seen.action, seen.reward], -1)
        values = torch.where(valid, values, 0.0)
        return torch.cat([seen.mask.sum(1)[:, None], values.sum(1), values.square().sum(1)], -1)

    def coordinates(self, sums: Tensor) -> Tensor:
        """Means, then standard deviations."""
        steps, (total, squares) = sums[:, :1], sums[:, 1:].chunk(2, -1)
        mean = total / steps
        return torch.cat([mean, (squares / steps - mean.square()).clamp(min=0).sqrt()], -1)
