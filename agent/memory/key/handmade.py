"""What the linear models of the likelihood key are linear in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.policy import ObsNormalizer
from agent.types import Trajectories


@runtime_checkable
class Features(Protocol):
    """Functions of a step. Settings are fields; what was fitted is in ``state_dict``.

    Observations and their changes come normalised, actions as they were applied (clipped to +-1),
    all float64 ``[..., O]`` and ``[..., A]``. One column should be the constant 1.
    """

    def fit(self, probes: Sequence[Trajectories], normalizer: ObsNormalizer) -> None:
        """Learn from probes of the training tasks, if there is anything to be learned."""
        ...

    def reward(self, obs: Tensor, action: Tensor, change: Tensor) -> Tensor:
        """What the reward is linear in, ``[..., F]``."""
        ...

    def dynamics(self, obs: Tensor, action: Tensor) -> Tensor:
        """What the change of the observation is linear in, ``[..., F]``."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that was fitted."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what was fitted elsewhere."""
        ...


@dataclass(kw_only=True, config={"extra": "forbid"})
class HandMade:
    """Reward on (s, ds, a, |a|^2, 1), dynamics on (s, a, 1); nothing is learned."""

    squares: bool = False
    """Also the square of each of s and ds (reward), of s and a (dynamics)."""

    def fit(self, probes: Sequence[Trajectories], normalizer: ObsNormalizer) -> None:
        """See ``Features``."""

    def reward(self, obs: Tensor, action: Tensor, change: Tensor) -> Tensor:
        """See ``Features``."""
        energy = action.square().sum(-1, keepdim=True)
        columns = [obs, change, action, energy, torch.ones_like(energy)]
        more = [obs.square(), change.square()] if self.squares else []
        return torch.cat([*columns, *more], -1)

    def dynamics(self, obs: Tensor, action: Tensor) -> Tensor:
        """See ``Features``."""
        columns = [obs, action, torch.ones_like(obs[..., :1])]
        more = [obs.square(), action.square()] if self.squares else []
        return torch.cat([*columns, *more], -1)

    def state_dict(self) -> dict[str, Tensor]:
        """See ``Features``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See ``Features``."""
