"""What a reader holds: the memory as it was at one moment, whatever is written afterwards."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from agent.memory.log import COUNTERS, Log
from agent.memory.row import Row


class Snapshot:
    """N rows, the longest known first. Index i means the same row for as long as it is held.

    Indices of rows may be -1, "no row": its policy is the meta-initialisation and its band 0.
    """

    def __init__(self, log: Log, at: Tensor, lineage: str) -> None:
        """Rows at positions ``at [N]`` of a log. Their counters, which may change, are copied."""
        self._log, self._at = log, at
        self.anchor, self.lineage = log.anchors[0], lineage
        """``[P]``, the meta-initialisation, and its lineage."""
        self.uids = log.columns["uid"][at]
        """``[N]`` int64 on the CPU: what a row is called, also after it was replaced."""
        counters = {name: log.column(name, at).clone() for name in COUNTERS}
        self.visits, self.recalls = counters["visits"], counters["recalls"]
        """``[N]`` int64."""
        self.accepted, self.time = counters["accepted"], counters["time"]
        """``[N]`` int64."""
        self.mean, self.sd, self.n = (log.column(name, at) for name in ("mean", "sd", "n"))
        """``[N]``, the return record: float64, float64, int64."""
        self.baseline = log.column("baseline", at)
        """``[N]`` float64."""

    def __len__(self) -> int:
        """N."""
        return len(self._at)

    @property
    def encoder(self) -> str:
        """Version of the key that made ``keys``; only its queries may be compared with them."""
        return self._log.encoder

    @cached_property
    def keys(self) -> Tensor:
        """``[N, D]`` float32 on the device; NaN where another encoder made the row's key."""
        return self._log.column("key", self._at)

    @cached_property
    def encoders(self) -> list[str]:
        """The version of the key that made each row's."""
        return self._names("encoder")

    @cached_property
    def lineages(self) -> list[str]:
        """The lineage of each row."""
        return self._names("lineage")

    @property
    def mixable(self) -> Tensor:
        """``[N]`` bool: of the anchor's lineage, so that parameters may be mixed with it."""
        own = [lineage == self.lineage for lineage in self.lineages]
        return torch.tensor(own, dtype=torch.bool, device=self.anchor.device)

    @cached_property
    def so_far(self) -> Tensor:
        """Mean return up to each step of all rows, ``[N, H]``; ``bands`` reads only some."""
        return self._bands[0]

    @cached_property
    def so_far_sd(self) -> Tensor:
        """Its standard deviation between episodes, ``[N, H]``."""
        return self._bands[1]

    @cached_property
    def _bands(self) -> tuple[Tensor, Tensor]:
        return self._log.bands_at(self._at)

    def bands(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """``so_far`` and ``so_far_sd`` ``[..., H]`` of the rows ``index [...]``."""
        at, some = self._places(index)
        both = self.anchor.new_zeros(2, index.numel(), self._log.sizes.horizon)
        both[:, some.to(both.device)] = torch.stack(self._log.bands_at(at))
        so_far, so_far_sd = both.unflatten(1, index.shape)
        return so_far, so_far_sd

    def params(self, index: Tensor) -> Tensor:
        """Policies ``[..., P]`` of the rows ``index [...]``, stacked; the anchor where it is -1."""
        at, some = self._places(index)
        if len(some) == index.numel() > 0:
            return self._log.params(at).unflatten(0, index.shape)
        out = self.anchor.repeat(index.numel(), 1)
        if len(some):
            out[some.to(out.device)] = self._log.params(at)
        return out.unflatten(0, index.shape)

    def row(self, i: int) -> Row:
        """Row i, whole: its tensors on the CPU, its policy decoded."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of a snapshot of {len(self)} rows")
        counters = {name: int(getattr(self, name)[i]) for name in COUNTERS}
        return self._log.row(int(self._at[i])).with_(**counters)

    def index_of(self, uid: int) -> int:
        """Where the row called ``uid`` is; KeyError if it is not in this snapshot."""
        found = (self.uids == uid).nonzero()[:, 0]
        if len(found) == 0:
            raise KeyError(f"no row {uid} in this snapshot of {len(self)} rows")
        return int(found[0])

    def _names(self, kind: str) -> list[str]:
        names = self._log.names
        return [names[number] for number in self._log.columns[kind][self._at].tolist()]

    def _places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the log of the rows asked for, and which of the flat index they are."""
        flat = index.flatten().cpu()
        if bool(((flat < -1) | (flat >= len(self))).any()):
            raise IndexError(f"rows {index.tolist()} of a snapshot of {len(self)} rows")
        some = (flat >= 0).nonzero()[:, 0]
        return self._at[flat[some]], some
