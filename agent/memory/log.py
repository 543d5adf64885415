"""The log under a bank: versions of rows, written once, never changed and never moved.

Whoever holds positions in a log can read them for as long as it likes, whatever is written later;
that is all a snapshot is. Policies and bands lie in pools, probes in an arena (``tiers``), and what
is looked at on every read (keys, returns) in columns on the device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent.memory.codec import KINDS, Codec, Spans
from agent.memory.columns import Column, Columns
from agent.memory.packing import json_bytes, json_value, packed, unpacked
from agent.memory.row import ReturnRecord, Row
from agent.memory.tiers import Arena, Pool, Tiers

_ARENA_BYTES = 4 << 20
COUNTERS = ("visits", "recalls", "accepted", "time")
"""The only columns that change after they were written."""
_NUMBERS = ("mean", "sd", "baseline")
_DEVICE_INTEGERS = ("n", *COUNTERS)
_PLACES = ("uid", "codec", "place", "anchor", "probe_chunk", "probe_start", "probe_bytes", "steps")
_NAMES = ("encoder", "lineage")
_KEPT = ("uid", "codec", "steps", "probe_bytes", *_NAMES, "other_key")
_CODES = (*(f"codes.{kind}" for kind in KINDS), "codes.whole")
_ALL = (*_NUMBERS, *_DEVICE_INTEGERS, *_KEPT)


@dataclass(frozen=True)
class Sizes:
    """What the rows of one bank have in common."""

    key: int
    """D."""
    params: int
    """P."""
    horizon: int
    """H."""
    obs: int
    """O."""
    action: int
    """A."""
    segments: tuple[int, ...] = ()
    """How P divides into layers, biases and log-stds; codes share no scale across them."""
    free: Spans = ()
    """Places of P that adaptation moves; all others are the anchor's and not kept. (): all move."""

    def __post_init__(self) -> None:
        """Check that the segments and what is free are those of P."""
        if self.segments and sum(self.segments) != self.params:
            raise ValueError(f"segments {self.segments} are not those of {self.params} parameters")
        ends = [place for span in self.free for place in span]
        if ends and (ends != sorted(set(ends)) or ends[0] < 0 or ends[-1] > self.params):
            raise ValueError(f"free={self.free} are not places of {self.params} parameters")

    @classmethod
    def saved(cls, facts: Mapping[str, Any]) -> Sizes:
        """What ``asdict`` gave, after JSON has made lists of tuples."""
        free = tuple((start, stop) for start, stop in facts.get("free", ()))
        return cls(**{**facts, "segments": tuple(facts["segments"]), "free": free})


