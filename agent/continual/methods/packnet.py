"""PackNet: every task keeps the largest of the weights that are left, and they never move again."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint
from agent.continual.agents import PolicyAgent
from agent.continual.life import Hints
from agent.continual.methods.common import packed, unpacked
from agent.continual.methods.parts import told_task
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes

_OF_A_VISIT = ("task", "pruned", "retrain_at", "free")
"""What it knows of the visit that it is in, each in an attribute of that name."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class PackNet(PolicyAgent):
    """One network for all tasks, divided between them by pruning (Mallya & Lazebnik 2018).

    A new task trains all weights that are nobody's, from where the meta-initialisation has them,
    beside those of earlier tasks; keeps the largest, an equal share of each layer; and trains on
    with the others at zero. Biases and log-stds, few as they are, each task has for itself. At a
    re-visit only these are trained: the task's weights may be part of later tasks' networks.
    """

    needs_weights: ClassVar[bool] = True

    needs: ClassVar[Hints] = Hints(task=True, boundary=True)
    isolates: ClassVar[bool] = True

    tasks: Annotated[int, Field(ge=1)] = 4
    """Tasks expected in a life, which share the weights evenly; further ones own no weight."""
    retrain: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    """Share of a new task's episodes that is acted in after pruning, at least; 0: none."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with weights that are nobody's."""
        super().setup(learner, probes, seed)
        # Weights and biases of each layer in turn, then the log-stds (GaussianMlp.segments).
        self._sizes = learner.policy.segments
        last = len(self._sizes) - 1
        kinds = [torch.full((n,), i % 2 == 0 and i < last) for i, n in enumerate(self._sizes)]
        self._is_weight = torch.cat(kinds).to(self.params.device)
        """``[P]``; all others are each task's own."""
        self._names: list[str] = []
        self._own = self.params[:0, ~self._is_weight]
        """Biases and log-stds, a row for each name."""
        self._weights = torch.zeros_like(self.params[0])
        """``[P]``, of all tasks together."""
        self._owner = torch.zeros_like(self._weights, dtype=torch.int16)
        """``[P]`` number of the task, from 1, that a weight belongs to; 0: nobody's."""
        self._task, self._pruned, self._retrain_at = "", True, 0
        self._free = torch.ones_like(self._is_weight)
        """``[P]``, what may move."""

    def begin(self, visit: Visit) -> dict[str, Any]:
        """The task's own network; a new task begins with all that there is."""
        super().begin(visit)
        self._task = told_task(visit)
        self._pruned = self._task in self._names
        self._retrain_at = math.ceil(self.retrain * (visit.used + visit.remaining))
        taken = self._owner > 0
        if self._pruned:
            number, self._step = self._names.index(self._task) + 1, self.learner.meta_steps
            params = torch.where(taken & (self._owner <= number), self._weights, 0.0)
            params[~self._is_weight] = self._own[number - 1]
            self.params, self._free = params[None], ~self._is_weight
        else:
            self.params = torch.where(taken, self._weights, self.params)
            self._free = ~taken
        return {}

    def improve(self, visit: Visit) -> None:
        """One adaptation step; before the first one that is of the share kept for it, prune."""
        left = visit.remaining - self._batch(visit.remaining)
        if not self._pruned and left < self._retrain_at:
            self._prune()
        super().improve(visit)

    def constraint(self) -> Constraint:
        """What other tasks own stays, and what was pruned stays zero."""
        return Constraint(free=self._free)

    def end(self) -> dict[str, Any]:
        """What the task has learned is its own from now on."""
        if not self._pruned:
            self._prune()
        own = self.params[:, ~self._is_weight]
        if self._task in self._names:
            self._own = self._own.clone()
            self._own[self._names.index(self._task)] = own[0]
        else:
            self._names.append(self._task)
            self._own = torch.cat([self._own, own])
            mine = self._is_weight & self._free
            self._weights = torch.where(mine, self.params[0], self._weights)
            self._owner = self._owner.masked_fill(mine, len(self._names))
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The policy, the weights of all tasks, whose they are, and what is each one's own."""
        shared = {"weights.values": self._weights, "weights.owner": self._owner}
        own = packed("own", {"names": self._names, "values": self._own})
        visit = packed("visit", {name: getattr(self, f"_{name}") for name in _OF_A_VISIT})
        return super().state_dict() | shared | own | visit

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy, the weights of all tasks, whose they are, and what is each one's own."""
        super().load_state_dict(state)
        device = self.params.device
        self._weights = state["weights.values"].to(device)
        self._owner = state["weights.owner"].to(device)
        own = unpacked("own", state, device)
        self._names, self._own = own["names"], own["values"]
        for name, value in unpacked("visit", state, device).items():
            setattr(self, f"_{name}", value)

    def _prune(self) -> None:
        """Of each layer's free weights the largest are kept, the others become zero."""
        others = max(self.tasks - len(self._names) - 1, 0)  # that are still to come
        params, free = self.params[0].clone(), self._free.clone()
        parts = zip(params.split(self._sizes), free.split(self._sizes), strict=True)
        for values, movable in list(parts)[:-1:2]:  # views of the weights of one layer
            at = movable.nonzero()[:, 0]
            kept = math.ceil(len(at) / (others + 1))
            order = values[at].abs().argsort(descending=True, stable=True)
            dropped = at[order[kept:]]
            values[dropped], movable[dropped] = 0.0, False
        self.params, self._free, self._pruned = params[None], free, True
