"""Sums over steps from which any linear model can be fitted; they add up, in whatever order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sums:
    """What a linear regression of M targets on F features needs to know, in float64."""

    gram: Tensor
    """``sum x x'``, ``[..., F, F]``."""
    cross: Tensor
    """``sum x y'``, ``[..., F, M]``."""

    @classmethod
    def of(cls, features: Tensor, targets: Tensor, mask: Tensor) -> Sums:
        """From ``features [..., n, F]`` and ``targets [..., n, M]`` where ``mask [..., n]`` is 1.

        What stands at masked steps makes no difference, were it NaN.
        """
        valid = (mask > 0)[..., None]
        x = torch.where(valid, features.double(), 0.0)
        y = torch.where(valid, targets.double(), 0.0)
        return cls(x.mT @ x, x.mT @ y)

    def __add__(self, more: Sums) -> Sums:
        """The sums over both."""
        return Sums(self.gram + more.gram, self.cross + more.cross)

    def packed(self) -> Tensor:
        """All numbers that are not equal by symmetry, ``[..., S]``."""
        rows, columns = _lower(self.gram.shape[-1])
        return torch.cat([self.gram[..., rows, columns], self.cross.flatten(-2)], -1)

    @classmethod
    def unpacked(cls, numbers: Tensor, features: int, targets: int) -> Sums:
        """The inverse of ``packed`` for F features and M targets."""
        half = features * (features + 1) // 2
        gram = numbers[..., _square(features).to(numbers.device)]
        return cls(gram.double(), numbers[..., half:].double().unflatten(-1, (features, targets)))

    @staticmethod
    def packed_size(features: int, targets: int) -> int:
        """S."""
        return features * (features + 1) // 2 + features * targets


@lru_cache
def _lower(size: int) -> tuple[Tensor, Tensor]:
    """Row and column of each entry on or below the diagonal."""
    rows, columns = torch.tril_indices(size, size)
    return rows, columns


@lru_cache
def _square(size: int) -> Tensor:
    """Where in the packed numbers each entry ``[F, F]`` stands."""
    rows, columns = _lower(size)
    index = torch.zeros(size, size, dtype=torch.int64)
    index[rows, columns] = index[columns, rows] = torch.arange(len(rows))
    return index