class Log:
    """Versions of rows at positions 0, 1, 2, ... in the order in which they were written."""

    def __init__(
        self,
        sizes: Sizes,
        encoder: str,
        anchor: Tensor,
        tiers: tuple[Tiers, Tiers],
        chunk_rows: int,
        block: int,
    ) -> None:
        """``tiers``: those of policies and bands, and those of probes."""
        self.sizes, self.encoder, self.device = sizes, encoder, anchor.device
        self.anchors = [anchor]
        """Meta-initialisations that policies are relative to; the first is the present one."""
        segments = sizes.segments or (sizes.params,)
        self.codecs = [Codec(kind, segments, block, sizes.free) for kind in KINDS]
        if sizes.free:  # rows of another lineage differ everywhere
            self.codecs.append(Codec("float32", segments, block))
        self.pools = [Pool(tiers[0], codec.record_bytes, chunk_rows) for codec in self.codecs]
        self.bands = Pool(tiers[0], 8 * sizes.horizon, chunk_rows)
        self.probes = Arena(tiers[1], _ARENA_BYTES)
        self.names: list[str] = []
        """Encoders and lineages that rows refer to by number."""
        self.infos: list[dict[str, Any]] = []
        self.other_keys: dict[int, Tensor] = {}
        """Keys by encoders other than ``encoder``, which may be of any size."""
        cpu = torch.device("cpu")
        looked_at = (*_NUMBERS, *_DEVICE_INTEGERS)
        columns = {name: Column(_dtype(name), self.device) for name in looked_at}
        columns |= {name: Column(torch.int64, cpu) for name in (*_PLACES, *_NAMES, "other_key")}
        columns["key"] = Column(torch.float32, self.device, (sizes.key,))
        self.columns = Columns(columns)

    def __len__(self) -> int:
        """Versions written."""
        return self.columns.size

    def add(self, uid: int, row: Row, codec: Codec, record: Tensor) -> int:
        """Write a row whose delta became ``record``; returns its position."""
        own = row.encoder == self.encoder
        key = row.key.detach().float().cpu()
        probe = packed(row.probe)
        values = {"mean": row.record.mean, "sd": row.record.sd, "n": row.record.n}
        values |= {name: getattr(row, name) for name in ("baseline", *COUNTERS)}
        values |= {"uid": uid, "codec": self.codecs.index(codec), "anchor": 0, "encoder": 0}
        values |= {"lineage": 1, "steps": len(row.probe.reward), "probe_bytes": len(probe)}
        values |= {"other_key": -1 if own else len(key)}
        record_of = (row.record.so_far, row.record.so_far_sd)
        state = {
            **{k: torch.tensor([v], dtype=_dtype(k)) for k, v in values.items()},
            "anchors": self.anchors[0][None],
            "key": (key if own else torch.full((self.sizes.key,), torch.nan))[None],
            "other_keys": key[:0] if own else key,
            _CODES[self.codecs.index(codec)]: record[None],
            "bands": torch.cat([band.detach().float().cpu() for band in record_of])[None],
            "probes": probe,
            "text": json_bytes({"names": [row.encoder, row.lineage], "infos": [row.info]}),
        }
        self.extend(state)
        return len(self) - 1

    def extend(self, state: Mapping[str, Tensor]) -> None:
        """Append what ``dump`` of a log of the same sizes gave."""
        text = json_value(state["text"])
        count, first = len(state["uid"]), len(self)
        anchors = torch.tensor([self._anchor(anchor) for anchor in state["anchors"]])
        names = torch.tensor([self._name(name) for name in text["names"]])
        place = torch.zeros(count, dtype=torch.int64)
        for number, (name, pool) in enumerate(zip(_CODES, self.pools, strict=False)):
            mine = (state["codec"] == number).nonzero()[:, 0]
            if len(mine):
                place[mine] = pool.size + torch.arange(len(mine))
                pool.extend(state[name])
        self.bands.size = first  # a write that failed for want of space may have left more
        self.bands.extend(state["bands"].contiguous().view(torch.uint8))
        pieces = state["probes"].split(state["probe_bytes"].tolist())
        where = torch.tensor([self.probes.put(piece) for piece in pieces]).reshape(count, 2)
        rows = {name: state[name] for name in (*_ALL, "key")}
        for name in _NAMES:
            rows[name] = names[state[name]]
        rows |= {"place": place, "anchor": anchors[state["anchor"]]}
        rows |= {"probe_chunk": where[:, 0], "probe_start": where[:, 1]}
        self.columns.extend(rows)
        self.infos += text["infos"]
        others = (state["other_key"] >= 0).nonzero()[:, 0]
        keys = state["other_keys"].split(state["other_key"][others].tolist())
        for i, key in zip(others.tolist(), keys, strict=True):
            self.other_keys[first + i] = key.clone()

    def dump(self, at: Tensor) -> dict[str, Tensor]:
        """The rows at positions ``at [M]`` as plain tensors on the CPU."""
        state = {name: self.column(name, at).cpu().clone() for name in (*_ALL, "key")}
        used, state["anchor"] = self.columns["anchor"][at].unique(return_inverse=True)
        anchors = [self.anchors[number] for number in used.tolist()] or self.anchors[:1]
        state["anchors"] = torch.stack(anchors).cpu()
        for number, (name, pool) in enumerate(zip(_CODES, self.pools, strict=False)):
            mine = at[state["codec"] == number]
            if len(mine):
                places = self.columns["place"][mine]
                state[name] = pool.get(places).cpu()
        state["bands"] = self.bands.get(at).cpu().view(torch.float32)
        probes = [self._probe(i) for i in at.tolist()]
        others = [self.other_keys[i] for i in at.tolist() if i in self.other_keys]
        state["probes"] = torch.cat(probes) if probes else torch.zeros(0, dtype=torch.uint8)
        state["other_keys"] = torch.cat(others) if others else torch.zeros(0)
        infos = [self.infos[i] for i in at.tolist()]
        state["text"] = json_bytes({"names": self.names, "infos": infos})
        return state

    def column(self, name: str, at: Tensor) -> Tensor:
        """A column at positions ``at [M]``; a view where those are all that there are, in order."""
        column = self.columns[name]
        if len(at) == 0 or (int(at[-1]) == len(at) - 1 and bool((at.diff() == 1).all())):
            return column[: len(at)]
        return column[at.to(column.device)]

    def params(self, at: Tensor) -> Tensor:
        """Policies ``[M, P]`` at positions ``at [M]``, on the device."""
        numbers, places = self.columns["codec"][at], self.columns["place"][at]
        anchors = self._anchors_of(self.columns["anchor"][at])
        used = numbers.unique().tolist()
        if len(used) == 1:
            return anchors + self.codecs[used[0]].decode(self.pools[used[0]].get(places))
        out = torch.empty(len(at), self.sizes.params, device=self.device)
        for number in used:
            mine = (numbers == number).nonzero()[:, 0]
            delta = self.codecs[number].decode(self.pools[number].get(places[mine]))
            out[mine.to(self.device)] = delta
        return anchors + out

    def bands_at(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Mean return so far and its sd ``[M, H]`` at positions ``at [M]``, on the device."""
        both = self.bands.get(at).view(torch.float32)
        return both[:, : self.sizes.horizon], both[:, self.sizes.horizon :]

    def row(self, i: int) -> Row:
        """The row at a position, whole, on the CPU."""
        at = torch.tensor([i])
        counters = {name: int(self.columns[name][i]) for name in COUNTERS}
        mean, sd, baseline = (float(self.columns[name][i]) for name in _NUMBERS)
        so_far, so_far_sd = (band[0].cpu() for band in self.bands_at(at))
        steps = int(self.columns["steps"][i])
        key = self.other_keys.get(i)
        return Row(
            key=(self.columns["key"][i].cpu() if key is None else key).clone(),
            encoder=self.name_of("encoder", i),
            params=self.params(at)[0].cpu(),
            lineage=self.name_of("lineage", i),
            record=ReturnRecord(mean, sd, int(self.columns["n"][i]), so_far, so_far_sd),
            baseline=baseline,
            probe=unpacked(self._probe(i), steps, self.sizes.obs, self.sizes.action),
            info=dict(self.infos[i]),
            **counters,
        )

    def row_bytes(self, key: int, codec: Codec, probe_bytes: int, info: dict[str, Any]) -> int:
        """What a row takes, of which the last three differ from row to row."""
        other = 0 if key < 0 else 4 * key
        pools = codec.record_bytes + self.bands.record_bytes
        return self.columns.row_bytes + other + pools + probe_bytes + len(json.dumps(info))

    def bytes_at(self, i: int) -> int:
        """Bytes of the row at a position."""
        at = {name: int(self.columns[name][i]) for name in ("other_key", "codec", "probe_bytes")}
        codec = self.codecs[at["codec"]]
        return self.row_bytes(at["other_key"], codec, at["probe_bytes"], self.infos[i])

    def name_of(self, kind: str, i: int) -> str:
        """The ``"encoder"`` or ``"lineage"`` of the row at a position."""
        return self.names[int(self.columns[kind][i])]

    def _probe(self, i: int) -> Tensor:
        where = ("probe_chunk", "probe_start", "probe_bytes")
        return self.probes.get(*(int(self.columns[name][i]) for name in where))

    def _anchors_of(self, numbers: Tensor) -> Tensor:
        """``[P]`` where all rows have the same, else ``[M, P]``."""
        used = numbers.unique().tolist()
        if len(used) == 1:
            return self.anchors[used[0]]
        return torch.stack([self.anchors[i] for i in numbers.tolist()])

    def _anchor(self, anchor: Tensor) -> int:
        for number, known in enumerate(self.anchors):
            if torch.equal(known.cpu(), anchor.cpu()):
                return number
        self.anchors.append(anchor.to(self.device))
        return len(self.anchors) - 1

    def _name(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


def _dtype(name: str) -> torch.dtype:
    return torch.float64 if name in _NUMBERS else torch.int64
