"""How a policy is moved by a few episodes of one task: the inner rule, pure, and written once.

The rule that gives the project its name (DESIGN.md section 1):

    theta <- theta - alpha * grad L(theta) + beta * sum_i w_i (theta_i - theta)

``GradientAdapter`` is that rule, one step of it, differentiable twice; sampling, the meta-gradient
and deployment all call it. ``PpoAdapter`` is for the steps after the meta-learned one: many small,
clipped steps on the same episodes. Neither changes its inputs, and both work on T tasks at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.losses import clipped_surrogate, surrogate
from agent.memory.use import FunctionRecall
from agent.policy import Policy
from agent.types import Recall, Trajectories


@dataclass(kw_only=True, config={"extra": "forbid"})
class Pull:
    """Strength beta of the pull towards recalled policies at step n = 0, 1, 2, ... of a visit."""

    kind: Literal["none", "constant", "decay", "harmonic", "posterior", "function"] = "none"
    """``constant``, the literal rule, is biased and caps gains. ``decay`` halves beta every so many
    steps. ``harmonic`` is beta * h / (h + n), as the weight of a prior fades with evidence; so do
    ``posterior``, which pulls towards whatever of the posterior lies near, "none of these"
    included, and ``function``, which pulls what the policy does, not its parameters."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.3
    """beta of a visit's first step."""
    halving_steps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """h, of all kinds but ``constant``: steps after which beta has first halved."""

    def at(self, step: int) -> float:
        """Beta for step ``step``."""
        if self.kind == "none":
            return 0.0
        if self.kind == "constant":
            return self.beta
        if self.kind == "decay":
            return self.beta * 0.5 ** (step / self.halving_steps)
        return self.beta * self.halving_steps / (self.halving_steps + step)


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What a step must respect besides the episodes, for methods that protect what they know."""

    penalty: Callable[[Tensor], Tensor] | None = None
    """``[T, P] -> [T]``, added to the loss."""
    free: Tensor | None = None
    """``[P]`` bool: the parameters that may move; None: all."""

    def within(self, free: Tensor | None) -> Constraint:
        """The same, with only those of the parameters left to move that are ``free`` too."""
        if free is None:
            return self
        both = free if self.free is None else self.free & free
        return Constraint(self.penalty, both)

    def penalised(self, loss: Tensor, point: Tensor) -> Tensor:
        """The loss ``[T]`` with the penalty at ``point [T, P]``."""
        return loss if self.penalty is None else loss + self.penalty(point)

    def kept(self, gradient: Tensor) -> Tensor:
        """The gradient ``[T, P]``, exactly zero where nothing may move."""
        return gradient if self.free is None else gradient * self.free


class Adapter(Protocol):
    """One adaptation step: new parameters from old ones and a batch of episodes with advantages."""

    def step(
        self,
        policy: Policy,
        params: Tensor,
        episodes: Trajectories,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """``params [T, P] -> [T, P]``; ``recall`` and ``beta`` are the rule's memory term."""
        ...


def pulled(params: Tensor, moved: Tensor, recall: Recall | None, beta: float) -> Tensor:
    """Add ``beta * sum_i w_i (theta_i - theta)``, taken at ``params``, to ``moved``.

    With beta = 0, no recall, or one of functions (see ``attracted``), ``moved`` itself.
    """
    if recall is None or beta == 0.0 or isinstance(recall, FunctionRecall):
        return moved
    return moved + beta * recall.pull(params)


def attracted(
    loss: Tensor,
    policy: Policy,
    point: Tensor,
    episodes: Trajectories,
    recall: Recall | None,
    beta: float,
) -> Tensor:
    """Add ``beta * sum_i w_i KL(pi_i || pi_theta)`` to a ``loss [T]`` at ``point [T, P]``.

    Only where functions were recalled: the pull for rows of another lineage or size, which has no
    meaning in parameters.
    """
    if beta == 0.0 or not isinstance(recall, FunctionRecall):
        return loss
    return loss + beta * recall.divergence(policy, point, episodes)


