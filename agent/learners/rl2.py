"""RL2: the learning algorithm is a recurrent network's dynamics (Duan 2016; Wang 2016).

Trained by PPO on trials of several episodes, through whose boundaries the state is carried. The
observation is fed again to the heads (Beck 2023 reports part of a hypernetwork's gain for that).
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.advantage import gae, normalize, returns_to_go
from agent.learners.base import Metrics, under
from agent.learners.inference import BeliefLearner, own_make
from agent.losses import clipped, mean_over_steps, ratio_of
from agent.networks import mlp
from agent.policy import GaussianMlp, ObsNormalizer, PolicyConfig
from agent.recurrent import Cell, RecurrentPolicy
from agent.rollout import TaskBatch
from agent.types import Adaptation, Trajectories

Trial = list[tuple[Trajectories, Tensor]]
"""The episodes of each of T trials ``[T, 1, H]``, with advantages, and the critic's targets."""


@plain_dataclass(frozen=True)
class TrialAdaptation(Adaptation):
    """The trials up to their last episode; ``trials`` rows in succession are of one task."""

    trials: int


@dataclass(kw_only=True, config={"extra": "forbid"})
class Rl2(BeliefLearner):
    """A recurrent network that is its own learning algorithm."""

    one_at_a_time: ClassVar[bool] = True

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.97
    """Discount."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.9
    """GAE's lambda."""
    trial_episodes: Annotated[int, Field(ge=1)] = 2
    """Episodes of a trial, in training; their returns count alike."""
    cell: Cell = "gru"
    """Kind of recurrence; an LSTM's rows are twice as wide."""
    hidden: Annotated[int, Field(ge=1)] = 64
    """Width of what it shows of its state."""
    embed: Annotated[int, Field(ge=1)] = 64
    """Width of what it is shown of a step."""
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Steps after which gradients are cut off; None: they reach to the trial's start."""
    outer_rate: Annotated[float, Field(gt=0, le=1)] = 7e-4
    """Adam's step size."""
    outer_epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the trials of an iteration; 4 reach as far in as many seconds, in more steps."""
    minibatches: Annotated[int, Field(ge=1)] = 4
    """Parts that the trials are divided into, each one outer step."""
    entropy_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Of the actions' entropy in the objective, whose advantages are normalised."""
    value_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Of the critic's squared error in the loss."""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """Largest norm of the outer gradient."""

    def make_policy(
        self, obs_size: int, action_size: int, config: PolicyConfig, device: torch.device | str
    ) -> RecurrentPolicy:
        """A recurrent policy."""
        return RecurrentPolicy(
            obs_size,
            action_size,
            config,
            device,
            cell=self.cell,
            hidden=self.hidden,
            embed=self.embed,
            chunk=self.chunk,
            deltas=self.deltas,
        )

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the shared weights."""
        super().setup(policy, generator)
        self.policy = own_make(self, policy, RecurrentPolicy)
        self.return_normalizer = ObsNormalizer(1, policy.device)
        """Discounted returns; the critic's errors would drown the policy's gradient unscaled."""

    def infer(self, params: Tensor, episodes: Trajectories) -> Tensor:
        """Read no more episodes than a trial has before its last; beyond, states drift."""
        most = max(self.trial_episodes - 1, 1)
        return self.policy.read(params, episodes.episodes(slice(most)))

    def make_heads(self, generator: torch.Generator) -> nn.Module:
        """The critic, on what the policy's head is shown."""
        heads = nn.Module()
        heads.critic = mlp([self.policy.head.obs_size, 64, 64, 1], generator, gain=0.1)
        return heads

    def adapt(self, batch: TaskBatch) -> TrialAdaptation:
        """All episodes of the trials but the last."""
        params, support = self.prior(len(batch.tasks)), []
        for _ in range(self.trial_episodes - 1):
            support.append(batch.collect(params))
            with torch.no_grad():
                params = self.policy.read(params, support[-1])
        return TrialAdaptation(params, support, batch.trials)

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """PPO over whole trials: the policy, the critic and the recurrence."""
        if not isinstance(adaptation, TrialAdaptation):
            raise TypeError("an update over trials needs what the learner's own adapt gave")
        trial = self.with_targets([*adaptation.support, query], adaptation.trials)
        metrics, order = {}, torch.arange(query.reward.shape[0])
        parts = min(self.minibatches, len(order))
        for epoch in range(self.outer_epochs):
            for k in range(parts):
                part = order[(k + epoch) % parts :: parts]  # of every task; of every process, too
                losses = self.losses([(one.tasks(part), target[part]) for one, target in trial])
                self.descend(sum(losses.values(), torch.zeros((), device=query.reward.device)))
                metrics = {f"train/{name}_loss": float(x.detach()) for name, x in losses.items()}
        for episodes, _ in trial:
            self.policy.update_normalizers(episodes)
        return metrics

    def with_targets(self, trial: list[Trajectories], trials: int = 1) -> Trial:
        """Advantages and the critic's targets, over the whole trial at once.

        Advantages are normalised over the ``trials`` of each task, which stand in succession: what
        a task pays more than another is nobody's merit.
        """
        params, values = self.prior(trial[0].reward.shape[0]), []
        with torch.no_grad():
            for one in trial:
                states = self.policy.states(params, one)
                values.append(self.value(one, self.policy.shown(states[:, :, :-1])))
                params = self.policy.after(params, one, states)
        reward = torch.cat([one.reward for one in trial], -1)
        mask, value = torch.cat([one.mask for one in trial], -1), torch.cat(values, -1)
        returns = returns_to_go(reward, mask, self.gamma)
        self.return_normalizer.update(returns[..., None], mask)
        reward = reward * torch.rsqrt(self.return_normalizer.var + 1e-6)
        advantage = gae(reward, value, mask, self.gamma, self.gae_lambda)
        target = advantage + value
        by_task = [x[:, 0].unflatten(0, (-1, trials)) for x in (advantage, mask)]
        advantage = normalize(*by_task).flatten(0, 1)[:, None]
        lengths = [one.reward.shape[-1] for one in trial]
        parts = zip(trial, advantage.split(lengths, -1), target.split(lengths, -1), strict=True)
        return [(one.with_advantage(part), aim) for one, part, aim in parts]

    def exposed(self, shown: Tensor) -> Tensor:
        """What the heads are shown, in the graph as far as they may shape it."""
        return shown

    def value(self, episodes: Trajectories, shown: Tensor) -> Tensor:
        """The critic's estimates ``[T, E, H]``, in units of the returns' spread."""
        inputs = torch.cat([self.policy.normalizer(episodes.obs), shown], -1)
        return self.heads.get_submodule("critic")(inputs)[..., 0]

    def losses(self, trial: Trial) -> dict[str, Tensor]:
        """The weighted parts of the loss of some trials, by name."""
        params = self.prior(trial[0][0].reward.shape[0])
        policy, value, entropy = [], [], []
        for one, target in trial:
            states = self.policy.states(params, one)
            shown = self.exposed(self.policy.shown(states[:, :, :-1]))
            acts = self.policy.decide(params, one.obs, shown)
            ratio = ratio_of(acts.log_prob(one.action), one)
            policy.append(clipped(ratio, one, self.clip).mean())
            error = (self.value(one, shown) - target).square()
            value.append(mean_over_steps(error, one.mask).mean())
            entropy.append(acts.entropy().mean())
            params = self.policy.after(params, one, states)
        return {
            "policy": torch.stack(policy).mean(),
            "value": self.value_weight * torch.stack(value).mean(),
            "entropy": -self.entropy_weight * torch.stack(entropy).mean(),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """And the scale of returns."""
        scale = self.return_normalizer.state_dict()
        return super().state_dict() | {f"return.{name}": value for name, value in scale.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        super().load_state_dict(state)
        self.return_normalizer.load_state_dict(under(state, "return."))
