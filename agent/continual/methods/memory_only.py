"""Engram without meta-learning: what its memory is worth by itself."""

from __future__ import annotations

import copy
from dataclasses import field
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from agent.continual.engram import Engram
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.seeding import torch_generator


def _no_key() -> dict[str, Any]:
    return {"_target_": "agent.memory.key.given.NoKey"}


def _trials() -> dict[str, Any]:
    # Without a key, that one row was wrong says nothing of the others.
    return {"_target_": "agent.memory.reader.guarded.Guarded", "rival": 0.0}


@dataclass(kw_only=True, config={"extra": "forbid"})
class MemoryOnly(Engram):
    """Engram's memory around a random initialisation: what is left of it without meta-learning.

    A key is fitted before the life begins, to probes made by the meta-initialisation of tasks from
    meta-training; a random policy has none such. So the default key tells nothing, and what is
    remembered is found by trying it, which is charged like all else. With a key that is fitted
    (``key``), only the initialisation and its first step are taken away. The observation
    normaliser of meta-training is left to it.
    """

    needs_weights: ClassVar[bool] = True

    key: dict[str, Any] = field(default_factory=_no_key)
    """What says which task it is: ``_target_`` and settings of a ``memory.key.base.Key``."""
    reader: dict[str, Any] = field(default_factory=_trials)
    """How the memory is read: ``_target_`` and settings of a ``memory.reader.base.Reader``."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with an empty memory around a random initialisation."""
        untaught = copy.copy(learner)
        untaught.theta = learner.policy.init(torch_generator(seed, "init", 0)).detach()
        super().setup(untaught, probes, seed)

    def begin(self, visit: Visit) -> dict[str, Any]:
        """As Engram, but the meta-learned step is not for this initialisation."""
        told = super().begin(visit)
        self._step = self._first_step = self.learner.meta_steps
        return told
