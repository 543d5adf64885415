"""ANIL: almost no inner loop. Only the last layer adapts to a task (Raghu 2020).

The rest of the network is shared by all tasks, and so a row of the memory is tiny.
"""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.learners.maml import Maml


@dataclass(kw_only=True, config={"extra": "forbid"})
class Anil(Maml):
    """MAML whose adaptation moves the last layer and the standard deviations alone."""

    @property
    def free(self) -> Tensor:
        """``[P]`` bool: the head."""
        head = sum(self.policy.segments[-3:])  # its weights, its biases, the log-stds
        free = torch.zeros(self.policy.num_params, dtype=torch.bool, device=self.policy.device)
        free[-head:] = True
        return free
