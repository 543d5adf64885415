"""A segment: rows of equal shape in one immutable file, which readers map instead of loading.

Columns of all rows are stacked ``[M, ...]`` (``row.key``); those of probes, whose lengths differ,
are laid end to end (``row.probe.obs``), and ``ends.probe.obs [M]`` says where each ends. Every row
has a checksum of its own, so reading one row of a large file proves that row, and damage costs the
rows it hit and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from agent.files import BadFileError
from agent.memory.row_record import Record

_UNEVEN = "probe."
_WORDS, _OWN = "words", ("uid", "check", "words", "ends.words")
_MOST_TENSORS = 1000


class DamagedRowError(BadFileError):
    """A stored row is not what was written; the message names it and what to do."""


def shape_of(record: Record) -> tuple[Any, ...]:
    """What rows of one segment have in common: names, kinds and sizes, but for probes' lengths."""
    return tuple(
        (name, str(value.dtype), tuple(value.shape)[1 if name.startswith(_UNEVEN) else 0 :])
        for name, value in sorted(record.tensors.items())
    )


def segment_bytes(rows: Sequence[tuple[int, Record]]) -> bytes:
    """The file of some (uid, record) pairs of equal ``shape_of``."""
    records = [record for _, record in rows]
    columns = {
        "uid": torch.tensor([uid for uid, _ in rows]),
        "check": torch.stack([_bytes(record.digest) for record in records]),
        "words": torch.cat([_bytes(record.words) for record in records]),
        "ends.words": torch.tensor([len(record.words) for record in records]).cumsum(0),
    }
    for name in records[0].tensors:
        values = [record.tensors[name] for record in records]
        if name.startswith(_UNEVEN):
            columns[f"row.{name}"] = torch.cat(values)
            columns[f"ends.{name}"] = torch.tensor([len(value) for value in values]).cumsum(0)
        else:
            columns[f"row.{name}"] = torch.stack(values)
    return save_tensors(columns)


class Segment:
    """A segment file, mapped: nothing is read from the disk before a row is asked for."""

    def __init__(self, path: Path, size: int) -> None:
        """``size``: bytes that the file must have.

        Raises:
            FileNotFoundError: There is no such file.
            BadFileError: It is not a segment, or not all of it.
        """
        self.path = path
        self._columns = _mapped(path, size)
        uids = self._columns["uid"].tolist()
        self._place = {uid: i for i, uid in enumerate(uids)}
        if any(len(c) != len(uids) for n, c in self._columns.items() if self._even(n)):
            raise BadFileError(f"{path}: columns of different lengths; the file is damaged")

    def __contains__(self, uid: int) -> bool:
        """Whether the row was written here."""
        return uid in self._place

    def __len__(self) -> int:
        """Rows written here, those that no longer count among them."""
        return len(self._place)

    def digest(self, uid: int) -> bytes:
        """What ``Record.digest`` was when the row was written."""
        return self._columns["check"][self._place[uid]].numpy().tobytes()

    def record(self, uid: int) -> Record:
        """The row, copied off the disk and checked.

        Raises:
            DamagedRowError: It is not what was written.
        """
        i = self._place[uid]
        tensors = {
            name.removeprefix("row."): self._entry(name, i)
            for name in self._columns
            if name.startswith("row.")
        }
        record = Record(tensors, self._entry(_WORDS, i).numpy().tobytes())
        if record.digest != self.digest(uid):
            raise DamagedRowError(
                f"{self.path}: row {uid} does not match its checksum, so it is not used; "
                "'engram memory prune FOLDER damaged=true' drops such rows"
            )
        return record

    def numbers(self, uid: int) -> dict[str, float]:
        """The fields that are plain numbers, unchecked: without reading the policy."""
        i = self._place[uid]
        return {
            name.removeprefix("row."): column[i].item()
            for name, column in self._columns.items()
            if name.startswith("row.") and column.ndim == 1 and self._even(name)
        }

    def words(self, uid: int) -> bytes:
        """The JSON of the other fields, unchecked."""
        return self._entry(_WORDS, self._place[uid]).numpy().tobytes()

    def field(self, uid: int, name: str) -> Tensor:
        """One tensor of a row, unchecked and without reading the others."""
        return self._entry(f"row.{name}", self._place[uid])

    def row_bytes(self, uid: int) -> int:
        """What the row takes in the file."""
        i = self._place[uid]
        names = [name for name in self._columns if name.startswith("row.") or name in _OWN]
        return sum(self._span(name, i).nbytes for name in names)

    def _even(self, name: str) -> bool:
        return name != _WORDS and not name.startswith(f"row.{_UNEVEN}")

    def _span(self, name: str, i: int) -> Tensor:
        """The part of a column that is row i's, still on the disk."""
        column = self._columns[name]
        if self._even(name):
            return column[i]
        ends = self._columns[f"ends.{name.removeprefix('row.')}"]
        start, stop = int(ends[i - 1]) if i else 0, int(ends[i])
        if not 0 <= start <= stop <= len(column):
            raise DamagedRowError(f"{self.path}: {name} of row number {i} is nowhere in the file")
        return column[start:stop]

    def _entry(self, name: str, i: int) -> Tensor:
        return self._span(name, i).clone()


def _mapped(path: Path, size: int) -> Mapping[str, Tensor]:
    """All columns of the file, as views of the disk."""
    if (found := path.stat().st_size) != size:
        raise BadFileError(f"{path}: {found} bytes where {size} were written; it is damaged")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MOST_TENSORS:
                raise BadFileError(f"{path}: {len(names)} tensors; this is no segment of a memory")
            read: Callable[[str], Tensor] = file.get_tensor
            columns = {name: read(name) for name in names}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BadFileError(f"{path}: not a segment of a memory ({error})") from None
    needed = {*_OWN, *(n.replace("row.", "ends.") for n in columns if n.startswith("row.probe."))}
    if missing := needed - columns.keys():
        raise BadFileError(f"{path}: not a segment of a memory (no {', '.join(sorted(missing))})")
    return columns


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
