"""A step that improves a loss as far as a KL allows: TRPO (Schulman 2015), for any functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""From ``[P]`` to a scalar."""
_TOLERANCE = 1e-10


@dataclass(kw_only=True, config={"extra": "forbid"})
class TrustRegion:
    """How far a step may go and how it is found. Defaults: Finn 2017's code."""

    delta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    """Largest mean KL of a step, in nats."""
    iterations: Annotated[int, Field(ge=1)] = 10
    """Of conjugate gradient."""
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5
    """Added to the diagonal of the KL's Hessian."""
    shrink: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Factor by which a step that is refused is shortened."""
    tries: Annotated[int, Field(ge=1)] = 15
    """Steps tried before staying put."""


class Stepped(NamedTuple):
    """Where a step led."""

    point: Tensor
    """``[P]``."""
    loss: float
    """There."""
    divergence: float
    """KL from where it began, in nats."""
    tries: int
    """Steps tried; 0 where there was nothing to gain or none was accepted."""


def conjugate_gradient(product: Function, target: Tensor, iterations: int) -> Tensor:
    """X with ``product(x) = target [P]`` for a positive definite ``product`` (Hestenes 1952)."""
    x, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual @ residual
    for _ in range(iterations):
        if float(square) < _TOLERANCE:
            break
        image = product(direction)
        length = square / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        before, square = square, residual @ residual
        direction = residual + square / before * direction
    return x


def trust_region_step(
    point: Tensor, loss: Function, divergence: Function, config: TrustRegion, mean: Function
) -> Stepped:
    """The natural-gradient step from ``point [P]`` that improves ``loss`` within the region.

    Args:
        point: Where to begin; ``divergence`` has its minimum, 0, there.
        loss: What to make smaller; twice differentiable, as is ``divergence``.
        divergence: KL from the policies at ``point``.
        config: The region.
        mean: Mean over processes of any tensor; the identity for one process.
    """
    leaf = point.detach().requires_grad_(True)
    start = loss(leaf)
    gradient = mean(torch.autograd.grad(start, leaf)[0])
    before = float(mean(start.detach()))
    (slope,) = torch.autograd.grad(divergence(leaf), leaf, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(slope @ vector, leaf, retain_graph=True)
        return mean(image) + config.damping * vector

    direction = conjugate_gradient(product, gradient, config.iterations)
    curvature = direction @ product(direction)
    if not bool(torch.isfinite(curvature)):
        raise FloatingPointError(
            "the meta-gradient is not finite; a smaller learner.inner_rate may help"
        )
    if float(curvature) <= 0:
        return Stepped(point.detach(), before, 0.0, 0)
    full = torch.sqrt(2 * config.delta / curvature) * direction
    for n in range(config.tries):
        tried = (point - config.shrink**n * full).detach()
        with torch.no_grad():
            after, moved = float(mean(loss(tried))), float(mean(divergence(tried)))
        if after < before and moved <= config.delta:
            return Stepped(tried, after, moved, n + 1)
    return Stepped(point.detach(), before, 0.0, 0)
