"""A context learner: what a probe shows is pooled into a few numbers that the policy is shown.

After PEARL (Rakelly 2019) in that the encoder does not see the order of the steps, but on-policy:
encoder and policy are trained by PPO through the belief, and the belief must also predict reward
and change of state (``reference/feasibility.md`` section 2 has the recipe's figures).
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.belief import BeliefPolicy, step_features
from agent.learners.base import Metrics
from agent.learners.inference import BeliefLearner
from agent.losses import clipped_surrogate, mean_over_steps
from agent.networks import mlp
from agent.policy import PolicyConfig
from agent.rollout import TaskBatch
from agent.types import Adaptation, Trajectories


class ContextPolicy(BeliefPolicy):
    """The belief is the mean of what the encoder makes of every step, and how many were read.

    Means of disjoint episodes can be pooled, so a belief can grow from visit to visit.
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        config: PolicyConfig | None = None,
        device: torch.device | str = "cpu",
        *,
        latent: int = 5,
        width: int = 64,
        deltas: bool = False,
    ) -> None:
        """``latent``: Z, numbers in the mean; ``width``: of the encoder's two layers."""
        belief = [latent, 1]
        super().__init__(
            obs_size, action_size, config, device, belief=belief, shown=latent + 1, deltas=deltas
        )
        self.latent, self.width = latent, width

    def draw(self, generator: torch.Generator) -> None:
        """Fresh shared weights."""
        super().draw(generator)
        inputs = 2 * self.obs_size + self.action_size + 1
        sizes = [inputs, self.width, self.width, self.latent]
        self.encoder = mlp(sizes, generator, nn.ReLU).to(self.device)

    def shown(self, belief: Tensor) -> Tensor:
        """The bounded mean, and whether there is one: ``[..., Z + 1]``."""
        mean, count = belief[..., : self.latent], belief[..., self.latent : self.latent + 1]
        known = (count > 0).to(belief.dtype)
        return torch.cat([torch.tanh(mean) * known, known], -1)

    def read(self, params: Tensor, episodes: Trajectories) -> Tensor:
        """Pool the steps of these episodes with those that the belief was made of."""
        encoded = self.encoder(step_features(self, episodes)) * episodes.mask[..., None]
        mean, count = params[:, : self.latent], params[:, self.latent : self.latent + 1]
        more = episodes.mask.sum((1, 2))[:, None] / episodes.reward.shape[-1]  # in whole episodes
        total = mean * count + encoded.sum((1, 2)) / episodes.reward.shape[-1]
        pooled = torch.where(more > 0, total / (count + more).clamp(min=1e-8), mean)
        return torch.cat([pooled, count + more, params[:, self.belief_size :]], -1)


@plain_dataclass(frozen=True)
class ContextAdaptation(Adaptation):
    """An adaptation to the first ``used`` episodes of the probe."""

    used: int


@dataclass(kw_only=True, config={"extra": "forbid"})
class Context(BeliefLearner):
    """Probe, pool, act: adaptation is one forward pass."""

    outer_epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the episodes of an iteration; 5 reached less at equal env steps."""
    latent: Annotated[int, Field(ge=1)] = 5
    """Numbers that a task is described by."""
    width: Annotated[int, Field(ge=1)] = 64
    """Of the encoder's layers."""
    max_probes: Annotated[int, Field(ge=1)] = 3
    """In training, the belief is made of one to so many probe episodes."""
    probe_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    """Of the probe's own return in the loss; 1 is the weight of the return after it."""
    reward_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Of predicting rewards from the belief, in the loss."""
    change_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Of predicting the change of state from the belief, in the loss."""

    def make_policy(
        self, obs_size: int, action_size: int, config: PolicyConfig, device: torch.device | str
    ) -> ContextPolicy:
        """A policy on observation and belief."""
        return ContextPolicy(
            obs_size,
            action_size,
            config,
            device,
            latent=self.latent,
            width=self.width,
            deltas=self.deltas,
        )

    def make_heads(self, generator: torch.Generator) -> nn.Module:
        """Predictors of reward (from s, a, the change of s and the belief) and of that change."""
        o, a, shown = self.policy.obs_size, self.policy.action_size, self.latent + 1
        heads = nn.Module()
        heads.reward = mlp([2 * o + a + shown, self.width, self.width, 1], generator, nn.ReLU)
        heads.change = mlp([o + a + shown, self.width, self.width, o], generator, nn.ReLU)
        return heads

    def adapt(self, batch: TaskBatch) -> ContextAdaptation:
        """Probe with the prior belief, and read some of the probe's episodes."""
        prior = self.prior(len(batch.tasks))
        probe = batch.collect(prior)
        used = batch.draw(min(self.max_probes, batch.episodes)) + 1
        with torch.no_grad():
            params = self.policy.read(prior, probe.episodes(slice(used)))
        return ContextAdaptation(params, [self.advantages(probe)], used)

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """PPO after and, with less weight, during the probe, and the two predictions."""
        if not isinstance(adaptation, ContextAdaptation):
            raise TypeError("a context learner's update needs what its own adapt gave")
        probe, query = adaptation.support[0], self.advantages(query)
        context, metrics = probe.episodes(slice(adaptation.used)), {}
        for epoch in range(self.outer_epochs):
            order = torch.arange(query.reward.shape[1]).roll(epoch)
            for part in order.tensor_split(min(self.minibatches, len(order))):
                losses = self.losses(context, probe.episodes(part), query.episodes(part))
                self.descend(sum(losses.values(), torch.zeros(())))
                metrics = {f"train/{name}_loss": float(x.detach()) for name, x in losses.items()}
        for episodes in (probe, query):
            self.policy.update_normalizers(episodes)
        return metrics

    def losses(
        self, context: Trajectories, probe: Trajectories, query: Trajectories
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss, by name."""
        prior = self.prior(query.reward.shape[0])
        belief = self.policy.read(prior, context)
        after = clipped_surrogate(self.policy, belief, query, self.clip).mean()
        before = clipped_surrogate(self.policy, prior, probe, self.clip).mean()
        reward, change = self.prediction_errors(belief, query)
        return {
            "policy": after,
            "probe": self.probe_weight * before,
            "reward": self.reward_weight * reward,
            "change": self.change_weight * change,
        }

    def prediction_errors(self, belief: Tensor, episodes: Trajectories) -> tuple[Tensor, Tensor]:
        """Mean squared errors, in units of the normalisers, of what the belief predicts."""
        features = step_features(self.policy, episodes)
        o, a = self.policy.obs_size, self.policy.action_size
        state, change = features[..., : o + a], features[..., o + a + 1 :]
        reward = features[..., o + a]
        shown = self.policy.shown(belief)[:, None, None]
        shown = shown.expand(*reward.shape, -1)
        inputs = torch.cat([state, shown], -1)
        paid = self.heads.get_submodule("reward")(torch.cat([inputs, change], -1))[..., 0]
        moved = self.heads.get_submodule("change")(inputs)
        mask = episodes.mask
        error = mean_over_steps((paid - reward).square(), mask).mean()
        return error, mean_over_steps((moved - change).square().mean(-1), mask).mean()
