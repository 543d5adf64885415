"""Reptile: move the initialisation towards where ordinary adaptation ends (Nichol 2018).

    theta <- theta + epsilon * mean_i(theta_i - theta)

No derivative is taken through the adaptation. With a single gradient step it is multi-task
learning; what it learns about adaptation comes from the second step on.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint, GradientAdapter
from agent.distributed import mean_over_processes
from agent.learners.base import Learner, Metrics, refuse_unless_finite, under
from agent.policy import GaussianMlp
from agent.rollout import TaskBatch
from agent.types import Adaptation, Recall, Trajectories


def moved_towards(theta: Tensor, ends: Tensor, rate: float) -> Tensor:
    """``theta [..., P]`` moved ``rate`` of the way to the mean of ``ends [T, P]``; T may be 1."""
    return theta + rate * (ends - theta).mean(0)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Reptile(Learner):
    """Reptile on stacked flat parameters."""

    inner: Literal["gradient", "ppo"] = "gradient"
    """What a step of adaptation is: one plain policy-gradient step, or one of ``task_adapter``. PPO
    goes so far that on goals all around, which average out, nothing was learned."""
    inner_steps: Annotated[int, Field(ge=1, le=50)] = 5
    """Steps from the initialisation to where it is moved; each has episodes of its own, the last
    those that are collected after adaptation."""
    inner_rate: Annotated[float, Field(ge=0, le=2)] = 0.1
    """alpha, the size of a plain gradient step."""
    outer_rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """epsilon: share of the way that the initialisation is moved."""
    annealed_over: Annotated[int, Field(ge=1)] | None = None
    """Updates over which epsilon falls, evenly, to 0; None: it stays."""

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the initial policy."""
        super().setup(policy, generator)
        self.theta = policy.init(generator)
        self.updates = torch.zeros((), dtype=torch.int64)

    @property
    def meta_steps(self) -> int:
        """Plain gradient steps that the initialisation is made for; none with PPO throughout."""
        return self.inner_steps if self.inner == "gradient" else 0

    def meta_step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None,
        beta: float,
        constraint: Constraint | None,
    ) -> Tensor:
        """A plain gradient step, in training and after it."""
        ready = self.advantages(episodes)
        adapter = GradientAdapter(params.new_tensor(self.inner_rate))
        return adapter.step(self.policy, params, ready, recall, beta, constraint)

    def adapt(self, batch: TaskBatch) -> Adaptation:
        """All steps but the last, on all tasks at once."""
        params, support = self.theta.expand(len(batch.tasks), -1), []
        for n in range(self.inner_steps - 1):
            support.append(batch.collect(params))
            params = self.step(params, support[-1], n)
        return Adaptation(params, support)

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """The last step, then the move."""
        ends = self.step(adaptation.params, query, self.inner_steps - 1)
        move = mean_over_processes(moved_towards(self.theta, ends, self.epsilon) - self.theta)
        norm = move.norm()
        refuse_unless_finite(norm, "a smaller learner.inner_rate may help")
        metrics = {"train/move": float(norm), "train/epsilon": self.epsilon}
        self.theta, self.updates = self.theta + move, self.updates + 1
        for episodes in (*adaptation.support, query):
            self.policy.normalizer.update(episodes.obs, episodes.mask)
        return metrics

    @property
    def epsilon(self) -> float:
        """The outer rate of the next update."""
        if self.annealed_over is None:
            return self.outer_rate
        return self.outer_rate * max(0.0, 1 - int(self.updates) / self.annealed_over)

    def state_dict(self) -> dict[str, Tensor]:
        """Initialisation, how many updates there were, the observation normaliser."""
        state = {"theta": self.theta, "updates": self.updates}
        return state | {f"obs.{k}": v for k, v in self.policy.normalizer.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        self.theta = state["theta"].to(self.policy.device, copy=True)
        self.updates = state["updates"].cpu()
        self.policy.normalizer.load_state_dict(under(state, "obs."))
