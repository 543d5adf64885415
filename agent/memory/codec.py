"""A policy's delta from the meta-initialisation in fewer bytes, with one scale per small block.

A record is the bytes of one row: the scales (bfloat16), then the codes, padded to whole words, so
that a table of records ``[N, record_bytes]`` can be read without copying. Quantising a delta loses
far less than quantising the policy itself, whose weights are many times larger. Where adaptation
moves only some parameters, only these are in the record, and all others are the anchor's exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["float32", "bfloat16", "int8", "int4"]
KINDS: tuple[Kind, ...] = ("int4", "int8", "bfloat16", "float32")
"""From the fewest bits to the most."""
_BITS = {"int4": 4, "int8": 8, "bfloat16": 16, "float32": 32}
_LARGEST = {"int4": 7, "int8": 127}
_WORD = 8
Spans = tuple[tuple[int, int], ...]
"""Places from (first) to (last and one), in order; without any, all places."""


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
    free: Spans = ()
    """Places of P that may differ from 0 and are coded."""

    @property
    def size(self) -> int:
        """P."""
        return sum(self.segments)

    @cached_property
    def coded(self) -> tuple[int, ...]:
        """How the numbers that are coded divide: the segments, cut to what is free."""
        return tuple(stop - start for start, stop in _cut(self.segments, self.free))

    def covers(self, delta: Tensor) -> bool:
        """Whether ``delta [..., P]`` is 0 wherever nothing is coded."""
        if not self.free:
            return True
        held = torch.ones(self.size, dtype=torch.bool, device=delta.device)
        held[self._places(delta.device)] = False
        return not bool(delta[..., held].any())

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of one row, scales and padding included."""
        scales = 2 * self._blocks if self.kind in _LARGEST else 0
        needed = scales + (sum(self.coded) * _BITS[self.kind] + 7) // 8
        return -(-needed // _WORD) * _WORD

    def encode(self, delta: Tensor) -> Tensor:
        """Records of ``delta [..., P]``.

        Raises:
            ValueError: A number is not finite, or not 0 where nothing is coded, or P is another.
        """
        if delta.shape[-1] != self.size:
            raise ValueError(f"a delta has {self.size} numbers here, got {delta.shape[-1]}")
        if not bool(torch.isfinite(delta).all()):
            raise ValueError("a delta that is not finite cannot be coded")
        if not self.covers(delta):
            raise ValueError(
                f"a delta differs from 0 outside of {self.free}, which is all that is coded"
            )
        delta = delta.detach().float()
        if self.free:
            delta = delta[..., self._places(delta.device)]
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
        if not self.free:
            return self._decoded(records)
        out = torch.zeros(*records.shape[:-1], self.size, device=records.device)
        out[..., self._places(records.device)] = self._decoded(records)
        return out

    def _decoded(self, records: Tensor) -> Tensor:
        """The numbers that are coded."""
        size = sum(self.coded)
        if self.kind == "float32":
            return records[..., : 4 * size].contiguous().view(torch.float32)
        if self.kind == "bfloat16":
            return records[..., : 2 * size].contiguous().view(torch.bfloat16).float()
        start = 2 * self._blocks
        scales = records[..., :start].contiguous().view(torch.bfloat16).float()
        if self.kind == "int8":
            codes = records[..., start : start + size].view(torch.int8)
        else:
            packed = records[..., start : start + (size + 1) // 2]
            pairs = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., :size]
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
            codes = torch.nn.functional.pad(codes + 8, (0, codes.shape[-1] % 2), value=8)
            low, high = codes.view(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
            codes = low | (high << 4)
        return [scales, codes]

    @property
    def _blocks(self) -> int:
        return len(_block_sizes(self.coded, self.block))

    def _block_of(self, device: torch.device) -> Tensor:
        """Number of the block that each of the coded numbers is in."""
        return _block_numbers(self.coded, self.block, device)

    def _places(self, device: torch.device) -> Tensor:
        """Where in P the coded numbers are."""
        return _numbers(self.free, device)


def spans_of(free: Tensor | None) -> Spans:
    """A mask ``[P]`` bool as spans; none where all is free."""
    if free is None or bool(free.all()):
        return ()
    edges = torch.nn.functional.pad(free.detach().cpu().int(), (1, 1)).diff()
    starts, stops = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


def _cut(segments: tuple[int, ...], free: Spans) -> list[tuple[int, int]]:
    """The parts of segments that are free, from place to place."""
    ends = list(accumulate(segments, initial=0))
    if not free:
        return list(pairwise(ends))
    both = [(max(a, c), min(b, d)) for a, b in pairwise(ends) for c, d in free]
    return [(start, stop) for start, stop in both if start < stop]


@lru_cache(maxsize=64)
def _numbers(spans: Spans, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in spans])


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
    free: Spans = (),
) -> tuple[Codec, Tensor]:
    """The codec of fewest bits whose decoded delta passes the check, and the record it makes.

    ``delta [P]``. Begins with ``start``; float32 is taken unasked, since nothing is more faithful.
    A delta that is not 0 outside of what is ``free`` is coded whole.
    """
    kinds = KINDS[KINDS.index(start) :]
    segments = segments or (delta.shape[-1],)
    if not Codec(start, segments, block, free).covers(delta):
        kinds, free = KINDS[-1:], ()
    for kind in kinds[:-1]:
        codec = Codec(kind, segments, block, free)
        record = codec.encode(delta)
        if check(codec.decode(record)):
            return codec, record
    codec = Codec(kinds[-1], segments, block, free)
    return codec, codec.encode(delta)
