"""Policies as sizes and functions of flat parameters ``[T, P]``, a row per task; no modules."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.distributed import moments

if TYPE_CHECKING:
    from agent.types import Trajectories


@dataclasses.dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal actions: ``mean [..., A]`` and ``log_std``, broadcastable to it."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from standard normal ``noise [..., A]``."""
        return self.mean + noise * self.log_std.exp()

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of ``action [..., A]``, summed over A."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        per_dimension = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return per_dimension.sum(-1)

    def entropy(self) -> Tensor:
        """In nats, summed over A; it does not depend on the mean."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other), summed over A."""
        ratio = torch.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        return 0.5 * (ratio + shift - 1 - torch.log(ratio)).sum(-1)


class Policy(Protocol):
    """What acting needs of a policy: parameters ``[T, P]`` and observations to actions.

    What it returns has ``mean``, ``sample(noise)`` and ``log_prob(action)``, as
    ``DiagonalGaussian`` has. A policy that remembers, within an episode, what it has seen overrides
    ``begin``, ``act``, ``heard`` and ``along``; its memory is the carry, which others only pass on.
    """

    def __call__(self, params: Tensor, obs: Tensor) -> Any:
        """Each task's action distribution; raw observations ``[T, ..., O]``."""
        ...

    def begin(self, params: Tensor, episodes: int) -> Any:
        """The carry at the start of E episodes of each task."""
        return None

    def act(self, params: Tensor, obs: Tensor, carry: Any) -> tuple[Any, Any]:
        """How to act at ``obs [T, E, O]``, and the carry after having seen it."""
        return self(params, obs), carry

    def heard(self, carry: Any, action: Tensor, reward: Tensor) -> Any:
        """The carry after ``action [T, E, A]`` paid ``reward [T, E]``."""
        return carry

    def along(self, params: Tensor, episodes: Trajectories) -> Any:
        """The distributions at every step of stored episodes, as if it had acted in them."""
        return self(params, episodes.obs)


