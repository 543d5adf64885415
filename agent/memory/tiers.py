"""Where the bulk of the memory lies: on the device, in host memory or in files mapped from disk.

Space is taken chunk by chunk. When a tier has no more, the next one is used from then on, with one
warning, and every row reads the same as before, only slower.
"""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Allocate = Callable[[int], Tensor]
"""From a number of bytes to that many, uint8 ``[bytes]``."""
TierName = Literal["device", "host", "disk"]
_SAID_ABOUT_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfSpaceError(MemoryError):
    """No tier has room for another chunk."""


class Tiers:
    """Chunks from the first tier that has room. A tier that once had none is not asked again."""

    def __init__(self, tiers: Sequence[tuple[str, Allocate]], device: torch.device) -> None:
        """``device`` is where what is read is wanted."""
        if not tiers:
            raise ValueError("the memory needs at least one tier to lie in")
        self.device = device
        self._tiers = list(tiers)

    @classmethod
    def named(
        cls,
        names: Sequence[TierName],
        device: torch.device,
        folder: str | None = None,
        device_bytes: int | None = None,
    ) -> Tiers:
        """The usual tiers, in this order; on a CPU, "device" and "host" are the same memory."""
        makers: dict[str, Callable[[], Allocate]] = {
            "device": lambda: limited(on_device(device), device_bytes),
            "host": lambda: in_host_memory(pinned=device.type == "cuda"),
            "disk": lambda: on_disk(folder),
        }
        return cls([(name, makers[name]()) for name in names], device)

    @property
    def name(self) -> str:
        """The tier that the next chunk will be asked from."""
        return self._tiers[0][0]

    def allocate(self, size: int) -> Tensor:
        """``size`` bytes somewhere.

        Raises:
            OutOfSpaceError: Nowhere.
        """
        while True:
            name, allocate = self._tiers[0]
            try:
                return allocate(size)
            except (RuntimeError, MemoryError, OSError) as error:
                if not _is_shortage(error):
                    raise
                if len(self._tiers) == 1:
                    raise OutOfSpaceError(
                        f"the memory is out of space on its last tier, {name!r}: {error}"
                    ) from error
                del self._tiers[0]
                warnings.warn(
                    f"the memory's tier {name!r} has no room for {size:,} more bytes; rows go to "
                    f"{self.name!r} from here on and read the same, only slower",
                    ResourceWarning,
                    stacklevel=2,
                )


def on_device(device: torch.device) -> Allocate:
    """In the device's own memory."""
    return lambda size: torch.empty(size, dtype=torch.uint8, device=device)


def in_host_memory(pinned: bool) -> Allocate:
    """In the host's memory; ``pinned``: where a GPU can fetch it from directly."""
    return lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


def on_disk(folder: str | None) -> Allocate:
    """In files of a folder (None: the system's temporary one) that vanish with the process."""

    def allocate(size: int) -> Tensor:
        number, name = tempfile.mkstemp(prefix="engram-memory-", dir=folder)
        try:
            # A file with holes would be found too large only when written to, and kill the process.
            # (Where the system cannot say so beforehand, that has to be risked.)
            reserve = getattr(os, "posix_fallocate", None) or _with_holes
            reserve(number, 0, size)
            return torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
        finally:
            os.close(number)
            Path(name).unlink()

    return allocate


def _with_holes(number: int, start: int, size: int) -> None:
    os.ftruncate(number, start + size)


def limited(allocate: Allocate, most: int | None) -> Allocate:
    """The same, but refusing more than ``most`` bytes in all, so that others have room too."""
    used = 0

    def checked(size: int) -> Tensor:
        nonlocal used
        if most is not None and used + size > most:
            raise MemoryError(f"not enough memory: {most:,} bytes are all it may take")
        chunk = allocate(size)
        used += size
        return chunk

    return checked


def _is_shortage(error: Exception) -> bool:
    """Whether it says that there is no room. The CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)
    return any(said in str(error).lower() for said in _SAID_ABOUT_MEMORY)


class Pool:
    """Records of one size, in chunks. Written once, never moved: a slot keeps its meaning."""

    def __init__(self, tiers: Tiers, record_bytes: int, chunk_rows: int) -> None:
        self.record_bytes, self._tiers, self._rows = record_bytes, tiers, chunk_rows
        self.chunks: list[Tensor] = []
        """``[chunk_rows, record_bytes]`` uint8 each."""
        self.size = 0
        """Slots in use."""

    def extend(self, records: Tensor) -> None:
        """Write records ``[M, record_bytes]`` into the next M slots."""
        while len(records):
            chunk_of, place = divmod(self.size, self._rows)
            if chunk_of == len(self.chunks):
                chunk = self._tiers.allocate(self._rows * self.record_bytes)
                self.chunks.append(chunk.view(self._rows, self.record_bytes))
            some = records[: self._rows - place]
            self.chunks[chunk_of][place : place + len(some)] = some
            self.size += len(some)
            records = records[len(some) :]

    def get(self, slots: Tensor) -> Tensor:
        """Records ``[M, record_bytes]`` of ``slots [M]`` (on the CPU), on the device."""
        chunk_of, place = slots // self._rows, slots % self._rows
        used = chunk_of.unique().tolist()
        if len(used) == 1:
            return self._read(used[0], place)
        device = self._tiers.device
        out = torch.empty(len(slots), self.record_bytes, dtype=torch.uint8, device=device)
        for number in used:
            mine = (chunk_of == number).nonzero()[:, 0]
            out[mine.to(device)] = self._read(number, place[mine])
        return out

    def _read(self, number: int, place: Tensor) -> Tensor:
        chunk = self.chunks[number]
        return chunk.index_select(0, place.to(chunk.device)).to(self._tiers.device)


class Arena:
    """Pieces of bytes of any length, in chunks. Written once, never moved."""

    def __init__(self, tiers: Tiers, chunk_bytes: int) -> None:
        self._tiers, self._chunk_bytes = tiers, chunk_bytes
        self.chunks: list[Tensor] = []
        """uint8 each."""
        self._used = 0

    def put(self, data: Tensor) -> tuple[int, int]:
        """Write ``data [bytes]``; returns the chunk that it is in, and where it begins there."""
        size = len(data)
        if not self.chunks or self._used + size > len(self.chunks[-1]):
            self.chunks.append(self._tiers.allocate(max(size, self._chunk_bytes)))
            self._used = 0
        start = self._used
        self.chunks[-1][start : start + size] = data
        self._used += size
        return len(self.chunks) - 1, start

    def get(self, chunk: int, start: int, size: int) -> Tensor:
        """A copy of a piece, on the CPU."""
        return self.chunks[chunk][start : start + size].to("cpu", copy=True)
