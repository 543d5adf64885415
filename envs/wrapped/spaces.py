"""Gymnasium's spaces as rows of numbers: what a policy sees, and what it answers.

Every leaf of a space (Box, Discrete, MultiDiscrete, MultiBinary) takes a slice of the row, in
gymnasium's own order; Dict and Tuple spaces nest them. All functions also take n rows at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.spaces.utils import flatdim

from envs.param import TaskError

LARGEST_OBSERVATION = 10_000
"""Numbers in a flattened observation; more is taken for an image."""

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"


class Entry(NamedTuple):
    """Where one leaf of a space lies in the row, and its numbers' bounds there."""

    name: str
    """Path from the root, such as ``goal.position`` or ``sensors[0]``."""
    where: slice
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class _Leaf:
    name: str
    space: Space
    where: slice

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        return self.space.shape or ()

    @functools.cached_property
    def is_whole(self) -> bool:
        return self.space.dtype is not None and self.space.dtype.kind != "f"

    @functools.cached_property
    def options(self) -> tuple[np.ndarray, np.ndarray] | None:
        """How many values each entry can take and the first of them, of a discrete space."""
        if isinstance(self.space, Discrete):
            return np.array([int(self.space.n)]), np.array([int(self.space.start)])
        if isinstance(self.space, MultiDiscrete):
            return self.space.nvec.reshape(-1), self.space.start.reshape(-1)
        return None


