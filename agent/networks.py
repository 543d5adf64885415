"""Layers whose every random number comes from a generator given, and from nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer drawn from ``generator``; torch's own would draw from the global one."""
    with torch.device("meta"):  # where nothing is drawn
        layer = nn.Linear(inputs, outputs)
    weight = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(outputs))
    return layer


def mlp(
    sizes: list[int],
    generator: torch.Generator,
    activation: Callable[[], nn.Module] = nn.Tanh,
    gain: float = 1.0,
) -> nn.Sequential:
    """Layers of the widths ``sizes[1:-1]`` and a linear one, scaled by ``gain``, to the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [linear(inputs, outputs, generator), activation()]
    last = layers[-2]
    with torch.no_grad():
        last.get_parameter("weight").mul_(gain)
    return nn.Sequential(*layers[:-1])


def gru(inputs: int, hidden: int, generator: torch.Generator) -> nn.GRU:
    """A GRU with orthogonal recurrent weights and zero biases."""
    with torch.device("meta"):
        layer = nn.GRU(inputs, hidden, batch_first=True)
    layer = layer.to_empty(device="cpu")
    _draw(layer, inputs, hidden, generator)
    return layer


class Lstm(nn.Module):
    """An LSTM whose state ``[..., 2 hidden]`` is its output and then its cell, at every step.

    torch's own layer gives the cell after the last step alone, and episodes end at different ones.
    Drawn as ``gru`` is, with forget gates biased to remember (by 1; Jozefowicz 2015).
    """

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        with torch.device("meta"):
            cell = nn.LSTMCell(inputs, hidden)
        self.cell = cell.to_empty(device="cpu")
        _draw(self.cell, inputs, hidden, generator)
        with torch.no_grad():
            self.cell.bias_ih[hidden : 2 * hidden] = 1.0

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[N, H, 2 hidden]`` along inputs ``[N, H, inputs]`` from ``[1, N, 2 hidden]``."""
        output, cell = state[0].chunk(2, -1)
        states = []
        for step in x.unbind(1):
            output, cell = self.cell(step, (output, cell))
            states.append(torch.cat([output, cell], -1))
        return torch.stack(states, 1), states[-1][None]


def _draw(layer: nn.Module, inputs: int, hidden: int, generator: torch.Generator) -> None:
    """Orthogonal recurrent weights per gate, input weights of variance 1 / inputs, no biases."""
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.startswith("weight_ih"):
                value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(inputs))
            elif name.startswith("weight_hh"):
                for gate in value.split(hidden):
                    nn.init.orthogonal_(gate, generator=generator)
            else:
                value.zero_()
