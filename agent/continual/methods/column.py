"""A network that also reads the layers of a frozen one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agent.policy import DiagonalGaussian, GaussianMlp, Policy


class Column(Policy):
    """A network that also reads the hidden layers of a frozen one (Schwarz 2018, section 2).

    ``h_i = tanh(W_i h_{i-1} + b_i + a_i * U_i tanh(V_i k_{i-1} + c_i))`` with k the layers of the
    frozen network. Parameters: the network's own P, then V, c, U, a of each layer but the first.
    """

    def __init__(self, network: GaussianMlp, frozen: Tensor, units: int) -> None:
        self.network, self._frozen = network, frozen
        sizes = [weight.shape[1:] for weight, _ in network.unflatten(frozen)[0][1:]]
        self._shapes = [((i, units), (1, units), (units, o), (1, o)) for i, o in sizes]

    def widened(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """The network ``params [1, P]`` with connections of no effect: a = 0, so V and U wait."""
        parts = [params]
        for v, c, u, a in self._shapes:
            drawn_v = torch.randn(v, generator=generator) * v[0] ** -0.5
            drawn_u = torch.randn(u, generator=generator) * u[0] ** -0.5
            for part in (drawn_v, torch.zeros(c), drawn_u, torch.zeros(a)):
                parts.append(part.reshape(1, -1).to(params))
        return torch.cat(parts, 1)

    def __call__(self, params: Tensor, obs: Tensor) -> DiagonalGaussian:
        """The action distribution: ``params [1, Q]``, raw observations ``[1, ..., O]``."""
        size = self.network.num_params
        layers, log_std = self.network.unflatten(params[:, :size])
        known, _ = self.network.unflatten(self._frozen)
        lateral = self._lateral(params[:, size:])
        x = k = self.network.normalizer(obs).flatten(1, -2)
        for n, (weight, bias) in enumerate(layers):
            before = torch.baddbmm(bias, x, weight)
            if n > 0:
                v, c, u, a = lateral[n - 1]
                before = before + a * (torch.tanh(torch.baddbmm(c, k, v)) @ u)
            x = torch.tanh(before) if n + 1 < len(layers) else before
            k = torch.tanh(torch.baddbmm(known[n][1], k, known[n][0]))
        mean = x.unflatten(1, obs.shape[1:-1])
        log_std = log_std.clamp(*self.network.LOG_STD_RANGE)
        return DiagonalGaussian(mean, log_std.reshape(1, *[1] * (obs.ndim - 2), -1))

    def _lateral(self, params: Tensor) -> list[list[Tensor]]:
        """V, c, U and a of each layer but the first, ``[1, in, out]`` each."""
        shapes = [shape for layer in self._shapes for shape in layer]
        flat = params.split([math.prod(shape) for shape in shapes], 1) if shapes else []
        shaped = [part.unflatten(1, shape) for part, shape in zip(flat, shapes, strict=True)]
        return [shaped[i : i + 4] for i in range(0, len(shaped), 4)]
