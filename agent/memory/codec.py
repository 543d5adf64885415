"""A policy's delta from the meta-initialisation in fewer bytes, with one scale per small block.

A record is the bytes of one row: the scales (bfloat16), then the codes, padded to whole words, so
that a table of records ``[N, record_bytes]`` can be read without copying. Quantising a delta loses
far less than quantising the policy itself, whose weights are many times larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["float32", "bfloat16", "int8", "int4"]
KINDS: tuple[Kind, ...] = ("int4", "int8", "bfloat16", "float32")
"""From the fewest bits to the most."""
_BITS = {"int4": 4, "int8": 8, "bfloat16": 16, "float32": 32}
_LARGEST = {"int4": 7, "int8": 127}
_WORD = 8


@dataclass(frozen=True)
class Codec:
    """Deltas ``[..., P]`` to records ``[..., record_bytes]`` uint8 and back.

    Rounding errs by at most half a scale, with scale = largest |delta| of the block / 127 (int8) or
    / 7 (int4).
    """

    kind: Kind
    """What a number becomes."""
    segments: tuple[int, ...]
    """How P divides into pieces that share no scale: a layer's weights, its biases, log-stds."""
    block: int = 64
    """Numbers that share a scale, at most."""

    @property
    def size(self) -> int:
        """P."""
        return sum(self.segments)

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of one row, scales and padding included."""
        scales = 2 * self._blocks if self.kind in _LARGEST else 0
        needed = scales + (self.size * _BITS[self.kind] + 7) // 8
        return -(-needed // _WORD) * _WORD

    def encode(self, delta: Tensor) -> Tensor:
        """Records of ``delta [..., P]``.

        Raises:
            ValueError: A number is not finite, or P is another.
        """
        if delta.shape[-1] != self.size:
            raise ValueError(f"a delta has {self.size} numbers here, got {delta.shape[-1]}")
        if not bool(torch.isfinite(delta).all()):
            raise ValueError("a delta that is not finite cannot be coded")
        delta = delta.detach().float()
        if self.kind == "float32":
            parts = [delta]
        elif self.kind == "bfloat16":
            parts = [_rounded(delta)]
        else:
            parts = self._quantised(delta, _LARGEST[self.kind])
        data = torch.cat([part.contiguous().view(torch.uint8) for part in parts], -1)
        return torch.nn.functional.pad(data, (0, self.record_bytes - data.shape[-1]))

    def decode(self, records: Tensor) -> Tensor:
        """Deltas ``[..., P]`` float32 of ``records [..., record_bytes]``."""
        if self.kind == "float32":
            return records[..., : 4 * self.size].contiguous().view(torch.float32)
        if self.kind == "bfloat16":
            return records[..., : 2 * self.size].contiguous().view(torch.bfloat16).float()
        start = 2 * self._blocks
        scales = records[..., :start].contiguous().view(torch.bfloat16).float()
        if self.kind == "int8":
            codes = records[..., start : start + self.size].view(torch.int8)
        else:
            packed = records[..., start : start + (self.size + 1) // 2]
            pairs = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., : self.size]
            codes = pairs.view(torch.int8) - 8
        return codes * scales[..., self._block_of(records.device)]

    def _quantised(self, delta: Tensor, largest: int) -> list[Tensor]:
        """Scales and codes. A scale is rounded first, so that its rounding loses nothing."""
        where = self._block_of(delta.device).expand(delta.shape)
        peaks = delta.new_zeros(*delta.shape[:-1], self._blocks)
        peaks = peaks.scatter_reduce(-1, where, delta.abs(), "amax")
        scales = _rounded(peaks / largest)
        spread = scales.float().gather(-1, where)
        steps = torch.where(spread > 0, delta / spread, 0.0)
        codes = steps.round().clamp(-largest, largest).to(torch.int8)
        if largest == _LARGEST["int4"]:
            codes = torch.nn.functional.pad(codes + 8, (0, self.size % 2), value=8)
            low, high = codes.view(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
            codes = low | (high << 4)
        return [scales, codes]

    @property
    def _blocks(self) -> int:
        return len(_block_sizes(self.segments, self.block))

    def _block_of(self, device: torch.device) -> Tensor:
        """Number ``[P]`` of the block that each parameter is in."""
        return _block_numbers(self.segments, self.block, device)


@lru_cache(maxsize=64)
def _block_sizes(segments: tuple[int, ...], block: int) -> tuple[int, ...]:
    """A segment is cut into whole blocks and what is left."""
    cut = [[block] * (size // block) + [size % block] * (size % block > 0) for size in segments]
    return tuple(size for sizes in cut for size in sizes)


@lru_cache(maxsize=64)
def _block_numbers(segments: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    sizes = torch.tensor(_block_sizes(segments, block), device=device)
    return torch.arange(len(sizes), device=device).repeat_interleave(sizes)


def _rounded(values: Tensor) -> Tensor:
    """To bfloat16, where what would be rounded up to infinity becomes its largest number."""
    limit = torch.finfo(torch.bfloat16).max
    return values.clamp(-limit, limit).to(torch.bfloat16)


def fit_codec(
    delta: Tensor,
    check: Callable[[Tensor], bool],
    segments: tuple[int, ...] = (),
    start: Kind = "int4",
    block: int = 64,
) -> tuple[Codec, Tensor]:
    """The codec of fewest bits whose decoded delta passes the check, and the record it makes.

    ``delta [P]``. Begins with ``start``; float32 is taken unasked, since nothing is more faithful.
    """
    kinds = KINDS[KINDS.index(start) :]
    for kind in kinds[:-1]:
        codec = Codec(kind, segments or (delta.shape[-1],), block)
        record = codec.encode(delta)
        if check(codec.decode(record)):
            return codec, record
    codec = Codec(kinds[-1], segments or (delta.shape[-1],), block)
    return codec, codec.encode(delta)
