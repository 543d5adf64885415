"""A visit: one task as an agent meets it, which can act until its budget is spent, and no more."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from agent.memory.guard import Guard
from agent.policy import GaussianMlp
from agent.rollout import TaskBatch
from agent.types import Trajectories
from envs.task import Task, TaskDistribution


class Visit:
    """Budgeted access to one task.

    The harness owns the counter: probes, trials and training are charged alike.
    """

    def __init__(
        self,
        family: TaskDistribution,
        task: Task,
        policy: GaussianMlp,
        budget_episodes: int,
        rng: np.random.Generator,
    ) -> None:
        self._family, self._task, self._policy, self._rng = family, task, policy, rng
        self._batches: dict[int, TaskBatch] = {}
        self.remaining = budget_episodes
        """Episodes left to act in."""

    def __enter__(self) -> Self:
        """Use the visit in a ``with`` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the simulators."""
        for batch in self._batches.values():
            batch.__exit__(kind, error, trace)

    @property
    def told(self) -> Tensor:
        """Descriptor ``[1, d]`` of the task: for oracles alone."""
        described = self._family.describe([self._task])
        return torch.as_tensor(described, dtype=torch.float32, device=self._policy.device)

    @property
    def steps_used(self) -> int:
        """Env steps taken in this visit."""
        return sum(batch.steps_used for batch in self._batches.values())

    @property
    def physics_s(self) -> float:
        """Wall seconds spent inside the simulator."""
        return sum(batch.physics_s for batch in self._batches.values())

    def collect(self, params: Tensor, episodes: int, guard: Guard | None = None) -> Trajectories:
        """Act in ``episodes`` episodes with ``params [1, P]`` (T = 1), taken off the budget."""
        if not 0 < episodes <= self.remaining:
            raise ValueError(
                f"asked for {episodes} episodes, but the visit has {self.remaining} left"
            )
        if episodes not in self._batches:
            self._batches[episodes] = TaskBatch(
                self._family, [self._task], episodes, self._policy, self._rng
            )
        self.remaining -= episodes
        return self._batches[episodes].collect(params, guard=guard)
