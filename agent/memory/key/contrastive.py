"""A set encoder: probes of one task are close, of others apart (matching networks, InfoNCE).

Every step goes through one network, the mean over the steps through a linear layer and onto the
unit sphere. No order of steps or episodes makes a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from agent.memory.key.learned import LearnedKey
from agent.memory.key.networks import linear, mlp
from agent.memory.key.steps import Steps


class _Encoder(nn.Module):
    def __init__(self, inputs: int, width: int, latent: int, generator: torch.Generator) -> None:
        super().__init__()
        self.step = mlp([inputs, width, width], generator)
        self.pooled = linear(width, latent, generator)
        self.log_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, mean: Tensor) -> Tensor:
        """Points on the sphere ``[..., latent]``, from means over steps ``[..., width]``."""
        return functional.normalize(self.pooled(mean), dim=-1)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Contrastive(LearnedKey):
    """The view is a point on a sphere; the score says how much nearer than other tasks it is.

    What InfoNCE learns is a pointwise mutual information: the scaled cosine less its log-mean-exp
    over the tasks trained on, which stand for "a new task". The score weighs these two terms.
    """

    KIND = "contrastive"

    def network(self, obs: int, action: int, generator: torch.Generator) -> nn.Module:
        """See ``LearnedKey``."""
        return _Encoder(2 * obs + action + 1, self.width, self.latent, generator)

    def summed(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Sums of the steps' codes, and their number: ``width + 1``."""
        codes = self._network.step(inputs) * mask[..., None]
        return torch.cat([codes.sum(-2), mask.sum(-1, keepdim=True)], -1)

    def view(self, sums: Tensor) -> Tensor:
        """Point on the sphere."""
        mean = sums[..., :-1] / sums[..., -1:]
        return self._network(mean.to(self._network.log_scale.dtype))

    @property
    def sizes(self) -> tuple[int, int]:
        """Point and sums."""
        return self.latent, self.width + 1

    def loss(self, first: Steps, second: Steps, same: Tensor, generator: torch.Generator) -> Tensor:
        """InfoNCE both ways; any probe of the same task is right."""
        points = [self.view(self.summed(s.inputs(), s.mask)) for s in (first, second)]
        alike = self._network.log_scale.exp() * points[0] @ points[1].mT
        right = [
            way.log_softmax(-1).masked_fill(~same, -torch.inf).logsumexp(-1)
            for way in (alike, alike.mT)
        ]
        return -torch.stack(right).mean()

    def trained(self, steps: Steps, others: Steps) -> None:
        """Keep where the tasks trained on lie."""
        sums = [self.summed(i, m) for i, m in zip(steps.inputs(), steps.mask, strict=True)]
        self._others = functional.normalize(torch.stack([self.view(s) for s in sums]).mean(0))

    def terms(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``LearnedKey``."""
        query, rows = query[:, : self.latent], rows[:, : self.latent]
        scale = self._network.log_scale.exp()
        usual = (scale * query @ self._others.mT).logsumexp(-1) - math.log(len(self._others))
        alike = scale * query @ rows.mT
        return torch.stack([alike, -usual[:, None].expand_as(alike)], -1)

    def _fitted(self) -> dict[str, Tensor]:
        return super()._fitted() | {"others": self._others}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        super()._restore(state)
        self._others = state["others"]
