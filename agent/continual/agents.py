"""Agents of the stream: what they start a visit from is all that tells them apart.

A visit is ``begin`` (choose where to start), ``improve`` until the budget is spent, ``end``.
``params [1, P]`` is the policy at any time; who evaluates it cannot teach it.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Pull
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.keys import KeyMetric, task_coefficients
from agent.memory.store import EpisodicMemory, MemoryConfig
from agent.types import Recall, Trajectories


class StreamAgent(Protocol):
    """What the lifetime runner needs of an agent."""

    params: Tensor
    """The policy now, ``[1, P]``."""
    score: float
    """Mean return of the episodes that it last acted in."""

    def setup(self, learner: MetaLearner, metric: KeyMetric) -> None:
        """Be born: with a meta-initialisation and a way to tell tasks apart."""
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

    def setup(self, learner: MetaLearner, metric: KeyMetric) -> None:
        """Start out with the meta-initialisation."""
        self.learner, self.metric = learner, metric
        self.params = self._meta_init()
        self.score = float("nan")
        self._step = 0

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
        return visit.collect(self.params, min(self.episodes, visit.remaining))

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


@dataclass(kw_only=True, config={"extra": "forbid"})
class Engram(MetaInit):
    """The agent with episodic memory: probe, recall through a gate, adapt, write if worth it."""

    probe_episodes: Annotated[int, Field(ge=1)] = 2
    """Episodes of the meta-initialisation, charged as any, from which the task is recognised."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """The episodic memory."""
    pull: Pull = field(default_factory=Pull)
    """The memory's term in each adaptation step; off by default, as the jump does the work."""
    jump: bool = True
    """Start from what was recalled; if false, only the pull uses it (the literal rule)."""

    def setup(self, learner: MetaLearner, metric: KeyMetric) -> None:
        """Start out with an empty memory around the meta-initialisation."""
        super().setup(learner, metric)
        self.store = EpisodicMemory(self.memory, len(metric.weight), learner.theta.detach().clone())
        self._recall: Recall | None = None
        self._probe: Trajectories | None = None
        self._first_step = 0

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Probe with the meta-initialisation, read the memory, and start from what it says."""
        super().begin(visit)
        probe = visit.collect(self.params, min(self.probe_episodes, visit.remaining))
        self._key = self.metric.key(task_coefficients(probe, self.learner.policy.normalizer))[0]
        self._baseline = self.score = float(probe.mean_return())
        self._recall, self._probe = self.store.read(self._key[None]), probe
        recall = self._recall
        if self.jump and bool(recall.accepted):
            self._probe = None  # made by another policy than the one that goes on
            self.params = self.params + recall.pull(self.params)
            self._step = self.learner.meta_steps  # the meta-learned step was learned for theta_0
        self._first_step = self._step
        row = int(recall.index[0, 0]) if bool(recall.accepted) else None
        nearest = float(recall.distance[0, 0])
        return {
            "row": row,
            "distance": nearest if self.store.size else None,
            "rows": self.store.size,
        }

    def _collect(self, visit: Visit) -> Trajectories:
        """As without memory, but a probe made by the very policy that goes on is not wasted."""
        probe, self._probe = self._probe, None
        if probe is None:
            return super()._collect(visit)
        more = min(self.episodes - probe.reward.shape[1], visit.remaining)
        return probe.joined(visit.collect(self.params, more)) if more > 0 else probe

    def _memory_term(self) -> tuple[Recall | None, float]:
        return self._recall, self.pull.at(self._step - self._first_step)

    def end(self) -> dict[str, Any]:
        """Keep the policy if it beats the meta-initialisation and, if any, its task's row.

        Its score is that of the last episodes, which were acted one adaptation step earlier:
        measuring the very last policy would cost episodes that can be learned from instead.
        """
        row = self.store.write(self._key, self.params[0], self.score, self._baseline)
        return {"row": row, "score": self.score, "rows": self.store.size}

    def memory_facts(self) -> list[dict[str, float]]:
        """Score, gain over the meta-initialisation and visits of each row."""
        store = self.store
        columns = zip(store.scores[: store.size], store.gains, store.visits, strict=False)
        return [{"score": float(s), "gain": float(g), "visits": int(v)} for s, g, v in columns]

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the memory."""
        return super().state_dict() | {f"memory.{k}": v for k, v in self.store.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy and the memory."""
        super().load_state_dict(state)
        rows = {k.removeprefix("memory."): v for k, v in state.items() if k.startswith("memory.")}
        self.store.load_state_dict(rows)
