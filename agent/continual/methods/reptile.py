"""Reptile on a stream: where visits start moves, at the end of each, towards where it ended."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.life import Hints
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.learners.reptile import moved_towards
from agent.memory.probes import TrainingProbes


@dataclass(kw_only=True, config={"extra": "forbid"})
class ReptileOnline(PolicyAgent):
    """Reptile, one task at a time (Nichol 2018): meta-learning goes on for the whole life.

    Every visit starts from one initialisation, ``theta <- theta + epsilon (theta_visit - theta)``
    after it. Between fine-tuning (epsilon 1) and no memory at all (epsilon 0).
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)
    """When a visit ends."""

    outer_rate: Annotated[float, Field(ge=0, le=1)] = 0.25
    """epsilon of the first visit."""
    halving_visits: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Visits after which epsilon has halved first, as h / (h + visits); None: it stays."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation."""
        super().setup(learner, probes, seed)
        self._start, self._visits = self._meta_init(), 0

    @property
    def epsilon(self) -> float:
        """The outer rate of this visit."""
        if self.halving_visits is None:
            return self.outer_rate
        return self.outer_rate * self.halving_visits / (self.halving_visits + self._visits)

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Start from the initialisation; the meta-learned step is made for the first one alone."""
        self.params = self._start.clone()
        self._step = 0 if self._visits == 0 else self.learner.meta_steps
        return {}

    def end(self) -> dict[str, Any]:
        """Move the initialisation."""
        self._start = moved_towards(self._start, self.params, self.epsilon)
        self._visits += 1
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the initialisation."""
        own = {"start.params": self._start, "visits": torch.tensor(self._visits)}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy and the initialisation."""
        super().load_state_dict(state)
        self._start = state["start.params"].to(self.params.device)
        self._visits = int(state["visits"])
