"""VariBAD: a variational belief about the task, which the policy sees, mean and variance.

Zintgraf 2020. A GRU reads what happens and gives, at every step, a Gaussian over a latent task; a
decoder must predict from it the rewards (or states) of the whole trial, past and to come. That is
trained by the evidence lower bound alone: the gradient of the return does not enter the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.belief import step_features
from agent.distributed import own_part, world_size
from agent.learners.base import under
from agent.learners.inference import own_make
from agent.learners.rl2 import Rl2, Trial
from agent.networks import linear, mlp
from agent.policy import DiagonalGaussian, GaussianMlp, ObsNormalizer, PolicyConfig
from agent.recurrent import Cell, RecurrentPolicy
from agent.types import Trajectories

_LOG_STD_RANGE = (-5.0, 2.0)


class LatentPolicy(RecurrentPolicy):
    """The head is shown the mean and the log standard deviation of the posterior, normalised.

    Nothing holds latents to one scale, and a head on raw ones saturates (HalfCheetah velocities:
    means of -8, return -80 at 1.4M env steps though the belief tells the speed to 1 %).
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        config: PolicyConfig | None = None,
        device: torch.device | str = "cpu",
        *,
        latent: int = 5,
        cell: Cell = "gru",
        hidden: int = 64,
        embed: int = 64,
        chunk: int | None = None,
        deltas: bool = False,
    ) -> None:
        """``latent``: Z, dimensions of the latent task."""
        self.latent = latent
        super().__init__(
            obs_size,
            action_size,
            config,
            device,
            cell=cell,
            hidden=hidden,
            embed=embed,
            shown=2 * latent,
            chunk=chunk,
            deltas=deltas,
        )

    def draw(self, generator: torch.Generator) -> None:
        """Fresh shared weights."""
        super().draw(generator)
        self.encoder.posterior = linear(self.hidden, 2 * self.latent, generator).to(self.device)
        self.latent_normalizer = ObsNormalizer(2 * self.latent, self.device)

    def posterior(self, belief: Tensor) -> DiagonalGaussian:
        """The latent task, given states ``[..., B]``; N(0, 1) untrained, in the prior's state."""
        seen = super().shown(belief)
        mean, log_std = self.encoder.get_submodule("posterior")(seen).chunk(2, -1)
        return DiagonalGaussian(mean, log_std.clamp(*_LOG_STD_RANGE))

    def shown(self, belief: Tensor) -> Tensor:
        """Mean and log standard deviation, normalised, ``[..., 2 Z]``."""
        return self.latent_normalizer(self._moments(belief))

    def update_latents(self, states: Tensor, mask: Tensor) -> None:
        """Take in the latents of states ``[..., B]`` where the mask is set; forget old ones.

        Training moves the latents, so what came ten episodes of a trial ago counts for a third.
        """
        known = self.latent_normalizer
        known.count = known.count * 0.9  # a new tensor: the old one may be in a saved state
        known.update(self._moments(states), mask)

    def shared(self) -> dict[str, Tensor]:
        """And the normaliser of latents."""
        latents = self.latent_normalizer.state_dict()
        return super().shared() | {f"latent.{name}": value for name, value in latents.items()}

    def load_shared(self, state: dict[str, Tensor]) -> None:
        """Take over what ``shared`` gave."""
        super().load_shared(state)
        self.latent_normalizer.load_state_dict(under(state, "latent."))

    def _moments(self, belief: Tensor) -> Tensor:
        latent = self.posterior(belief)
        return torch.cat([latent.mean, latent.log_std], -1)


