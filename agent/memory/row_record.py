"""A row as flat named tensors and words, the form in which it is written down, and back.

Fields are found by themselves, so that what a row gains in fields is written without change here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, get_type_hints

import torch
from torch import Tensor

from agent.files import plain
from agent.memory.codec import KINDS, Codec, Spans
from agent.memory.row import Row

_CODE, _PARAMS = "params.code", "params"
_OBS, _NEXT, _APART = "probe.obs", "probe.next_obs", "probe.apart"


@dataclass(frozen=True)
class Record:
    """One row, packed. Numbers and tensors by dotted name (``record.mean``); all else as JSON."""

    tensors: dict[str, Tensor]
    """On the CPU; a number is a tensor without axes, float64 or int64."""
    words: bytes
    """JSON object of the fields that are neither."""

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it: two records have the same one if and only if they are the same."""
        told = hashlib.sha256(self.words)
        for name in sorted(self.tensors):
            value = self.tensors[name]
            told.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
            told.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return told.digest()


@dataclass(frozen=True)
class Coding:
    """How policies of one lineage are written: as what they differ from its anchor in."""

    anchor: Tensor
    """The meta-initialisation ``[P]``."""
    segments: tuple[int, ...] = ()
    """How P divides into pieces that share no scale (see ``Codec``)."""
    free: Spans = ()
    """Places of P in which policies may differ from the anchor; (): all."""

    def encode(self, params: Tensor) -> tuple[str, Tensor] | None:
        """The kind of code and the code of fewest bits that gives back the very same numbers.

        A policy that has been through a bank's codec has such a code; any other has none.
        """
        delta = params - self.anchor
        for name, codec in self._codecs.items():
            if (codec.kind == KINDS[-1] and not codec.free) or not codec.covers(delta):
                continue
            code = codec.encode(delta)
            if torch.equal(self.decode(name, code), params):
                return name, code
        return None

    def decode(self, kind: str, code: Tensor) -> Tensor:
        """The policy ``[P]``."""
        return self.anchor + self._codecs[kind].decode(code)

    @cached_property
    def _codecs(self) -> dict[str, Codec]:
        segments = self.segments or (len(self.anchor),)
        whole = {str(kind): Codec(kind, segments) for kind in KINDS}
        if not self.free:
            return whole
        return {f"free {kind}": Codec(kind, segments, free=self.free) for kind in KINDS} | whole


def coding_of(anchor: Tensor, settings: Mapping[str, Any]) -> Coding:
    """How policies of a lineage of these settings are written."""
    free = tuple((start, stop) for start, stop in settings.get("free", ()))
    return Coding(anchor, tuple(settings.get("segments", ())), free)


def pack(row: Row, coding: Coding | None = None) -> Record:
    """The record of a row, whichever device it is on.

    Raises:
        ValueError: The policy is not finite, or not of the lineage's size.
    """
    tensors, words = _flat(row, "")
    params = tensors[_PARAMS]
    if not bool(torch.isfinite(params).all()):
        raise ValueError("a policy with parameters that are not finite is not kept")
    if coding is not None:
        if params.shape != coding.anchor.shape:
            raise ValueError(
                f"the lineage {row.lineage!r} has policies of {len(coding.anchor)} parameters, "
                f"got one of {len(params)}"
            )
        coded = coding.encode(params) if params.dtype == coding.anchor.dtype else None
        if coded is not None:
            del tensors[_PARAMS]
            words[_CODE], tensors[_CODE] = coded
    apart = _apart(tensors[_OBS], tensors[_NEXT])
    tensors |= {_NEXT: tensors[_NEXT][apart], _APART: apart}
    text = json.dumps(plain(words), sort_keys=True, allow_nan=False)
    return Record(tensors, text.encode())


def unpack(record: Record, codings: dict[str, Coding]) -> Row:
    """The row of a record; ``codings`` by lineage.

    Raises:
        ValueError: The record is not one of a row, or its lineage's anchor is missing.
    """
    words, tensors = json.loads(record.words), dict(record.tensors)
    if _CODE in tensors and words.get("lineage") not in codings:
        raise ValueError(f"the anchor of lineage {words.get('lineage')!r} is not in the folder")
    try:
        if _CODE in tensors:
            coding = codings[words["lineage"]]
            tensors[_PARAMS] = coding.decode(words.pop(_CODE), tensors.pop(_CODE))
        following = tensors[_OBS].roll(-1, 0)
        following[tensors.pop(_APART)] = tensors[_NEXT]
        tensors[_NEXT] = following
        return _built(Row, tensors, words, "")
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(f"fields are missing or of another kind ({error})") from None


def _apart(obs: Tensor, after: Tensor) -> Tensor:
    """``[M]`` bool: the observation after the step is not the one before the next, to the bit."""
    apart = torch.ones(len(obs), dtype=torch.bool)
    bits = [x.contiguous().view(torch.uint8) for x in (obs[1:], after[:-1])]
    apart[:-1] = (bits[0] != bits[1]).any(-1)
    return apart


def _flat(value: Any, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    words: dict[str, Any] = {}
    for field in fields(value):
        name, content = prefix + field.name, getattr(value, field.name)
        if content is None:
            continue
        if is_dataclass(content):
            inner = _flat(content, f"{name}.")
            tensors |= inner[0]
            words |= inner[1]
        elif isinstance(content, Tensor):
            tensors[name] = content.detach().cpu().contiguous()
        elif isinstance(content, (int, float)):
            kind = torch.int64 if isinstance(content, int) else torch.float64
            tensors[name] = torch.tensor(content, dtype=kind)
        else:
            words[name] = content
    return tensors, words


def _built(kind: type, tensors: dict[str, Tensor], words: dict[str, Any], prefix: str) -> Any:
    """A dataclass from what ``_flat`` made of it; what is not there is left to its default."""
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):
        name, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            given[field.name] = _built(hint, tensors, words, f"{name}.")
        elif name in tensors:
            number = hint in (int, float, bool)
            given[field.name] = hint(tensors[name].item()) if number else tensors[name]
        elif name in words:
            given[field.name] = words[name]
    return kind(**given)
