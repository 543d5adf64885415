"""Reset and distil: learn each visit afresh, and let a student imitate all that was learned."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.evaluation import Actor
from agent.continual.methods.parts import Distilling
from agent.continual.methods.replay import Rehearsing
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes


@dataclass(kw_only=True, config={"extra": "forbid"})
class Distill(Rehearsing):
    """Reset & Distill (Ahn 2025): no transfer into a visit, so no negative one.

    Every visit is learned from the meta-initialisation. When it is over, a student is trained, by
    KL, to do what the policies of all visits did at their ends. What is evaluated between visits
    is the student; it is not what the next visit begins with.
    """

    distilling: Distilling = field(default_factory=lambda: Distilling(steps=500))
    """How the student is trained after each visit."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with a student that has learned nothing."""
        super().setup(learner, probes, seed)
        self._student = self.params.clone()

    def end(self) -> dict[str, Any]:
        """Train the student on what this visit has added."""
        super().end()
        if len(self._shown) == 0:
            return {}
        obs, did = self._shown.all()
        self._student = self.distilling.distilled(self.policy, self._student, obs, did)
        return {}

    def actor(self, visit: Visit) -> Actor:
        """The student."""
        return Actor(self.policy, self._student)

    def state_dict(self) -> dict[str, Tensor]:
        """The policy, the student and what it learns from."""
        return super().state_dict() | {"student.params": self._student}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy, the student and what it learns from."""
        super().load_state_dict(state)
        self._student = state["student.params"].to(self.params.device)