def elbo(
    posterior: DiagonalGaussian,
    prior: DiagonalGaussian,
    noise: Tensor,
    log_likelihood: Callable[[Tensor], Tensor],
    kl_weight: float = 1.0,
) -> Tensor:
    """``E_q[log p(x | z)] - kl_weight * KL(q || p)`` (Kingma 2014, eq. 3), elementwise.

    Args:
        posterior: q(z), ``[..., Z]``.
        prior: p(z).
        noise: Standard normal ``[S, ..., Z]``, of S samples.
        log_likelihood: From samples ``[S, ..., Z]`` to ``[S, ...]``.
        kl_weight: 1 for the bound itself.
    """
    expected = log_likelihood(posterior.sample(noise)).mean(0)
    return expected - kl_weight * posterior.kl(prior)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Varibad(Rl2):
    """A belief that is trained to predict, and a policy that is trained to use it."""

    latent: Annotated[int, Field(ge=1)] = 5
    """Z, dimensions of the latent task."""
    decodes: Literal["reward", "change"] = "reward"
    """What the latent must predict: rewards, or changes of state where tasks differ in dynamics."""
    bounds: Annotated[int, Field(ge=1)] = 8
    """Times of an episode, evenly spaced, whose beliefs must predict the whole trial."""
    decoded: Annotated[int, Field(ge=1)] = 50
    """Steps of a trial, at random, that the bound's likelihood is estimated from."""
    kl_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Of the KL from each belief to the one before (the first: to N(0, 1)); 1 is the bound itself
    (``decodes=change``: of a likelihood that is the mean over the outputs, not their sum).
    With .1 latents grow until they saturate the policy's first layer, which then learns slower."""
    elbo_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Of the negative bound, per predicted step, in the loss."""
    belief_betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = field(default_factory=lambda: [0.9, 0.95])
    """Adam's decay rates for encoder and decoder. Once the bound is learned its gradients nearly
    vanish; remembered for as long as usual (.999) they make a rare large one a leap of every
    belief (largest falls of the training return on HalfCheetah directions, of some 300, seeds
    0-2: 65, 448, 166; with .95 13, 110, 22)."""

    def make_policy(
        self, obs_size: int, action_size: int, config: PolicyConfig, device: torch.device | str
    ) -> LatentPolicy:
        """A policy on a latent belief."""
        return LatentPolicy(
            obs_size,
            action_size,
            config,
            device,
            latent=self.latent,
            cell=self.cell,
            hidden=self.hidden,
            embed=self.embed,
            chunk=self.chunk,
            deltas=self.deltas,
        )

    def make_heads(self, generator: torch.Generator) -> nn.Module:
        """The decoder."""
        heads = super().make_heads(generator)
        o, a = self.policy.obs_size, self.policy.action_size
        inputs = (2 * o if self.decodes == "reward" else o) + a + self.latent
        outputs = 1 if self.decodes == "reward" else o
        heads.decoder = mlp([inputs, 64, 32, outputs], generator, nn.ReLU)
        return heads

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the shared weights."""
        super().setup(policy, generator)
        self.policy = own_make(self, policy, LatentPolicy)
        self._noise = torch.Generator().manual_seed(generator.initial_seed())

    def _new_optimizer(self) -> torch.optim.Adam:
        policy, *belief = self.leaves
        of_belief = {"params": belief, "betas": tuple(self.belief_betas)}
        return torch.optim.Adam([{"params": [policy]}, of_belief], lr=self.outer_rate)

    def exposed(self, shown: Tensor) -> Tensor:
        """The return's gradient stops here: what a belief is, is learned from predicting."""
        return shown.detach()

    @torch.no_grad()
    def update_normalizers(self, trial: Trial) -> None:
        """Of what was seen, and of the beliefs it leads to."""
        super().update_normalizers(trial)
        for one, states in zip(trial, self.states(trial), strict=True):
            self.policy.update_latents(states[:, :, :-1], one.mask)

    def losses(self, trial: Trial, shares: Tensor, states: list[Tensor]) -> dict[str, Tensor]:
        """PPO's parts, and the negative bound."""
        elbo = self.bound(trial, states)
        return super().losses(trial, shares, states) | {"elbo": -self.elbo_weight * elbo}

    def bound(self, trial: Trial, states: list[Tensor]) -> Tensor:
        """Mean evidence lower bound of beliefs along the trials, in nats per predicted step."""
        settled = [self.policy.settled(*pair)[:, 0] for pair in zip(trial, states, strict=True)]
        along = torch.cat(settled, 1)  # [T, time, B]
        latents = self.policy.posterior(along)
        before = _before(latents)
        picked = torch.linspace(0, along.shape[1] - 1, self.bounds * len(trial)).long()
        # Every process draws for the trials of all, so that each has the noise it has alone.
        everybodys = len(along) * world_size()
        noise = torch.randn(1, everybodys, len(picked), self.latent, generator=self._noise)
        noise = noise[:, own_part(everybodys)]
        bounds = elbo(
            _at(latents, picked),
            _at(before, picked),
            noise.to(along),
            lambda z: self.log_likelihood(z, trial),
            self.kl_weight,
        )
        steps = torch.cat([one.mask for one in trial], -1).sum((1, 2)).clamp(min=1)
        return (bounds / steps[:, None]).mean()

    def log_likelihood(self, latent: Tensor, trial: Trial) -> Tensor:
        """Of all steps of a trial under latents ``[S, T, n, Z]``, unit variance: ``[S, T, n]``.

        Estimated from ``decoded`` steps, drawn anew each time.
        """
        parts = zip(*(self._to_predict(one) for one in trial), strict=True)
        known, target, mask = (torch.cat(part, 1) for part in parts)  # [T, time, ...]
        steps = mask.sum(1)[None, :, None]
        index = torch.randperm(known.shape[1], generator=self._noise)[: self.decoded]
        known, target, mask = known[:, index], target[:, index], mask[:, index]
        z = latent[..., None, :].expand(*latent.shape[:-1], len(index), -1)
        known = known[None, :, None].expand(*z.shape[:-1], -1)
        guess = self.heads.get_submodule("decoder")(torch.cat([known, z], -1))
        error = (guess - target[None, :, None]).square().mean(-1) + math.log(2 * math.pi)
        mask = mask[None, :, None]
        mean = -0.5 * (error * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        return steps * mean

    def _to_predict(self, one: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder is shown of each step, what it must predict of it, and the mask."""
        features = step_features(self.policy, one)[:, 0]
        o, a = self.policy.obs_size, self.policy.action_size
        known, reward = features[..., : o + a], features[..., o + a : o + a + 1]
        change = features[..., o + a + 1 :]
        if self.decodes == "reward":
            return torch.cat([known, change], -1), reward, one.mask[:, 0]
        return known, change, one.mask[:, 0]

    def state_dict(self) -> dict[str, Tensor]:
        """And where the noise stands."""
        return super().state_dict() | {"noise": self._noise.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        super().load_state_dict(state)
        self._noise.set_state(state["noise"].cpu())


def _before(latents: DiagonalGaussian) -> DiagonalGaussian:
    """The belief one step earlier along dim 1; N(0, 1) before the first."""
    parts = (latents.mean, latents.log_std)
    earlier = [torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) for x in parts]
    return DiagonalGaussian(*earlier)


def _at(latents: DiagonalGaussian, index: Tensor) -> DiagonalGaussian:
    return DiagonalGaussian(latents.mean[:, index], latents.log_std[:, index])
