"""Meta-LSTM: the rule that adapts is itself learned, as an LSTM's cell (Ravi & Larochelle 2017).

An LSTM's cell, ``c <- f * c + i * c~``, is a gradient step where the cell is the parameters and the
candidate the negative gradient: ``theta <- f * theta - i * grad``. Its gates are one small network
for all parameters, which sees of each its gradient, the task's loss and its value.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Adapter, GradientAdapter
from agent.learners.maml import Maml
from agent.losses import mean_over_steps
from agent.policy import GaussianMlp
from agent.types import Trajectories

_P = 10.0  # of the preprocessing: magnitudes below exp(-p) are not told apart by their logarithm
_SEEN = 6  # gradient and loss, two numbers each; value; step
_FASTEST = math.log(20.0)  # the input gate multiplies the rate by 1/20 to 20
_MOST_FORGOTTEN = 0.1  # share of a parameter that a step may forget or add


def preprocessed(x: Tensor) -> Tensor:
    """Size and sign of ``x`` on a scale for networks, ``[..., 2]`` (Andrychowicz 2016, app. A).

    ``(log|x| / p, sgn x)`` where ``|x| >= exp(-p)``, else ``(-1, exp(p) x)``.
    """
    large = x.abs() >= math.exp(-_P)
    size = torch.where(large, x.abs().clamp(min=math.exp(-_P)).log() / _P, -torch.ones_like(x))
    return torch.stack([size, torch.where(large, x.sign(), math.exp(_P) * x)], -1)


@dataclasses.dataclass(kw_only=True)
class LstmAdapter(GradientAdapter):
    """One step of the rule; pure, since the step's number stands in for the gates before.

    As in the paper, what the gates see counts as given: nothing is differentiated through it.
    """

    weights: Tensor
    """Of the gates' network, ``[R]``; ``rates`` are the input gate at initialisation."""
    units: int
    """Its hidden units."""
    done: float
    """Share of the meta-learned steps that were made before this one."""

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """The rates and the gates."""
        return (self.rates, self.weights)

    def change(self, gradient: Tensor, params: Tensor, episodes: Trajectories) -> Tensor:
        """``(f - 1) * theta - i * grad``."""
        forget, taken = self.gates(self.seen(gradient, cost(episodes), params))
        return (forget - 1) * params - taken * gradient

    def seen(self, gradient: Tensor, loss: Tensor, params: Tensor) -> Tensor:
        """What the gates see, ``[T, P, 6]``, of ``gradient [T, P]``, ``loss [T]`` and values."""
        gradient, params = gradient.detach(), params.detach()
        task = preprocessed(loss)[:, None].expand(*gradient.shape, 2)
        rest = torch.stack([params, torch.full_like(params, self.done)], -1)
        return torch.cat([preprocessed(gradient), task, rest], -1)

    def gates(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Forget and input gate ``[T, P]``; 1 and ``rates`` where the last layer's weights are 0.

        Sigmoids would let neither be exactly so without being flat there.
        """
        sizes = [_SEEN * self.units, self.units, self.units * 2, 2]
        first, bias, last, end = self.weights.split(sizes)
        hidden = torch.tanh(seen @ first.view(_SEEN, self.units) + bias)
        forget, taken = (hidden @ last.view(self.units, 2) + end).unbind(-1)
        forget = 1 + _MOST_FORGOTTEN * torch.tanh(forget)
        return forget, self.rates * torch.exp(_FASTEST * torch.tanh(taken / _FASTEST))


def cost(episodes: Trajectories) -> Tensor:
    """What adaptation makes smaller: minus the mean reward of a step, ``[T]``.

    The surrogate, whose gradient is followed, has the value 0 wherever it begins.
    """
    return -mean_over_steps(episodes.reward, episodes.mask)


@dataclass(kw_only=True, config={"extra": "forbid"})
class MetaLstm(Maml):
    """Maml with a learned rule in the place of gradient descent, which it begins as."""

    learn_rates: bool = False
    """Learn alpha for each parameter besides."""
    units: Annotated[int, Field(ge=1)] = 10
    """Hidden units of the gates' network."""

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the initial policy, and a rule that equals gradient descent."""
        first = _SEEN * self.units
        weights = torch.zeros(first + 3 * self.units + 2, device=policy.device)
        self.gate_weights = weights.requires_grad_(True)
        super().setup(policy, generator)
        drawn = torch.randn(first, generator=generator) / math.sqrt(_SEEN)
        with torch.no_grad():
            self.gate_weights[:first] = drawn.to(policy.device)

    @property
    def leaves(self) -> list[Tensor]:
        """What the outer step moves: the initialisation, any rates, the rule."""
        return [*super().leaves, *([self.gate_weights] if self.inner_steps else [])]

    def rule(self, n: int) -> Adapter:
        """The learned rule at step ``n``."""
        done = n / max(self.inner_steps, 1)
        return LstmAdapter(
            self.rates_at(n),
            self.first_order,
            self.free,
            weights=self.gate_weights,
            units=self.units,
            done=done,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """As Maml's, and the rule."""
        return super().state_dict() | {"gate_weights": self.gate_weights.detach()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        with torch.no_grad():
            self.gate_weights.copy_(state["gate_weights"])
        super().load_state_dict(state)
