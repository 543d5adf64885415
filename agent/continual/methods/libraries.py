"""One policy per task, by its true name: the upper bound of any retrieval."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.life import Hints
from agent.continual.methods.common import packed, unpacked
from agent.continual.methods.parts import told_task
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes


@dataclass(kw_only=True, config={"extra": "forbid"})
class OracleLibrary(PolicyAgent):
    """Every visit goes on from the policy that the last visit to the same task ended with.

    It is told which task that is: nothing is forgotten, nothing is shared.
    """

    needs: ClassVar[Hints] = Hints(task=True, boundary=True)
    isolates: ClassVar[bool] = True

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with an empty library."""
        super().setup(learner, probes, seed)
        self._names: list[str] = []
        self._snapshots = self.params[:0]
        """``[N, P]``, a row for each name."""
        self._task = ""

    def begin(self, visit: Visit) -> dict[str, Any]:
        """The task's own snapshot; the first time, the meta-initialisation."""
        super().begin(visit)
        self._task, rows = told_task(visit), len(self._names)
        if self._task not in self._names:
            return {"null": 1.0, "rows": rows}
        row = self._names.index(self._task)
        self.params, self._step = self._snapshots[[row]], self.learner.meta_steps
        known = {"row": row, "likeliest": row, "weight": 1.0, "posterior": {row: 1.0}}
        return known | {"null": 0.0, "rows": rows}

    def end(self) -> dict[str, Any]:
        """What the visit ended with is the task's snapshot."""
        if self._task not in self._names:
            self._names.append(self._task)
            self._snapshots = torch.cat([self._snapshots, self.params])
        row = self._names.index(self._task)
        self._snapshots = self._snapshots.clone()
        self._snapshots[row] = self.params[0]
        return {"row": row, "score": self.score, "rows": len(self._names)}

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the library."""
        library = {"names": self._names, "params": self._snapshots}
        own = packed("snapshots", library) | packed("visit", {"task": self._task})
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy and the library."""
        super().load_state_dict(state)
        library = unpacked("snapshots", state, self.params.device)
        self._names, self._snapshots = library["names"], library["params"]
        self._task = unpacked("visit", state, self.params.device)["task"]
