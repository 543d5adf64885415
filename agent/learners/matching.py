"""Matching: the policy is a vote of prototype policies, by how much the task looks like theirs.

Matching networks (Vinyals 2016), in action space: attention over learned task embeddings, by the
embedding of a probe, weighs the actions of as many policies. No gradient at test time.
``agent.continual.methods.matching`` votes among the policies of the episodic memory instead.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.learners.context import Context, ContextPolicy
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig


class VotingPolicy(ContextPolicy):
    """K prototypes act; the belief says how much each counts."""

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        config: PolicyConfig | None = None,
        device: torch.device | str = "cpu",
        *,
        prototypes: int = 8,
        latent: int = 5,
        width: int = 64,
    ) -> None:
        """``prototypes``: K; ``latent`` and ``width`` as in ``ContextPolicy``."""
        super().__init__(obs_size, action_size, config, device, latent=latent, width=width)
        self.prototypes = prototypes
        self.head = GaussianMlp(obs_size, action_size, self.config, device)
        size = self.head.num_params
        self.weights = torch.zeros(prototypes * size, device=self.device, requires_grad=True)

    def draw(self, generator: torch.Generator) -> None:
        """Fresh encoder, prototypes and their embeddings."""
        super().draw(generator)
        anchors = torch.randn(self.prototypes, self.latent, generator=generator)
        self.encoder.anchors = nn.Parameter(torch.tanh(anchors).to(self.device))
        self.encoder.sharpness = nn.Parameter(torch.zeros((), device=self.device))

    def draw_weights(self, generator: torch.Generator) -> Tensor:
        """Each prototype is a network of its own."""
        return torch.cat([self.head.init(generator) for _ in range(self.prototypes)])

    def attention(self, belief: Tensor) -> Tensor:
        """Weights of the prototypes ``[..., K]``: a softmax of distances; uniform in the prior."""
        embedded = super().shown(belief)
        known = embedded[..., -1:]
        away = embedded[..., None, :-1] - self.encoder.get_parameter("anchors")
        scale = self.encoder.get_parameter("sharpness").exp()
        return torch.softmax(-scale * known * away.square().sum(-1), -1)

    def decide(self, params: Tensor, obs: Tensor, shown: Tensor) -> DiagonalGaussian:
        """The weighted mean of the prototypes' actions (and of their log standard deviations)."""
        inputs = self.normalizer(obs).flatten(0, -2).expand(self.prototypes, -1, -1)
        each = self.head.network(self.weights.unflatten(0, (self.prototypes, -1)), inputs)
        means = each.mean.unflatten(1, obs.shape[:-1])  # [K, T, ..., A]
        weight = self.attention(params[:, : self.belief_size])  # [T, K]
        mean = torch.einsum("tk,kt...a->t...a", weight, means)
        log_std = (weight @ each.log_std[:, 0])[(slice(None),) + (None,) * (obs.ndim - 2)]
        return DiagonalGaussian(mean, log_std)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Matching(Context):
    """Context learning whose policy is a vote."""

    prototypes: Annotated[int, Field(ge=2)] = 8
    """K."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning here."""
        if self.deltas:
            raise ValueError("deltas: a vote of prototypes has no weights of one task to change")

    def make_policy(
        self, obs_size: int, action_size: int, config: PolicyConfig, device: torch.device | str
    ) -> VotingPolicy:
        """A vote."""
        return VotingPolicy(
            obs_size,
            action_size,
            config,
            device,
            prototypes=self.prototypes,
            latent=self.latent,
            width=self.width,
        )
