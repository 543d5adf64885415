"""What a meta-learner is: three verbs and a state."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from agent.adapter import Constraint, PpoAdapter
from agent.policy import GaussianMlp
from agent.rollout import TaskBatch
from agent.types import Adaptation, Recall, Trajectories

Metrics = dict[str, float]


class MetaLearner(Protocol):
    """Learns, across tasks, how to start and how to adapt.

    Hyper-parameters are fields; state is in ``state_dict``.
    """

    policy: GaussianMlp
    """Turns parameters into actions; carries the observation normaliser."""
    theta: Tensor
    """The meta-initialisation, ``[P]``."""

    task_adapter: PpoAdapter
    """Adaptation after the meta-learned steps."""
    sees_task: bool
    """Whether the task's parameters are among its inputs (an oracle)."""

    @property
    def meta_steps(self) -> int:
        """How many steps the meta-learned rule makes before plain task adaptation takes over."""
        ...

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Make the initial state."""
        ...

    def step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """Adaptation step ``n`` (from 0), ``params [T, P] -> [T, P]``, with any pull of memory."""
        ...

    def advantages(self, episodes: Trajectories) -> Trajectories:
        """The episodes with advantages under this learner's discount."""
        ...

    def adapt(self, batch: TaskBatch) -> Adaptation:
        """Adapt to the tasks of the batch as in training."""
        ...

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """One outer step from the episodes ``query`` of the adapted policies."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that learning goes on from."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        ...
