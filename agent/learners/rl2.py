"""RL2: the learning algorithm is a recurrent network's dynamics (Duan 2016; Wang 2016).

Trained by PPO on trials of several episodes, through whose boundaries the state is carried. The
observation is fed again to the heads (Beck 2023 reports part of a hypernetwork's gain for that).
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.advantage import advantages
from agent.distributed import TogetherError, world_size
from agent.learners.base import Metrics
from agent.learners.inference import BeliefLearner, own_make
from agent.losses import clipped, ratio_of
from agent.policy import GaussianMlp, PolicyConfig
from agent.recurrent import Cell, RecurrentPolicy
from agent.rollout import TaskBatch
from agent.types import Adaptation, Trajectories

Trial = list[Trajectories]
"""The episodes, ``[T, 1, H]`` each, of T trials."""
_OF_STEPS = ("obs", "reward", "mask")


@plain_dataclass(frozen=True)
class TrialAdaptation(Adaptation):
    """The trials up to their last episode; ``trials`` rows in succession are of one task."""

    trials: int


@dataclass(kw_only=True, config={"extra": "forbid"})
class Rl2(BeliefLearner):
    """A recurrent network that is its own learning algorithm."""

    one_at_a_time: ClassVar[bool] = True

    trial_episodes: Annotated[int, Field(ge=1)] = 2
    """Episodes of a trial, in training; all their steps count alike."""
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
    """Parts that the trials are divided into, each one outer step. Several processes need trials
    that this divides in each of them, or their steps would not be those of one."""
    entropy_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Of the actions' entropy in the objective, whose advantages are normalised."""
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

    def infer(self, params: Tensor, episodes: Trajectories) -> Tensor:
        """Read no more episodes than a trial has before its last; beyond, states drift.

        Of each task the newest that count: after a step was taken back, others than before.
        """
        most = max(self.trial_episodes - 1, 1)
        counts = (episodes.mask.sum(-1) > 0).long()  # [T, E]
        newer = counts.flip(1).cumsum(1).flip(1)  # with the episode itself
        kept = (counts > 0) & (newer <= most)
        mask = episodes.mask * kept[..., None]
        some = replace(episodes, mask=mask, advantage=None).episodes(kept.any(0))
        return self.policy.read(params, some)

    def make_heads(self, generator: torch.Generator) -> nn.Module:
        """None: the baseline is fitted anew to each task's trials."""
        return nn.Module()

    def adapt(self, batch: TaskBatch) -> TrialAdaptation:
        """All episodes of the trials but the last."""
        params, support = self.prior(len(batch.tasks)), []
        for _ in range(self.trial_episodes - 1):
            support.append(batch.collect(params))
            with torch.no_grad():
                params = self.policy.read(params, support[-1])
        return TrialAdaptation(params, support, batch.trials)

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """PPO over whole trials."""
        if not isinstance(adaptation, TrialAdaptation):
            raise TypeError("an update over trials needs what the learner's own adapt gave")
        trial = self.with_advantages([*adaptation.support, query], adaptation.trials)
        shares = shares_of_steps(trial, adaptation.trials)
        metrics, order = {}, torch.arange(query.reward.shape[0])
        if world_size() > 1 and len(order) % self.minibatches:
            raise TogetherError(
                f"learner.minibatches={self.minibatches} does not divide the {len(order)} trials "
                "(tasks x episodes) of each process, so that the steps would not be those of one "
                "process; change batch.episodes, batch.tasks or learner.minibatches"
            )
        parts = min(self.minibatches, len(order))
        for epoch in range(self.outer_epochs):
            for k in range(parts):
                part = order[(k + epoch) % parts :: parts]  # of every task; of every process, too
                some = [one.tasks(part) for one in trial]
                losses = self.losses(some, shares[:, part], self.states(some))
                self.descend(sum(losses.values(), torch.zeros((), device=query.reward.device)))
                metrics = {f"train/{name}_loss": float(x.detach()) for name, x in losses.items()}
        self.update_normalizers(trial)
        return metrics

    def update_normalizers(self, trial: Trial) -> None:
        """Take in what was seen in trials; between iterations only."""
        for one in trial:
            self.policy.update_normalizers(one)

    def with_advantages(self, trial: Trial, trials: int = 1) -> Trial:
        """Advantages over the whole trial at once: later rewards credit earlier episodes.

        Baseline and scale are of the ``trials`` of each task, which stand in succession: what a
        task pays more than another is nobody's merit. A critic that sees the belief instead was
        worse on HalfCheetah velocities and better on directions (first episode after 2M env steps,
        gamma .97, seeds 0 and 1: -43, -56, here -26, -36; 439, 391, here 321, 345).
        """
        parts = [torch.cat([getattr(x, name) for x in trial], 2) for name in _OF_STEPS]
        obs, reward, mask = (part[:, 0].unflatten(0, (-1, trials)) for part in parts)
        with torch.no_grad():
            obs = self.policy.normalizer(obs)
            found = advantages(obs, reward, mask, self.gamma, self.gae_lambda)
        lengths = [one.reward.shape[-1] for one in trial]
        split = found.flatten(0, 1)[:, None].split(lengths, -1)
        return [one.with_advantage(part) for one, part in zip(trial, split, strict=True)]

    def exposed(self, shown: Tensor) -> Tensor:
        """What the head is shown, in the graph as far as it may shape it."""
        return shown

    def states(self, trial: Trial) -> list[Tensor]:
        """Of each episode of some trials, ``[T, 1, H + 1, B]``; the first begins at the prior."""
        params, found = self.prior(len(trial[0].reward)), []
        for one in trial:
            found.append(self.policy.states(params, one))
            params = self.policy.after(params, one, found[-1])
        return found

    def losses(self, trial: Trial, shares: Tensor, states: list[Tensor]) -> dict[str, Tensor]:
        """The weighted parts of the loss of some trials, by name."""
        params, policy, entropy = self.prior(len(trial[0].reward)), [], []
        for one, share, found in zip(trial, shares, states, strict=True):
            shown = self.exposed(self.policy.shown(found[:, :, :-1]))
            acts = self.policy.decide(params, one.obs, shown)
            ratio = ratio_of(acts.log_prob(one.action), one)
            policy.append((share * clipped(ratio, one, self.clip)).mean())
            entropy.append(acts.entropy().mean())
        return {
            "policy": torch.stack(policy).sum(),
            "entropy": -self.entropy_weight * torch.stack(entropy).mean(),
        }


def shares_of_steps(trial: Trial, trials: int) -> Tensor:
    """What each episode counts, ``[episodes, T]``, in a mean over all steps of each task.

    Episodes that ended early have fewer steps, not heavier ones. A task's trials, ``trials`` in
    succession, have shares that sum to ``trials``.
    """
    steps = torch.stack([one.mask.sum((1, 2)) for one in trial])
    of_task = steps.sum(0).unflatten(0, (-1, trials)).mean(1).clamp(min=1)
    return steps / of_task.repeat_interleave(trials)
