"""Columns that grow at their end, and whose rows never move or change unless said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """What one column holds."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...] = ()
    """Of one entry."""


class Columns:
    """Several columns of one length. When full they are copied to twice the room.

    What was read before still lies in the old tensors, so a view stays valid.
    """

    def __init__(self, columns: Mapping[str, Column], room: int = 16) -> None:
        self._columns = dict(columns)
        self._data = {name: self._empty(c, room) for name, c in self._columns.items()}
        self.size = 0
        """Rows in use."""

    def extend(self, values: Mapping[str, Tensor]) -> None:
        """Append rows: a tensor ``[M, ...]`` for every column."""
        more = len(next(iter(values.values())))
        stop = self.size + more
        room = len(next(iter(self._data.values())))
        if stop > room:
            grown = {n: self._empty(c, max(stop, 2 * room)) for n, c in self._columns.items()}
            for name, data in grown.items():
                data[: self.size] = self._data[name][: self.size]
            self._data = grown
        for name, data in self._data.items():
            data[self.size : stop] = values[name].to(data.device)
        self.size = stop

    def __getitem__(self, name: str) -> Tensor:
        """A view of a column's rows in use."""
        return self._data[name][: self.size]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(data[0].nbytes for data in self._data.values())

    @staticmethod
    def _empty(column: Column, rows: int) -> Tensor:
        return torch.zeros(rows, *column.shape, dtype=column.dtype, device=column.device)
