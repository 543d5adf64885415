"""Keys that are points: each coordinate weighed by how well it tells the training tasks apart."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.key.base import (
    IndistinguishableTasksError,
    known,
    same_probes,
    where_known,
)
from agent.memory.key.handmade import HandMade
from agent.memory.key.summed import Seen, SummedKey
from agent.memory.sums import Sums
from agent.policy import ObsNormalizer
from agent.types import Trajectories

# How much further apart than two probes of one task those of other tasks must lie.
_CLEARLY_APART = 1.5


class WeightedKey(SummedKey):
    """The view is ``coordinates * weight``; two probes of one task lie within about 1.

    A coordinate weighs reliability / sd_within, with reliability = between / (between + within):
    what a task cannot be told by is left out, and what is left counts in units of its own noise.
    (The unbounded Fisher weight sqrt(between / within) / sd_within lets the noise of one very
    telling coordinate, a direction's reward slope, drown all others: top-1 0.40-0.52 against
    0.99-1.00 on HalfCheetah faults, scripts/benchmark.py.) Everything is then divided by the 95 %
    quantile of the same-task distance: its median would be too tight a unit where few coordinates
    count (a noiseless robot), for the distance then varies by a factor of 3.
    """

    @abstractmethod
    def coordinates(self, sums: Tensor) -> Tensor:
        """``[T, V]`` float64, from sums ``[T, S]``."""

    def fit(
        self,
        probes: Sequence[Trajectories],
        normalizer: ObsNormalizer,
        given: Tensor | None = None,
    ) -> None:
        """See ``base.Key``: the weights."""
        self._use(normalizer.state_dict())
        found = [self._coordinates_of(p) for p in probes]
        coordinates = same_probes(found)
        if told_apart(coordinates) < _CLEARLY_APART:
            raise IndistinguishableTasksError(
                "probes of different training tasks are no further apart than two probes of one "
                "task, so the memory would not know one from the other (is there only one task, or "
                "does nothing that is observed or rewarded depend on the parameters?)"
            )
        weight = reliable(coordinates)
        apart = ((coordinates[1:] - coordinates[:-1]) * weight).norm(dim=-1)
        self._weight = weight / apart.quantile(0.95)
        self._finish()

    def _coordinates_of(self, episodes: Trajectories) -> Tensor:
        self._sums_size = self.sums(episodes).shape[1]
        found = self.coordinates(self.sums(episodes))
        return found.masked_fill(~known(episodes)[:, None], torch.nan)

    @property
    def sizes(self) -> tuple[int, int]:
        """V and S."""
        return len(self._weight), self._sums_size

    def view(self, sums: Tensor) -> Tensor:
        """The weighted coordinates."""
        return self.coordinates(sums) * self._weight

    def distance(self, query: Tensor, rows: Tensor) -> Tensor:
        """``[T, N]``, float64; 1 is what 95 % of repeated probes of a task stay within."""
        size = self.sizes[0]
        return torch.cdist(query[:, :size].double(), rows[:, :size].double())

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``base.Key``: minus half the squared distance."""
        size = self.sizes[0]
        score = -self.distance(query, rows).square() / 2
        return where_known(score, query[:, :size], rows[:, :size])

    def _fitted(self) -> dict[str, Tensor]:
        return {"weight": self._weight, "sums_size": torch.tensor(self._sums_size)}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        self._weight, self._sums_size = state["weight"], int(state["sums_size"])


@dataclass(kw_only=True, config={"extra": "forbid"})
class Fisher(WeightedKey):
    """Ridge coefficients of the reward and of the one-step dynamics, weighed by reliability."""

    KIND = "fisher"

    ridge: Annotated[float, Field(gt=0)] = 1e-2
    """Penalty of the squared coefficients, in steps."""

    def sums(self, episodes: Trajectories) -> Tensor:
        """Packed sums of both regressions."""
        seen, features = Seen.of(episodes, self.normalizer), HandMade()
        reward = features.reward(seen.obs, seen.action, seen.change)
        dynamics = features.dynamics(seen.obs, seen.action)
        self._features = (reward.shape[-1], dynamics.shape[-1])
        both = [(reward, seen.reward), (dynamics, seen.change)]
        return torch.cat([Sums.of(x, y, seen.mask).packed() for x, y in both], -1)

    def coordinates(self, sums: Tensor) -> Tensor:
        """The coefficients, ``(2 O + A + 2) + (O + A + 1) O``."""
        reward, dynamics = self._features
        outputs = len(self.normalizer.mean)
        start = Sums.packed_size(reward, 1)
        parts = [
            Sums.unpacked(sums[:, :start], reward, 1),
            Sums.unpacked(sums[:, start:], dynamics, outputs),
        ]
        return torch.cat([self._solved(p).flatten(1) for p in parts], -1)

    def _solved(self, sums: Sums) -> Tensor:
        penalty = torch.full_like(sums.gram[0, 0], self.ridge)
        penalty[-1] = 0.0  # of the constant: the level of the reward must make no difference
        return torch.linalg.solve_ex(sums.gram + torch.diag(penalty), sums.cross).result

    def _fitted(self) -> dict[str, Tensor]:
        return super()._fitted() | {"features": torch.tensor(self._features)}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        super()._restore(state)
        reward, dynamics = state["features"].tolist()
        self._features = (reward, dynamics)


def reliable(coordinates: Tensor) -> Tensor:
    """Weight ``[V]`` of each coordinate, from R probes of M tasks ``[R, M, V]``."""
    within = coordinates.var(0).mean(0) + 1e-12
    # The mean of R probes varies by within / R even between equal tasks.
    between = (coordinates.mean(0).var(0) - within / len(coordinates)).clamp(min=0)
    return between / (between + within) / within.sqrt()


def told_apart(coordinates: Tensor) -> float:
    """How many times further apart other tasks lie than the same, on tasks not fitted to.

    Weights from half of the tasks are judged on the other half, for on their own half they find
    differences in pure noise. Upper quartiles are compared, since in a family of two tasks half of
    the "other" pairs are the same task.
    """
    half = coordinates.shape[1] // 2
    weight = reliable(coordinates[:, :half])
    first, second = coordinates[:2, half:] * weight
    apart = torch.cdist(first, second)
    own = torch.eye(len(apart), dtype=torch.bool, device=apart.device)
    same, other = apart[own].quantile(0.75), apart[~own].quantile(0.75)
    return float(other / same) if same > 0 else 0.0