@dataclasses.dataclass
class GradientAdapter:
    """One policy-gradient step with per-parameter step sizes (Finn 2017; Meta-SGD, Li 2017)."""

    rates: Tensor
    """alpha: ``[P]``, or a single number."""
    first_order: bool = False
    """Treat the inner gradient as a constant (FOMAML)."""
    free: Tensor | None = None
    """``[P]`` bool: the parameters that may move; None: all."""

    def step(
        self,
        policy: Policy,
        params: Tensor,
        episodes: Trajectories,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """The rule, once. Stays in the graph where ``params`` or ``rates`` is in one."""
        leaves = (params, *self.learned)
        differentiate = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        constraint = (constraint or Constraint()).within(self.free)
        with torch.enable_grad():
            # A view of a leaf asks for gradients even where nothing is recorded of how it was made.
            inside = differentiate and params.requires_grad
            point = params if inside else params.detach().requires_grad_(True)
            # Tasks are independent, so the rows of the sum's gradient are too.
            loss = surrogate(policy, point, episodes)
            loss = attracted(loss, policy, point, episodes, recall, beta)
            (gradient,) = torch.autograd.grad(
                constraint.penalised(loss, point).sum(),
                point,
                create_graph=differentiate and not self.first_order,
            )
        moved = params + constraint.kept(self.change(gradient, params, episodes))
        return pulled(params, moved, recall, beta)

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """What of the rule itself may be in a graph."""
        return (self.rates,)

    def change(self, gradient: Tensor, params: Tensor, episodes: Trajectories) -> Tensor:
        """Where the ``gradient [T, P]`` takes the parameters; extensions have other rules."""
        return -self.rates * gradient


@dataclass(kw_only=True, config={"extra": "forbid"})
class PpoAdapter:
    """Adaptation after the meta-learned step: PPO-clip (Schulman 2017) with Adam.

    Adam's moments start afresh at each adaptation step.
    """

    rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    """Adam's step size. At 5e-3 the steps after a good meta-learned one lose some of its gain."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the episodes."""
    minibatches: Annotated[int, Field(ge=1)] = 2
    """Parts that the episodes are split into, each one Adam step."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's clip range."""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Largest gradient norm, per task."""
    adam_betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's decay rates."""

    def step(
        self,
        policy: Policy,
        params: Tensor,
        episodes: Trajectories,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """``epochs * minibatches`` Adam steps, then the pull towards what was recalled."""
        point, mean, square = params.detach(), torch.zeros_like(params), torch.zeros_like(params)
        n, (b1, b2) = 0, self.adam_betas
        for epoch in range(self.epochs):
            for part in self._parts(episodes, epoch):
                n += 1
                gradient = self._gradient(policy, point, part, recall, beta, constraint)
                mean = b1 * mean + (1 - b1) * gradient
                square = b2 * square + (1 - b2) * gradient.square()
                direction = (mean / (1 - b1**n)) / ((square / (1 - b2**n)).sqrt() + 1e-8)
                point = point - self.rate * direction
        return pulled(params.detach(), point, recall, beta)

    def _parts(self, episodes: Trajectories, epoch: int) -> list[Trajectories]:
        """The episodes in ``minibatches`` interleaved parts, divided differently in each epoch."""
        order = torch.arange(episodes.reward.shape[1]).roll(epoch)
        size = -(-len(order) // self.minibatches)
        return [episodes.episodes(order[i : i + size]) for i in range(0, len(order), size)]

    def _gradient(
        self,
        policy: Policy,
        point: Tensor,
        part: Trajectories,
        recall: Recall | None,
        beta: float,
        constraint: Constraint | None,
    ) -> Tensor:
        constraint = constraint or Constraint()
        with torch.enable_grad():
            leaf = point.clone().requires_grad_(True)
            loss = clipped_surrogate(policy, leaf, part, self.clip)
            loss = attracted(loss, policy, leaf, part, recall, beta)
            (gradient,) = torch.autograd.grad(constraint.penalised(loss, leaf).sum(), leaf)
        gradient = constraint.kept(gradient)
        norm = gradient.norm(dim=1, keepdim=True)
        return gradient * (self.max_grad_norm / norm.clamp(min=self.max_grad_norm))
