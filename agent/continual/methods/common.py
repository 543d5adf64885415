"""What several methods remember: the episodes of a visit, and any values in the saved state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.methods.parts import visited
from agent.continual.packing import pack, unpack
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.types import Recall, Trajectories


@dataclass(kw_only=True, config={"extra": "forbid"})
class Recording(PolicyAgent):
    """Remembers the episodes that it learned from last, until the visit is over."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation and no episodes."""
        super().setup(learner, probes, seed)
        self._last: Trajectories | None = None

    def end(self) -> dict[str, Any]:
        """The episodes are not kept."""
        self._last = None
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the last episodes."""
        return super().state_dict() | packed("visit", {"last": self._last})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy and the last episodes."""
        super().load_state_dict(state)
        self._last = unpacked("visit", state, self.params.device)["last"]

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        super()._learn(episodes, recall, beta)
        self._last = episodes

    def _visited(self, most: int) -> Tensor:
        """Observations ``[n, O]`` of the last episodes, evenly spread; n is at most ``most``."""
        if self._last is None:
            return self.params.new_zeros(0, self.learner.policy.obs_size)
        obs = visited(self._last)
        return obs[:: max(1, -(-len(obs) // most))]


def packed(kind: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Values as tensors, under names that say which kind of state they are."""
    return {f"{kind}.{name}": value for name, value in pack(values).items()}


def unpacked(kind: str, state: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """The values of one kind."""
    start = f"{kind}."
    own = {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}
    return unpack(own, device)