class SpaceMap:
    """The leaves of a space, one after the other in a row of numbers."""

    def __init__(self, space: Space, what: str) -> None:
        self.space, self._what = space, what
        self.leaves: list[_Leaf] = []
        self.size = 0
        for name, leaf in self._find(space, ""):
            size = flatdim(leaf)
            self.leaves.append(_Leaf(name or what, leaf, slice(self.size, self.size + size)))
            self.size += size
        if not self.size:
            raise TaskError(f"the {what} space {space} holds no numbers")

    @property
    def layout(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Name, kind, shape and count of numbers of each leaf: what policies can be shared over."""
        return [
            (leaf.name, type(leaf.space).__name__, leaf.shape, leaf.where.stop - leaf.where.start)
            for leaf in self.leaves
        ]

    def _find(self, space: Space, name: str) -> Iterator[tuple[str, Space]]:
        """The leaves with their names, in gymnasium's order."""
        if isinstance(space, Dict):
            for key, part in space.spaces.items():
                yield from self._find(part, f"{name}.{key}" if name else str(key))
        elif isinstance(space, Tuple):
            for i, part in enumerate(space.spaces):
                yield from self._find(part, f"{name}[{i}]")
        elif isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
            yield name, space
        else:
            where = f" at {name!r}" if name else ""
            raise TaskError(
                f"the {self._what} space has {space}{where}, which is no fixed number of numbers; "
                f"supported are {_SUPPORTED}. Give wrappers: one that turns it into these"
            )


class ObservationMap(SpaceMap):
    """Observations of any supported space as rows ``[O]`` of float64; discrete ones as one-hot."""

    def __init__(self, space: Space) -> None:
        super().__init__(space, "observation")
        if self.size > LARGEST_OBSERVATION:
            raise TaskError(
                f"the observation space {space} flattens to {self.size:,} numbers, more than "
                f"{LARGEST_OBSERVATION:,}; policies here have no image encoder. Give wrappers: "
                "one that shrinks it or picks the state out of it (such as gymnasium.wrappers."
                "FilterObservation or ResizeObservation)"
            )

    def flatten(self, obs: Any) -> np.ndarray:
        """One observation as a new row ``[O]``; anything that is not of the space is an error."""
        return self._flatten(obs, ())

    def flatten_rows(self, obs: Any, n: int) -> np.ndarray:
        """Observations of n rows, batched as gymnasium's vector environments do: ``[n, O]``."""
        return self._flatten(obs, (n,))

    def table(self) -> list[Entry]:
        """Where each part of the observation lies in the row."""
        return [Entry(leaf.name, leaf.where, *_bounds(leaf)) for leaf in self.leaves]

    def _flatten(self, obs: Any, lead: tuple[int, ...]) -> np.ndarray:
        row = np.empty((*lead, self.size))
        parts = self._parts(self.space, obs, "")
        for leaf, part in zip(self.leaves, parts, strict=True):
            row[..., leaf.where] = _encoded(leaf, self._numbers(leaf, part, lead))
        return row

    def _parts(self, space: Space, obs: Any, name: str) -> Iterator[Any]:
        """The values at the leaves, after a check that the structure is the space's."""
        here = f"observation {name!r}" if name else "the observation"
        if isinstance(space, Dict):
            if not isinstance(obs, Mapping) or set(obs) != set(space.spaces):
                found = sorted(map(str, obs)) if isinstance(obs, Mapping) else _short(obs)
                raise TaskError(
                    f"{here}: expected a dictionary with the keys {sorted(map(str, space.spaces))} "
                    f"of its space, got {found}"
                )
            for key, part in space.spaces.items():
                yield from self._parts(part, obs[key], f"{name}.{key}" if name else str(key))
        elif isinstance(space, Tuple):
            if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
                found = f"{len(obs)}" if isinstance(obs, tuple | list) else _short(obs)
                raise TaskError(
                    f"{here}: expected a tuple of the {len(space.spaces)} parts of its space, got "
                    f"{found}"
                )
            for i, part in enumerate(space.spaces):
                yield from self._parts(part, obs[i], f"{name}[{i}]")
        else:
            yield obs

    def _numbers(self, leaf: _Leaf, value: Any, lead: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise TaskError(f"observation {leaf.name!r} is no array: {error}") from error
        kinds = "biuf" if leaf.options is None else "biu"
        if array.dtype.kind not in kinds or array.shape != (*lead, *leaf.shape):
            of = "numbers" if leaf.options is None else "whole numbers"
            raise TaskError(
                f"observation {leaf.name!r}: expected {of} of shape {(*lead, *leaf.shape)}, as its "
                f"space {leaf.space} says, got {_short(value)}"
            )
        return array


class ActionMap(SpaceMap):
    """Rows ``[A]`` of numbers in ``low`` to ``high`` as actions of any supported space.

    Box: the numbers themselves, clipped to the bounds and rounded where it holds whole numbers.
    Discrete and MultiDiscrete: a score in [-1, 1] for each choice, of which the highest is taken.
    MultiBinary: a number in [-1, 1] whose sign decides.
    """

    def __init__(self, space: Space, limits: tuple[float, float] | None = None) -> None:
        super().__init__(space, "action")
        self.low, self.high = -np.ones(self.size), np.ones(self.size)
        self._limits: list[tuple[np.ndarray, np.ndarray]] = []
        if limits and not any(isinstance(leaf.space, Box) for leaf in self.leaves):
            raise TaskError(f"action_limits={list(limits)}: the action space {space} has no Box")
        for leaf in self.leaves:
            if isinstance(leaf.space, Box):
                low, high = self._limited(leaf, limits)
                self.low[leaf.where], self.high[leaf.where] = low, high
            self._limits.append((self.low[leaf.where], self.high[leaf.where]))

    def to_env(self, row: np.ndarray) -> Any:
        """What ``env.step`` wants for one action ``[A]``."""
        return self._decode(row, ())

    def rows_to_env(self, rows: np.ndarray) -> Any:
        """What the ``step`` of a vector environment of n rows wants for actions ``[n, A]``."""
        return self._decode(rows, (len(rows),))

    def table(self) -> list[Entry]:
        """Which numbers of the row make which part of the action."""
        return [
            Entry(leaf.name, leaf.where, self.low[leaf.where], self.high[leaf.where])
            for leaf in self.leaves
        ]

    def _limited(
        self, leaf: _Leaf, limits: tuple[float, float] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        low, high = _bounds(leaf)
        if limits is not None:
            low, high = np.maximum(low, limits[0]), np.minimum(high, limits[1])
        if not np.isfinite([low, high]).all():
            raise TaskError(
                f"the {self._what} space has {leaf.space} at {leaf.name!r}, without finite bounds, "
                "which a policy needs to scale what it answers; give action_limits: [low, high]"
            )
        if (low > high).any():
            raise TaskError(
                f"action_limits={list(limits or ())} leave nothing of {leaf.space} at {leaf.name!r}"
            )
        return low, high

    def _decode(self, row: np.ndarray, lead: tuple[int, ...]) -> Any:
        row = np.asarray(row, dtype=np.float64)
        if row.shape != (*lead, self.size) or not math.isfinite(np.vdot(row, row)):
            raise TaskError(
                f"an action of shape {row.shape}, {row.tolist()}, where {self.size} finite numbers "
                f"are expected for the action space {self.space}"
            )
        parts = (
            self._part(leaf, row[..., leaf.where], limits, lead)
            for leaf, limits in zip(self.leaves, self._limits, strict=True)
        )
        return self._nested(self.space, parts)

    def _part(
        self,
        leaf: _Leaf,
        numbers: np.ndarray,
        limits: tuple[np.ndarray, np.ndarray],
        lead: tuple[int, ...],
    ) -> Any:
        if isinstance(leaf.space, Discrete):  # a number, not an array
            return numbers.argmax(axis=-1) + leaf.space.start
        if leaf.options is not None:
            counts, start = leaf.options
            scores = np.split(numbers, np.cumsum(counts)[:-1], axis=-1)
            numbers = np.stack([score.argmax(axis=-1) for score in scores], axis=-1) + start
        elif isinstance(leaf.space, MultiBinary):
            numbers = numbers > 0
        else:
            # Several times as fast as np.clip, which every step of every row would pay for.
            numbers = np.minimum(np.maximum(numbers, limits[0]), limits[1])
            if leaf.is_whole:
                numbers = np.rint(numbers)
        return numbers.reshape((*lead, *leaf.shape)).astype(leaf.space.dtype)

    def _nested(self, space: Space, parts: Iterator[Any]) -> Any:
        if isinstance(space, Dict):
            return {key: self._nested(part, parts) for key, part in space.spaces.items()}
        if isinstance(space, Tuple):
            return tuple(self._nested(part, parts) for part in space.spaces)
        return next(parts)


def _bounds(leaf: _Leaf) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of an observation's numbers, each ``[size]``; of one-hot entries and bits 0 and 1."""
    if isinstance(leaf.space, Box):
        low, high = leaf.space.low.reshape(-1), leaf.space.high.reshape(-1)
        return low.astype(np.float64), high.astype(np.float64)
    size = leaf.where.stop - leaf.where.start
    return np.zeros(size), np.ones(size)


def _encoded(leaf: _Leaf, array: np.ndarray) -> np.ndarray:
    """A leaf's values as numbers ``[..., size]``; whole numbers as one-hot, one after the other."""
    lead = array.shape[: array.ndim - len(leaf.shape)]
    if leaf.options is None:
        return array.reshape(*lead, -1)
    counts, start = leaf.options
    index = array.reshape(*lead, -1).astype(np.int64) - start
    if (index < 0).any() or (index >= counts).any():
        raise TaskError(
            f"observation {leaf.name!r}: {_short(array)} is not in its space {leaf.space}"
        )
    row = np.zeros((*lead, int(counts.sum())))
    np.put_along_axis(row, index + np.cumsum(counts) - counts, 1.0, axis=-1)
    return row


def _short(value: Any) -> str:
    """What came, in a few words."""
    if value is None:
        return "None"
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    text = repr(value)
    return f"{type(value).__name__}{shape} {text if len(text) <= 60 else text[:57] + '...'}"
