"""Agents of the stream: what they start a visit from is all that tells them apart.

A visit is ``begin`` (choose where to start), ``improve`` until the budget is spent, ``end``.
``params [1, P]`` is the policy at any time; who evaluates it cannot teach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.types import Recall, Trajectories


class StreamAgent(Protocol):
    """What the lifetime runner needs of an agent."""

    params: Tensor
    """The policy now, ``[1, P]``."""
    score: float
    """Mean return of the episodes that it last acted in."""

    @property
    def pending(self) -> bool:
        """Whether it has episodes that it has not learned from yet."""
        ...

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Be born: with a meta-initialisation, and probes from which to learn to tell tasks."""
        ...

    def begin(self, visit: Visit) -> dict[str, Any]:
        """A visit begins (to which task is not said). Returns what was recalled, for the record."""
        ...

    def improve(self, visit: Visit) -> None:
        """Act for some episodes and learn from them."""
        ...

    def end(self) -> dict[str, Any]:
        """The visit is over. Returns what was written, for the record."""
        ...

    def memory_facts(self) -> list[dict[str, float]]:
        """What there is to say of each row of its memory; nothing without one."""
        ...

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """Write the rows to a folder, for other runs, with names (by row) for readers."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that outlives a visit."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        ...


@dataclass(kw_only=True, config={"extra": "forbid"})
class MetaInit:
    """The agent without memory: every visit starts from the meta-initialisation."""

    episodes: Annotated[int, Field(ge=1)] = 6
    """Episodes per adaptation step."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation."""
        self.learner = learner
        self.params = self._meta_init()
        self.score = float("nan")
        self._step = 0

    @property
    def pending(self) -> bool:
        """It learns from all episodes at once."""
        return False

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Back to the meta-initialisation."""
        self.params, self._step = self._meta_init(), 0
        return {}

    def improve(self, visit: Visit) -> None:
        """One adaptation step on fresh episodes."""
        self._learn(self._collect(visit), *self._memory_term())

    def end(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def memory_facts(self) -> list[dict[str, float]]:
        """No memory, no rows."""
        return []

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """There is nothing to be written."""

    def state_dict(self) -> dict[str, Tensor]:
        """The policy."""
        return {"params": self.params, "step": torch.tensor(self._step)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy."""
        self.params = state["params"].to(self.params.device)
        self._step = int(state["step"])

    def _meta_init(self) -> Tensor:
        return self.learner.theta.detach()[None]

    def _collect(self, visit: Visit) -> Trajectories:
        """The episodes of the next adaptation step."""
        return visit.collect(self.params, self._batch(visit.remaining))

    def _batch(self, left: int) -> int:
        """Episodes of the next step: as set, unless the visit would end with a few left over."""
        return left if left < 2 * self.episodes else self.episodes

    def _memory_term(self) -> tuple[Recall | None, float]:
        """What the rule's last term pulls towards, and how strongly; without memory, nothing."""
        return None, 0.0

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        self.score = float(episodes.mean_return())
        self.params = self.learner.step(self.params, episodes, self._step, recall, beta)
        self._step += 1


@dataclass(kw_only=True, config={"extra": "forbid"})
class Finetune(MetaInit):
    """One policy, fine-tuned in sequence: every visit starts where the last one ended."""

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Go on with the same policy."""
        return {}
