"""A latent belief: every step is a Gaussian factor, and the product of all says which task it is.

The decoder predicts reward and change, by functions of a step that all tasks share and a linear
head that is the latent's. It does so of another probe of the same task than the
one that was encoded, so that what a probe happened to visit is of no use to it. The loss is the
negative evidence lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from agent.memory.key.learned import LearnedKey
from agent.memory.key.networks import linear, mlp
from agent.memory.key.steps import Steps

# So that at first a hundred steps together are as precise as the prior.
_LITTLE = -4.6
_PAIRS_AT_ONCE = 2**18


class _Belief(nn.Module):
    def __init__(
        self, obs: int, action: int, width: int, latent: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.step = mlp([2 * obs + action + 1, width, width, 2 * latent], generator)
        self.reward = mlp([2 * obs + action, width, width], generator)
        self.change = mlp([obs + action, width, width], generator)
        self.heads = linear(latent, width * (1 + obs), generator)
        self.log_var = nn.Parameter(torch.zeros(1 + obs))


@dataclass(kw_only=True, config={"extra": "forbid"})
class Vae(LearnedKey):
    """The sums are the natural parameters of the factors' product; the prior is N(0, 1).

    The score is the Bayes factor of "one latent" to "two": the normaliser of both products
    together less those of each alone, in closed form.
    """

    KIND = "vae"

    latent: Annotated[int, Field(ge=1)] = 32
    """Numbers that a task is described by."""
    beta: Annotated[float, Field(ge=0)] = 0.25
    """Weight of the divergence from the prior; 1 is the evidence lower bound itself."""

    def network(self, obs: int, action: int, generator: torch.Generator) -> nn.Module:
        """See ``LearnedKey``."""
        return _Belief(obs, action, self.width, self.latent, generator)

    def summed(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Precision times mean, then precision, ``2 latent``, added up over the steps."""
        mean, raw = self._network.step(inputs).chunk(2, -1)
        precision = functional.softplus(raw + _LITTLE) * mask[..., None]
        return torch.cat([(precision * mean).sum(-2), precision.sum(-2)], -1)

    def view(self, sums: Tensor) -> Tensor:
        """Log-normaliser of the product with the prior, ``[T, 1]``."""
        return _log_normaliser(self._trusted(sums))[..., None]

    def _trusted(self, sums: Tensor) -> Tensor:
        """Natural parameters as precise as another probe of the same task confirms."""
        told = 1 + self._apart * sums[..., self.latent :]
        return sums / torch.cat([told, told], -1)

    def trained(self, steps: Steps, others: Steps) -> None:
        """Learn by how much more two probes' beliefs differ than they claim, per latent."""
        sums = [self.summed(i, m) for i, m in zip(others.inputs(), others.mask, strict=True)]
        (one, sure), (two, certain) = (s.double().chunk(2, -1) for s in sums[:2])
        claimed = 1 / sure + 1 / certain
        beyond = (one / sure - two / certain).square() - claimed
        trust = claimed.square().reciprocal()  # where nothing is claimed, nothing is learned
        self._apart = ((beyond * trust).sum(0) / trust.sum(0) / 2).clamp(min=0)

    @property
    def sizes(self) -> tuple[int, int]:
        """Log-normaliser and natural parameters."""
        return 1, 2 * self.latent

    def loss(self, first: Steps, second: Steps, same: Tensor, generator: torch.Generator) -> Tensor:
        """Negative evidence lower bound of the second probe per step, encoded from the first."""
        shift, precision = self.summed(first.inputs(), first.mask).chunk(2, -1)
        precision = precision + 1
        mean = shift / precision
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        latent = mean + noise * precision.rsqrt()
        error = second.surprise - self._decoded(latent, second)
        log_var = self._network.log_var
        per_step = 0.5 * (error.square() * torch.exp(-log_var) + log_var).sum(-1)
        fit = (per_step * second.mask).sum() / second.mask.sum()
        divergence = 0.5 * (1 / precision + mean.square() - 1 + precision.log()).sum(-1).mean()
        return fit + self.beta * divergence / self._probe_steps

    def _decoded(self, latent: Tensor, steps: Steps) -> Tensor:
        """Surprises ``[T, n, 1 + O]`` that are expected with each task's latent ``[T, latent]``."""
        net, known = self._network, torch.cat([steps.obs, steps.action], -1)
        heads = net.heads(latent).unflatten(-1, (self.width, -1)) / math.sqrt(self.width)
        reward = net.reward(torch.cat([known, steps.change], -1)) @ heads[..., :1]
        return torch.cat([reward, net.change(known) @ heads[..., 1:]], -1)

    def terms(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``LearnedKey``."""
        asked, known = self._trusted(query[:, 1:]), self._trusted(rows[:, 1:])
        at_once = max(1, _PAIRS_AT_ONCE // max(len(rows), 1))
        together = torch.cat([_log_normaliser(a[:, None] + known) for a in asked.split(at_once)])
        return (together - query[:, :1] - rows[:, 0])[..., None]

    def _fitted(self) -> dict[str, Tensor]:
        return super()._fitted() | {"apart": self._apart}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        super()._restore(state)
        self._apart = state["apart"]


def _log_normaliser(natural: Tensor) -> Tensor:
    """``log E exp(b z - c z^2 / 2)`` over z of N(0, 1), of ``natural [..., (b, c)]``, summed."""
    shift, precision = natural.chunk(2, -1)
    return 0.5 * (shift.square() / (1 + precision) - torch.log1p(precision)).sum(-1)
