"""A network that composes what frozen ones would do, by two heads of attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agent.policy import DiagonalGaussian, GaussianMlp, Policy

Module = tuple[Tensor, tuple[int, ...]]
"""Parameters ``[1, Q]``, and the modules it composes, by number, each lower than its own."""


def attention(query: Tensor, keys: Tensor) -> Tensor:
    """Weights ``[..., k]``, which sum to one, of ``keys [..., k, d]`` for ``query [..., d]``."""
    scores = (keys @ query[..., None]).squeeze(-1)
    return torch.softmax(scores / math.sqrt(query.shape[-1]), -1)


def places(count: int, size: int) -> Tensor:
    """Sines and cosines ``[count, size]`` that tell the places of modules apart (Vaswani 2017)."""
    place = torch.arange(count)[:, None]
    column = torch.arange(size)
    angle = place / 10_000 ** ((column - column % 2) / size)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


class Composed(Policy):
    """A module on top of frozen ones (Malagon 2024, section 4).

    The output head attends to the actions of the modules below and gives a tentative action; the
    input head attends to those and to the tentative one. A network that reads the observation and
    what the input head found gives the internal action. The module's action is the sum, the
    tentative one times a gain. Parameters: the network's P, the gain, the network's weights for the
    input head's result, and the heads' projections.
    """

    def __init__(
        self, network: GaussianMlp, modules: Sequence[Module], sees: Sequence[int], width: int
    ) -> None:
        self.network, self._modules, self._sees = network, list(modules), tuple(sees)
        o, a = network.obs_size, network.action_size
        projections = [shape for i in (o, a, o, a, a) for shape in ((i, width), (1, width))]
        self._shapes = [(1, a), (width, network.segments[1]), *projections]
        needed = set(self._sees)
        for number in reversed(range(len(self._modules))):
            needed |= set(self._modules[number][1]) if number in needed else set()
        self._below = sorted(needed)

    def widened(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """The network ``params [1, P]`` with heads of no effect yet: only projections are drawn."""
        parts = [params]
        for n, shape in enumerate(self._shapes):
            drawn = torch.randn(shape, generator=generator) * shape[0] ** -0.5
            part = drawn if n >= 2 and shape[0] > 1 else torch.zeros(shape)
            parts.append(part.reshape(1, -1).to(params))
        return torch.cat(parts, 1)

    def __call__(self, params: Tensor, obs: Tensor) -> DiagonalGaussian:
        """The action distribution: ``params [1, Q]``, raw observations ``[1, ..., O]``."""
        x = self.network.normalizer(obs).flatten(1, -2)
        with torch.no_grad():
            below: dict[int, Tensor] = {}
            for number in self._below:
                frozen, sees = self._modules[number]
                below[number] = self._mean(frozen, x, [below[i] for i in sees])
        mean = self._mean(params, x, [below[i] for i in self._sees])
        _, log_std = self.network.unflatten(params[:, : self.network.num_params])
        log_std = log_std.clamp(*self.network.LOG_STD_RANGE)
        shape = 1, *[1] * (obs.ndim - 2), -1
        return DiagonalGaussian(mean.unflatten(1, obs.shape[1:-1]), log_std.reshape(shape))

    def _mean(self, params: Tensor, x: Tensor, below: Sequence[Tensor]) -> Tensor:
        """A module's action ``[1, N, A]``, from those ``[1, N, A]`` of the modules it composes."""
        size = self.network.num_params
        layers, _ = self.network.unflatten(params[:, :size])
        (weight, bias), *rest = layers
        first = torch.baddbmm(bias, x, weight)
        tentative = 0.0
        if below:
            gain, reader, *heads = self._shaped(params[:, size:])
            found, action = composed(x, torch.stack(list(below), 2), heads)
            first, tentative = first + found @ reader, gain * action
        for weight, bias in rest:
            first = torch.baddbmm(bias, torch.tanh(first), weight)
        return first + tentative

    def _shaped(self, params: Tensor) -> list[Tensor]:
        flat = params.split([math.prod(shape) for shape in self._shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(flat, self._shapes, strict=True)]


def composed(x: Tensor, below: Tensor, heads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the input head found ``[1, N, d]``, and the output head's action ``[1, N, A]``.

    ``x [1, N, O]``, ``below [1, N, k, A]``; ``heads`` are weights ``[1, in, d]`` and biases of the
    output head's query and keys, then of the input head's query, keys and values.
    """
    query, keys, other, others, values = zip(heads[::2], heads[1::2], strict=True)
    where = places(below.shape[2] + 1, below.shape[3]).to(below)
    weights = attention(_linear(x, query), _linear(below + where[:-1], keys))
    action = (weights[..., None] * below).sum(2)
    every = torch.cat([below, action[:, :, None]], 2)
    weights = attention(_linear(x, other), _linear(every + where, others))
    return (weights[..., None] * _linear(every, values)).sum(2), action


def _linear(x: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = (part[0] for part in layer)
    return x @ weight + bias
