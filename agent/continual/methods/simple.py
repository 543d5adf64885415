"""The ends of the scale: acting at random, learning without a past, a past that is not sorted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.evaluation import Actor
from agent.continual.life import Hints
from agent.continual.visit import Visit
from agent.learners import transfer
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import Policy
from agent.seeding import torch_generator
from agent.types import Recall, Trajectories


@dataclasses.dataclass(frozen=True)
class UniformActions:
    """Each action uniform in [-1, 1]."""

    mean: Tensor
    """``[..., A]``, zeros."""

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from standard normal ``noise [..., A]``, by its distribution function."""
        return torch.erf(noise / math.sqrt(2))

    def log_prob(self, action: Tensor) -> Tensor:
        """The same for every action in the range."""
        return torch.full_like(action[..., 0], -action.shape[-1] * math.log(2))


@dataclasses.dataclass(frozen=True)
class Uniform(Policy):
    """The policy of that distribution; it has no parameters."""

    action_size: int

    def __call__(self, params: Tensor, obs: Tensor) -> UniformActions:
        """The same distribution wherever it is."""
        return UniformActions(obs.new_zeros(*obs.shape[:-1], self.action_size))


@dataclass(kw_only=True, config={"extra": "forbid"})
class Random(PolicyAgent):
    """Uniform random actions, for as long as the budget lasts: the zero of the scale."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with nothing."""
        super().setup(learner, probes, seed)
        self.params = self.params[:, :0]
        self._policy = Uniform(learner.policy.action_size)

    @property
    def policy(self) -> Policy:
        """Uniform actions."""
        return self._policy

    @property
    def acting(self) -> Actor:
        """Always at random, evaluations included."""
        return Actor(self.policy, self.params, deterministic=False)

    def begin(self, visit: Visit) -> dict[str, Any]:
        """There is nothing to start from."""
        return {}

    def actor(self, visit: Visit) -> Actor:
        """The same on every task."""
        return self.acting

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        self.score = float(episodes.mean_return())


@dataclass(kw_only=True, config={"extra": "forbid"})
class Scratch(PolicyAgent):
    """Every visit starts from a random initialisation of its own, and learns by PPO alone.

    The reference of forward transfer. Nothing of meta-training but the observation normaliser.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out before the first visit."""
        super().setup(learner, probes, seed)
        self._own = transfer.Scratch.beside(learner, torch_generator(seed, "init", 0))
        self._visits = 0
        self.params = self._untrained(0)

    @property
    def teacher(self) -> MetaLearner:
        """PPO on plain weights, whatever the learner adapts."""
        return self._own

    @property
    def policy(self) -> Policy:
        """A network of its own form."""
        return self._own.policy

    def begin(self, visit: Visit) -> dict[str, Any]:
        """A fresh random initialisation."""
        self.params, self._step = self._untrained(self._visits), 0
        return {}

    def end(self) -> dict[str, Any]:
        """Nothing is kept."""
        self._visits += 1
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The policy, and how many visits are over."""
        return super().state_dict() | {"visits": torch.tensor(self._visits)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy, and how many visits are over."""
        super().load_state_dict(state)
        self._visits = int(state["visits"])


@dataclass(kw_only=True, config={"extra": "forbid"})
class SnapshotAverage(PolicyAgent):
    """Every visit starts from the mean of the policies that all visits so far ended with.

    What a memory is worth that does not know which of its policies to take; "average" among the
    warm starts of FAME (ICLR 2026). The mean is kept as it runs: one policy, however many visits.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation and no snapshot."""
        super().setup(learner, probes, seed)
        self._mean, self._visits = torch.zeros_like(self.params), 0

    def begin(self, visit: Visit) -> dict[str, Any]:
        """The mean of the snapshots; before the first, the meta-initialisation."""
        super().begin(visit)
        if self._visits > 0:
            self.params, self._step = self._mean.clone(), self.learner.meta_steps
        return {}

    def end(self) -> dict[str, Any]:
        """One more snapshot."""
        self._visits += 1
        self._mean = self._mean + (self.params - self._mean) / self._visits
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the mean."""
        own = {"snapshots.mean": self._mean, "visits": torch.tensor(self._visits)}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy and the mean."""
        super().load_state_dict(state)
        self._mean = state["snapshots.mean"].to(self.params.device)
        self._visits = int(state["visits"])
