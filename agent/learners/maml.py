"""MAML with ProMP's outer objective and learned step sizes.

Finn 2017 (the initialisation), Rothfuss 2019 (the clipped outer objective and the low-variance
curvature), Li 2017 (Meta-SGD: a step size for every parameter). ``inner_steps=0`` is multi-task
PPO, the control that shows what meta-learning adds; with revealed task parameters it is the oracle.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint, GradientAdapter, PpoAdapter
from agent.advantage import estimate
from agent.learners.base import Metrics
from agent.losses import clipped_surrogate
from agent.policy import GaussianMlp
from agent.rollout import TaskBatch
from agent.types import Adaptation, Recall, Trajectories

_RATE_RANGE = (0.0, 2.0)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Maml:
    """Second-order MAML on stacked flat parameters."""

    inner_steps: Annotated[int, Field(ge=0, le=10)] = 1
    """Gradient steps that the initialisation is trained for."""
    inner_rate: Annotated[float, Field(ge=0, le=2)] = 0.1
    """alpha, the inner step size; the start of the learned ones."""
    learn_rates: bool = True
    """Learn alpha for each parameter (Meta-SGD)."""
    first_order: bool = False
    """Leave the second derivatives out (FOMAML)."""
    outer_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Adam's step size for the initialisation and the rates."""
    outer_epochs: Annotated[int, Field(ge=1)] = 8
    """Outer steps per batch of episodes; the inner step is differentiated anew in each."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's clip range in the outer objective."""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Largest norm of the outer gradient."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's lambda."""
    task_adapter: PpoAdapter = field(default_factory=PpoAdapter)
    """Adaptation after the meta-learned steps."""
    sees_task: bool = False
    """Append the task's parameters to the observation: an oracle, not an agent."""

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the initial policy."""
        self.policy = policy
        self.theta = policy.init(generator).requires_grad_(True)
        rates = torch.full_like(self.theta, self.inner_rate, requires_grad=self.learn_rates)
        self.rates = rates
        self._optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Adam:
        learned = (
            [self.theta, self.rates] if self.learn_rates and self.inner_steps else [self.theta]
        )
        return torch.optim.Adam(learned, lr=self.outer_rate)

    @property
    def meta_steps(self) -> int:
        """Steps made by the meta-learned rule; the control, trained for none, still takes one."""
        return max(self.inner_steps, 1)

    @property
    def adapter(self) -> GradientAdapter:
        """The inner rule with the present step sizes."""
        return GradientAdapter(self.rates, self.first_order)

    def initial(self, tasks: int) -> Tensor:
        """The meta-initialisation for each of T tasks, ``[T, P]``."""
        return self.theta.expand(tasks, -1)

    def advantages(self, episodes: Trajectories) -> Trajectories:
        """The episodes with advantages under this learner's discount."""
        return estimate(episodes, self.policy.normalizer, self.gamma, self.gae_lambda)

    def step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """Step ``n`` of a task at deployment: the meta-learned rule first, PPO afterwards."""
        adapter = self.adapter if n < self.meta_steps else self.task_adapter
        with torch.no_grad():
            ready = self.advantages(episodes)
            return adapter.step(self.policy, params, ready, recall, beta, constraint)

    def adapt(self, batch: TaskBatch) -> Adaptation:
        """Collect and step ``inner_steps`` times from the initialisation, on all tasks at once."""
        params, support = self.initial(len(batch.tasks)).detach(), []
        for _ in range(self.inner_steps):
            episodes = self.advantages(batch.collect(params))
            with torch.no_grad():
                params = self.adapter.step(self.policy, params, episodes)
            support.append(episodes)
        return Adaptation(params, support)

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """ProMP's outer step: clipped surrogate, differentiated through the adaptation."""
        query = self.advantages(query)
        losses = []
        for _ in range(self.outer_epochs):
            loss = self.meta_loss(adaptation.support, query).mean()
            self._optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_([self.theta], self.max_grad_norm)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    "the meta-gradient is not finite; a smaller learner.inner_rate or "
                    "learner.outer_rate may help"
                )
            self._optimizer.step()
            with torch.no_grad():
                self.rates.clamp_(*_RATE_RANGE)
            losses.append(float(loss.detach()))
        for episodes in (*adaptation.support, query):
            self.policy.normalizer.update(episodes.obs, episodes.mask)
        return {"train/meta_loss": losses[-1], "train/rate_mean": float(self.rates.detach().mean())}

    def meta_loss(self, support: list[Trajectories], query: Trajectories) -> Tensor:
        """Loss ``[T]`` of the policies that the inner rule makes of the present initialisation."""
        params = self.initial(query.reward.shape[0])
        for episodes in support:
            params = self.adapter.step(self.policy, params, episodes)
        return clipped_surrogate(self.policy, params, query, self.clip)

    def state_dict(self) -> dict[str, Tensor]:
        """Initialisation, step sizes, Adam's moments and the observation normaliser."""
        state = {"theta": self.theta.detach(), "rates": self.rates.detach()}
        for i, slot in self._optimizer.state_dict()["state"].items():
            state |= {f"adam.{i}.{name}": value for name, value in slot.items()}
        return state | {f"obs.{k}": v for k, v in self.policy.normalizer.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        with torch.no_grad():
            self.theta.copy_(state["theta"])
            self.rates.copy_(state["rates"])
        self.policy.normalizer.load_state_dict(_under(state, "obs."))
        self._optimizer = self._new_optimizer()
        saved = self._optimizer.state_dict()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(state, "adam.").items():
            index, _, key = name.partition(".")
            slots.setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict(saved | {"state": slots})


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose name starts with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
