"""Keys that are told the task (for oracles and ablations), and the key that knows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.key.base import (
    FEWEST_TASKS,
    IndistinguishableTasksError,
    NotFittedError,
    digest,
    known,
    where_known,
)
from agent.policy import ObsNormalizer
from agent.types import Trajectories

CERTAIN = 30.0
"""Log-likelihood ratio of what is known for sure; e^30 is beyond any prior."""


class GivenKey:
    """What keys that do not look at the episodes have in common."""

    KIND: str
    _scale: Tensor | None = None
    """``[d]``, what one unit of each number given is."""

    @property
    def size(self) -> int:
        """D."""
        return len(self._fitted())

    @property
    def version(self) -> str:
        """See ``base.Key``."""
        return digest(self.KIND, {}, self.state_dict())

    def encode(self, episodes: Trajectories, given: Tensor | None = None) -> Tensor:
        """What is given, ``[T, d]``; it is known even of a task whose episodes all diverged."""
        told = self._told(given)
        if told.shape != (len(episodes.reward), self.size):
            raise ValueError(
                f"{self.KIND} key: expected {self.size} numbers for each of "
                f"{len(episodes.reward)} tasks, got {tuple(told.shape)}"
            )
        return told.float()

    def joined(self, first: Tensor, more: Tensor) -> Tensor:
        """See ``base.Key``: both say the same."""
        return torch.where(torch.isfinite(first).all(-1)[:, None], first, more)

    def state_dict(self) -> dict[str, Tensor]:
        """See ``base.Key``."""
        return {"scale": self._fitted()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See ``base.Key``."""
        self._scale = state["scale"]

    def _fitted(self) -> Tensor:
        if self._scale is None:
            raise NotFittedError(f"{self.KIND} key: call fit or load_state_dict first")
        return self._scale

    def _told(self, given: Tensor | None) -> Tensor:
        if given is None:
            raise ValueError(f"{self.KIND} key: needs to be given what the task is")
        return given.double()


@dataclass(kw_only=True, config={"extra": "forbid"})
class Descriptor(GivenKey):
    """The parameters of the task are given: an oracle's key. Near parameters, like tasks."""

    KIND = "descriptor"

    def fit(
        self,
        probes: Sequence[Trajectories],
        normalizer: ObsNormalizer,
        given: Tensor | None = None,
    ) -> None:
        """See ``base.Key``: the unit is a third of the distance to the nearest other task.

        So that the nearest other training task scores e^(-9/2) of the same one.
        """
        told = self._told(given).unique(dim=0)
        if len(told) < 2 or len(self._told(given)) < FEWEST_TASKS:
            raise IndistinguishableTasksError(
                f"descriptor key: need at least {FEWEST_TASKS} tasks, not all the same, "
                f"got {len(self._told(given))} with {len(told)} different descriptors"
            )
        apart = torch.cdist(told, told).fill_diagonal_(torch.inf).amin(1).median()
        self._scale = torch.full_like(told[0], float(apart) / 3)

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``base.Key``: minus half the squared distance in units."""
        scale = self._fitted()
        return where_known(
            -torch.cdist(query.double() / scale, rows.double() / scale).square() / 2, query, rows
        )


@dataclass(kw_only=True, config={"extra": "forbid"})
class OracleId(GivenKey):
    """The task's identity is given: a memory that is never wrong about which row it is."""

    KIND = "oracle_id"

    def fit(
        self,
        probes: Sequence[Trajectories],
        normalizer: ObsNormalizer,
        given: Tensor | None = None,
    ) -> None:
        """See ``base.Key``: only how many numbers an identity has."""
        self._scale = torch.ones_like(self._told(given)[0])

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``base.Key``: certain, one way or the other."""
        same = (query[:, None] == rows[None]).all(-1)
        score = torch.where(same, CERTAIN, -CERTAIN).to(torch.float64)
        return where_known(score, query, rows)


@dataclass(kw_only=True, config={"extra": "forbid"})
class NoKey(GivenKey):
    """Nothing tells tasks apart: every row is as good as any other, and as a new task."""

    KIND = "none"

    def fit(
        self,
        probes: Sequence[Trajectories],
        normalizer: ObsNormalizer,
        given: Tensor | None = None,
    ) -> None:
        """See ``base.Key``: nothing is learned."""
        self._scale = torch.ones(1, dtype=torch.float64, device=normalizer.mean.device)

    def encode(self, episodes: Trajectories, given: Tensor | None = None) -> Tensor:
        """A zero for each task of which anything is known."""
        nothing = torch.zeros(len(episodes.reward), self.size, device=episodes.reward.device)
        return nothing.masked_fill(~known(episodes)[:, None], torch.nan)

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``base.Key``: 0."""
        score = torch.zeros(len(query), len(rows), dtype=torch.float64, device=query.device)
        return where_known(score, query, rows)
