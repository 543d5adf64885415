"""Small networks whose every random number comes from a generator given, and from nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn


class Gated(nn.Module):
    """A layer of products ``(W x + b) * tanh(V x + c)``: one such layer sees second moments."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.both = linear(inputs, 2 * outputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs] -> [..., outputs]``."""
        value, gate = self.both(x).chunk(2, -1)
        return value * torch.tanh(gate)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer drawn from ``generator``; torch's own would draw from the global one."""
    with torch.device("meta"):  # where nothing is drawn
        layer = nn.Linear(inputs, outputs)
    weight = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(outputs))
    return layer


def mlp(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    """Gated layers of the widths ``sizes[1:-1]`` and a linear one to ``sizes[-1]``."""
    layers: list[nn.Module] = [Gated(i, o, generator) for i, o in pairwise(sizes[:-1])]
    return nn.Sequential(*layers, linear(sizes[-2], sizes[-1], generator))


def train(
    module: nn.Module,
    loss: Callable[[], Tensor],
    updates: int,
    rate: float,
    weight_decay: float = 1e-2,
) -> float:
    """Adam on ``loss()`` with a rate that falls to zero along a half cosine; gives the last loss.

    Raises:
        FloatingPointError: The loss was not finite.
    """
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=weight_decay)
    value = torch.tensor(torch.nan)
    for update in range(updates):
        warm = min(1.0, (update + 1) / 20)
        falling = 0.5 * (1 + math.cos(math.pi * update / updates))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * falling
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        if not bool(torch.isfinite(value)):
            raise FloatingPointError(
                f"the loss of update {update} is {value.item()}: probes with extreme values?"
            )
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return float(value.detach())


def named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module, each under its name after ``prefix``."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def load_named(prefix: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the tensors under ``prefix`` back into a module of the same shape, on their device."""
    start = f"{prefix}."
    own = {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}
    if own:
        module.to(next(iter(own.values())).device)
    module.load_state_dict(own)
    module.requires_grad_(False)
