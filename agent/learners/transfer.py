"""Transfer without meta-learning: the baselines of every meta-learner.

``Finetune`` is trained on all tasks and goes on learning in each, ``ZeroShot`` is trained on all
and left as it is, ``Scratch`` learns each task from nothing.
"""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint
from agent.learners.base import Learner, MetaLearner, Metrics, under
from agent.learners.maml import Maml
from agent.policy import GaussianMlp
from agent.rollout import TaskBatch
from agent.types import Adaptation, Recall, Trajectories


@dataclass(kw_only=True, config={"extra": "forbid"})
class Finetune(Maml):
    """Multi-task PPO; in a task, PPO from the first step. Fields of the inner step are not used.

    ``multitask`` is trained alike, and then takes one step of the gradient learners' rule.
    """

    inner_steps: Annotated[int, Field(ge=0, le=0)] = 0
    """None in training."""

    @property
    def meta_steps(self) -> int:
        """No step is meta-learned."""
        return 0


@dataclass(kw_only=True, config={"extra": "forbid"})
class ZeroShot(Finetune):
    """Multi-task PPO that stays as it is in every task."""

    def step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """No step, and no pull."""
        return params


@dataclass(kw_only=True, config={"extra": "forbid"})
class Scratch(Learner):
    """A random policy that learns each task by PPO.

    All that training does for it is the observation normaliser, as for the stream's agent of the
    same name: with it, what it starts without is what others know about tasks, not about units.
    """

    @classmethod
    def beside(cls, learner: MetaLearner, generator: torch.Generator) -> Self:
        """The reference for a learner of any make: its plain network, discount and adapter."""
        made = cls(
            gamma=learner.gamma,
            gae_lambda=learner.gae_lambda,
            task_adapter=learner.task_adapter,
            sees_task=learner.sees_task,
        )
        made.setup(learner.policy.plain, generator)
        return made

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the policy."""
        super().setup(policy, generator)
        self.theta = policy.init(generator)

    def adapt(self, batch: TaskBatch) -> Adaptation:
        """Act at random, to see what observations are like."""
        return Adaptation(self.theta.expand(len(batch.tasks), -1), [])

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """Only the normaliser takes in what was seen."""
        self.policy.normalizer.update(query.obs, query.mask)
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the observation normaliser."""
        state = {"theta": self.theta}
        return state | {f"obs.{k}": v for k, v in self.policy.normalizer.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        self.theta = state["theta"].to(self.policy.device, copy=True)
        self.policy.normalizer.load_state_dict(under(state, "obs."))
