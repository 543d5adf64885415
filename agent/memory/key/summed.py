"""Keys whose evidence is sums over steps, with what is worth working out once in front of them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from agent.memory.key.base import NotFittedError, digest, known
from agent.policy import ObsNormalizer
from agent.types import Trajectories


@dataclasses.dataclass(frozen=True)
class Seen:
    """Steps in the units that keys look at them in."""

    obs: Tensor
    """``[T, n, O]``, normalised, float64."""
    action: Tensor
    """``[T, n, A]``, as it was applied: clipped to +-1."""
    change: Tensor
    """``[T, n, O]``, of the normalised observation over the step."""
    reward: Tensor
    """``[T, n, 1]``."""
    mask: Tensor
    """``[T, n]``."""

    @classmethod
    def of(cls, episodes: Trajectories, normalizer: ObsNormalizer) -> Seen:
        """All steps of a task in a row, n = E H."""
        raw = (episodes.obs, episodes.action, episodes.reward, episodes.next_obs())
        obs, action, reward, after = (column.flatten(1, 2) for column in raw)
        seen = cls.at(obs, action, reward, after, normalizer)
        return replace(seen, mask=episodes.mask.double().flatten(1, 2))

    @classmethod
    def at(
        cls,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        after: Tensor,
        normalizer: ObsNormalizer,
    ) -> Seen:
        """Raw steps: ``[T, n, O]``, ``[T, n, A]``, ``[T, n]``, ``[T, n, O]``."""
        before, behind = normalizer(obs).double(), normalizer(after).double()
        one = torch.ones_like(reward, dtype=torch.float64)
        action = action.double().clamp(-1, 1)
        return cls(before, action, behind - before, reward.double()[..., None], one)


class SummedKey(ABC):
    """Evidence ``[D]`` = view ``[V]``, made of the sums, then the sums ``[S]`` themselves.

    A subclass says what is summed, and what the view of it is; it may use ``self.normalizer``.
    """

    KIND: str
    """Name of the kind, part of every version."""
    READING: ClassVar[tuple[str, ...]] = ()
    """Settings of how rows are read; they change no evidence, and are no part of the version."""

    normalizer: ObsNormalizer
    _version: str | None = None

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """V and S."""

    @abstractmethod
    def sums(self, episodes: Trajectories) -> Tensor:
        """``[T, S]`` float64; those of some episodes and of some more add up."""

    @abstractmethod
    def view(self, sums: Tensor) -> Tensor:
        """``[T, V]``, from sums ``[T, S]`` in float64."""

    @abstractmethod
    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``base.Key``."""

    @property
    def size(self) -> int:
        """D."""
        self._check_fitted()
        return sum(self.sizes)

    @property
    def version(self) -> str:
        """See ``base.Key``."""
        self._check_fitted()
        return str(self._version)

    def encode(self, episodes: Trajectories, given: Tensor | None = None) -> Tensor:
        """See ``base.Key``."""
        self._check_fitted()
        found = self._with_view(self.sums(episodes))
        return found.masked_fill(~known(episodes)[:, None], torch.nan)

    def joined(self, first: Tensor, more: Tensor) -> Tensor:
        """See ``base.Key``."""
        start = self.sizes[0]
        one, other = torch.isfinite(first).all(-1), torch.isfinite(more).all(-1)
        both = self._with_view(first[:, start:].double() + more[:, start:].double())
        alone = torch.where(one[:, None], first, more)
        return torch.where((one & other)[:, None], both, alone)

    def state_dict(self) -> dict[str, Tensor]:
        """See ``base.Key``."""
        self._check_fitted()
        normalizer = {f"normalizer.{k}": v for k, v in self.normalizer.state_dict().items()}
        return normalizer | self._fitted()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See ``base.Key``."""
        self._use(part(state, "normalizer."))
        self._restore(state)
        self._finish()

    @abstractmethod
    def _fitted(self) -> dict[str, Tensor]:
        """What was fitted, beside the normaliser."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``_fitted``."""

    def _use(self, state: Mapping[str, Tensor]) -> None:
        """Keep a copy of a normaliser's state, which nothing changes from now on."""
        mean = state["mean"]
        self.normalizer = ObsNormalizer(len(mean), mean.device)
        self.normalizer.load_state_dict({k: v.clone() for k, v in state.items()})

    def _finish(self) -> None:
        """Everything is fitted: give it its name."""
        self._version = ""
        self._version = digest(self.KIND, self._settings(), self.state_dict())

    def _settings(self) -> dict[str, object]:
        return {k: v for k, v in plain_settings(self).items() if k not in self.READING}

    def _check_fitted(self) -> None:
        if self._version is None:
            raise NotFittedError(f"{self.KIND} key: call fit or load_state_dict first")

    def _with_view(self, sums: Tensor) -> Tensor:
        # The view is of what is stored, so that it is the same whenever it is worked out.
        stored = sums.float()
        return torch.cat([self.view(stored.double()).float(), stored], -1)


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def stack(seen: Sequence[Seen]) -> Seen:
    """R probes as one, ``[R, T, n, ...]``; shorter ones are filled up with masked steps."""
    longest = max(s.mask.shape[1] for s in seen)

    def joined(name: str) -> Tensor:
        columns = [getattr(s, name) for s in seen]
        room = [c.new_zeros(len(c), longest - c.shape[1], *c.shape[2:]) for c in columns]
        return torch.stack([torch.cat(pair, 1) for pair in zip(columns, room, strict=True)])

    return Seen(**{f.name: joined(f.name) for f in dataclasses.fields(Seen)})


def plain_settings(key: Any) -> dict[str, object]:
    """The settings of a dataclass as plain values, those of nested dataclasses included."""
    return {f.name: _plain(getattr(key, f.name)) for f in dataclasses.fields(key)}


def _plain(value: Any) -> object:
    if dataclasses.is_dataclass(value):
        return (type(value).__name__, sorted(plain_settings(value).items()))
    return value
