"""Learned features for the likelihood key: what a linear model of any of the tasks needs.

Hand-made features and a few more from a network. They are trained as they will be used: a ridge
regression on some steps of one probe of a task must predict the steps of another probe of it, for
all training tasks at once; its error is differentiated through the regression's closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.memory.key.base import NotFittedError, known
from agent.memory.key.handmade import Features, HandMade
from agent.memory.key.likelihood import Likelihood
from agent.memory.key.networks import load_named, mlp, named, train
from agent.memory.key.steps import Steps, StepScaler
from agent.memory.key.summed import Seen, stack
from agent.policy import ObsNormalizer
from agent.types import Trajectories


class _Networks(nn.Module):
    def __init__(
        self, obs: int, action: int, width: int, learned: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.reward = mlp([2 * obs + action, width, width, learned], generator)
        self.change = mlp([obs + action, width, width, learned], generator)
        self.log_ridge = nn.Parameter(torch.zeros(2))


@dataclass(kw_only=True, config={"extra": "forbid"})
class LearnedFeatures:
    """``Features`` of the likelihood key; see the module."""

    learned: Annotated[int, Field(ge=1)] = 16
    """Learned features of each head, beside the hand-made ones."""
    width: Annotated[int, Field(ge=1)] = 64
    """Of the hidden layers."""
    updates: Annotated[int, Field(ge=1)] = 300
    """Gradient steps."""
    steps: Annotated[int, Field(ge=2)] = 60
    """Steps of each task that are fitted to, and as many that are predicted, in one of them."""
    rate: Annotated[float, Field(gt=0)] = 3e-3
    """Highest learning rate."""
    seed: int = 0
    """Of the initial weights and of all that is drawn in training."""

    _networks = None

    def fit(self, probes: Sequence[Trajectories], normalizer: ObsNormalizer) -> None:
        """Train on probes of the same tasks; a single probe is used for both purposes.

        Raises:
            ValueError: Every task diverged in some probe.
        """
        told = torch.stack([known(p) for p in probes]).all(0)
        if not bool(told.any()):
            raise ValueError("no task has steps in all probes: there is nothing to learn from")
        seen = stack([Seen.of(p, normalizer) for p in probes])
        seen = Seen(**{name: column[:, told] for name, column in vars(seen).items()})
        steps = StepScaler.fit(seen)(seen)
        generator = torch.Generator().manual_seed(self.seed)
        self._sizes = torch.tensor([seen.obs.shape[-1], seen.action.shape[-1]])
        self._networks = self._new(self._sizes, generator).to(steps.mask.device)

        def loss() -> Tensor:
            fitted, other = (torch.randperm(len(probes), generator=generator)[[0, -1]]).tolist()
            return self._loss(
                steps.drawn(fitted, self.steps, generator),
                steps.drawn(other, self.steps, generator),
            )

        with torch.enable_grad():
            train(self._networks, loss, self.updates, self.rate)

    def _loss(self, fitted: Steps, other: Steps) -> Tensor:
        """Mean log of each output's squared error on steps that were not fitted to."""
        assert self._networks is not None
        errors = []
        for head, log_ridge in zip(("reward", "change"), self._networks.log_ridge, strict=True):
            x, y = self._columns(fitted, head)
            gram = x.mT @ (x * fitted.mask[..., None])
            ridge = log_ridge.exp() * torch.eye(gram.shape[-1], device=gram.device)
            weight = torch.cholesky_solve(x.mT @ y, torch.linalg.cholesky(gram + ridge))
            new, target = self._columns(other, head)
            error = (target - new @ weight).square() * other.mask[..., None]
            errors.append(error.sum((0, 1)) / other.mask.sum())
        # The log lets outputs count alike, however much of each is noise.
        return sum(torch.log(e + 1e-6).mean() for e in errors)  # pyright: ignore[reportReturnType]

    def _columns(self, steps: Steps, head: str) -> tuple[Tensor, Tensor]:
        if head == "reward":
            return self.reward(steps.obs, steps.action, steps.change), steps.surprise[..., :1]
        return self.dynamics(steps.obs, steps.action), steps.surprise[..., 1:]

    def reward(self, obs: Tensor, action: Tensor, change: Tensor) -> Tensor:
        """See ``Features``: the hand-made ones, then the learned ones."""
        plain = HandMade().reward(obs, action, change)
        return self._with(plain, "reward", torch.cat([obs, change, action], -1))

    def dynamics(self, obs: Tensor, action: Tensor) -> Tensor:
        """See ``Features``: the hand-made ones, then the learned ones."""
        plain = HandMade().dynamics(obs, action)
        return self._with(plain, "change", torch.cat([obs, action], -1))

    def _with(self, plain: Tensor, head: str, inputs: Tensor) -> Tensor:
        if self._networks is None:
            raise NotFittedError("learned features: call fit or load_state_dict first")
        # Bounded, so that no far-off step has more leverage than the hand-made features give it.
        more = torch.tanh(getattr(self._networks, head)(inputs.float()))
        return torch.cat([plain, more.to(plain.dtype)], -1)

    def state_dict(self) -> dict[str, Tensor]:
        """See ``Features``."""
        if self._networks is None:
            raise NotFittedError("learned features: call fit or load_state_dict first")
        return named("networks", self._networks) | {"sizes": self._sizes}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See ``Features``."""
        self._sizes = state["sizes"]
        self._networks = self._new(self._sizes, torch.Generator().manual_seed(0))
        load_named("networks", self._networks, state)

    def _new(self, sizes: Tensor, generator: torch.Generator) -> _Networks:
        obs, action = sizes.tolist()
        return _Networks(obs, action, self.width, self.learned, generator)


@dataclass(kw_only=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class LearnedLikelihood(Likelihood):
    """The likelihood key on learned features: slower to fit, and tells milder variations apart."""

    features: Features = field(default_factory=LearnedFeatures)
    """What reward and dynamics are linear in."""