class ObsNormalizer:
    """Running mean and variance of observations ``[O]``: state that every checkpoint carries.

    It is updated between meta-iterations only, so within one every policy sees the same inputs.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.mean = torch.zeros(size, device=device)
        self.var = torch.ones(size, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def __call__(self, obs: Tensor) -> Tensor:
        """``obs [..., O]`` scaled to about zero mean and unit variance, clipped to +-10."""
        return ((obs - self.mean) * torch.rsqrt(self.var + 1e-6)).clamp(-10.0, 10.0)

    def update(self, obs: Tensor, mask: Tensor) -> None:
        """Take in ``obs [..., O]`` where ``mask [...]`` is set (parallel variance, Chan 1979).

        Of all processes that train together: their normalisers stay the same.
        """
        rows = obs[mask > 0]
        count, mean, var = moments(rows)
        if count == 0:
            return
        total = self.count + count
        share = (count / total).to(obs.dtype)
        delta = mean - self.mean
        within = var * share + self.var * (1 - share)
        self.var = within + delta.square() * share * (1 - share)
        self.mean = self.mean + delta * share
        self.count = total

    def state_dict(self) -> dict[str, Tensor]:
        """Mean, variance and count."""
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        for name in ("mean", "var", "count"):
            setattr(self, name, state[name].to(self.mean.device))


@dataclass(kw_only=True, config={"extra": "forbid"})
class PolicyConfig:
    """Size of the policy network."""

    hidden: list[Annotated[int, Field(ge=1)]] = field(default_factory=lambda: [64, 64])
    """Widths of the tanh layers; with none, the policy is linear."""
    log_std: Annotated[float, Field(ge=-5, le=2)] = -0.5
    """Initial log standard deviation of the actions."""


class GaussianMlp(Policy):
    """A tanh network with a learned, state-independent standard deviation.

    P = all weights, biases and log-stds in one flat vector; T parameter sets act at once by batched
    matrix products.
    """

    LOG_STD_RANGE = (-2.0, 0.5)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        config: PolicyConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config or PolicyConfig()
        self.obs_size, self.action_size = obs_size, action_size
        self.device = torch.device(device)
        self.normalizer = ObsNormalizer(obs_size, device)
        sizes = [obs_size, *self.config.hidden, action_size]
        self._layers = list(pairwise(sizes))
        self.num_params = sum((i + 1) * o for i, o in self._layers) + action_size
        """P."""
        self.segments = [n for i, o in self._layers for n in (i * o, o)] + [action_size]
        """How P divides: weights and biases of each layer, then the log-stds."""

    def init(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters ``[P]``: orthogonal layers, a small last one, zero biases."""
        parts = []
        for n, (i, o) in enumerate(self._layers):
            weight = torch.empty(o, i)
            gain = 0.1 if n == len(self._layers) - 1 else math.sqrt(2)
            torch.nn.init.orthogonal_(weight, gain, generator=generator)
            parts += [weight.T.reshape(-1), torch.zeros(o)]
        parts.append(torch.full((self.action_size,), self.config.log_std))
        return torch.cat(parts).to(self.device)

    def renormalised(self, params: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Parameters ``[..., P]`` made under another normaliser, for this policy's own.

        What the other statistics ``[O]`` did to an observation is done by the first layer instead:
        the actions are the same wherever neither normaliser clips.
        """
        mine = torch.sqrt(self.normalizer.var + 1e-6)
        theirs = torch.sqrt(var.to(mine) + 1e-6)
        shift = (self.normalizer.mean - mean.to(mine)) / theirs
        i, o = self._layers[0]
        weight = params[..., : i * o].unflatten(-1, (i, o))
        bias = params[..., i * o : (i + 1) * o] + (shift[:, None] * weight).sum(-2)
        scaled = (weight * (mine / theirs)[:, None]).flatten(-2)
        return torch.cat([scaled, bias, params[..., (i + 1) * o :]], -1)

    def unflatten(self, params: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """``params [T, P]`` as views: the layers, and the log-std ``[T, 1, A]``.

        A layer is its weights ``[T, in, out]`` and biases ``[T, 1, out]``.
        """
        layers, start = [], 0
        for i, o in self._layers:
            weight = params[:, start : start + i * o].unflatten(1, (i, o))
            bias = params[:, start + i * o : start + (i + 1) * o].unsqueeze(1)
            layers.append((weight, bias))
            start += (i + 1) * o
        return layers, params[:, start:].unsqueeze(1)

    @property
    def plain(self) -> GaussianMlp:
        """The policy whose parameters are all of its weights: itself."""
        return self

    def shared(self) -> dict[str, Tensor]:
        """What all parameter sets share, besides the normaliser, and cannot be read without."""
        return {}

    def along(self, params: Tensor, episodes: Trajectories) -> DiagonalGaussian:
        """The distributions at every step of stored episodes."""
        return self(params, episodes.obs)

    def __call__(self, params: Tensor, obs: Tensor) -> DiagonalGaussian:
        """Each task's action distribution: ``params [T, P]``, raw observations ``[T, ..., O]``."""
        return self.network(params, self.normalizer(obs))

    def network(self, params: Tensor, inputs: Tensor) -> DiagonalGaussian:
        """The same for ``inputs [T, ..., O]`` that are normalised already."""
        layers, log_std = self.unflatten(params)
        x = inputs.flatten(1, -2)  # [T, everything, O]
        for weight, bias in layers[:-1]:
            x = torch.tanh(torch.baddbmm(bias, x, weight))
        weight, bias = layers[-1]
        mean = torch.baddbmm(bias, x, weight).unflatten(1, inputs.shape[1:-1])
        log_std = log_std.clamp(*self.LOG_STD_RANGE)
        return DiagonalGaussian(mean, log_std.reshape(len(params), *[1] * (inputs.ndim - 2), -1))
