"""Who gives way when the memory is full: by default the row that would be missed least.

A row is worth ``p(recur) * gain * (1 - redundancy)``: how often its task comes, what the policy is
worth there, and what of that no other row would do as well. Only gains are looked at, differences
of returns, so that it makes no difference whether returns are negative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.row import Row
from agent.memory.snapshot import Snapshot

Alike = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""Probability ``[T, N]`` that query ``[T, D]`` and row ``[N, D]`` are of the same task; the texts
are the versions of the rows' keys. ``merge.likeness`` makes one of a key and its calibration."""


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The numbers that decide who gives way, one entry per row; the newcomer is the last entry."""

    key: Tensor
    """``[N, D]``."""
    encoder: list[str]
    """Versions of the keys."""
    gain: Tensor
    """``[N]`` float64, return above the meta-initialisation's."""
    visits: Tensor
    """``[N]`` int64."""
    time: Tensor
    """``[N]`` int64."""
    uid: Tensor
    """``[N]`` int64; the newcomer's is larger than any other."""

    @classmethod
    def of(cls, rows: Snapshot, newcomer: Row, instead_of: int | None = None) -> Ledger:
        """Of all rows of a bank and of one that waits to be let in, ``instead_of`` one of them."""
        stays = rows.uids != (-1 if instead_of is None else instead_of)
        uids = rows.uids[stays]

        def column(values: Tensor, last: float, dtype: torch.dtype) -> Tensor:
            told = values.detach().cpu().to(dtype)[stays]
            return torch.cat([told, torch.tensor([last], dtype=dtype)])

        key = newcomer.key.detach().to(rows.keys)
        if newcomer.encoder != rows.encoder:
            key = torch.full_like(rows.anchor[:1], torch.nan).expand(rows.keys.shape[1])
        kept = zip(rows.encoders, stays.tolist(), strict=True)
        return cls(
            key=torch.cat([rows.keys[stays.to(rows.keys.device)], key[None]]),
            encoder=[*(version for version, stay in kept if stay), newcomer.encoder],
            gain=column(rows.mean - rows.baseline, newcomer.gain, torch.float64),
            visits=column(rows.visits, newcomer.visits, torch.int64),
            time=column(rows.time, newcomer.time, torch.int64),
            uid=torch.cat(
                [uids, rows.uids.amax(0, keepdim=True) + 1 if len(rows) else rows.uids.new_zeros(1)]
            ),
        )

    def __len__(self) -> int:
        """N, the newcomer included."""
        return len(self.uid)


@dataclass(kw_only=True, config={"extra": "forbid"})
class EvictConfig:
    """Who gives way when the memory is full."""

    kind: Literal["value", "fifo", "lru", "random", "reservoir"] = "value"
    """``value``: least worth; ``fifo``: first written; ``lru``: longest of no use; ``random``;
    ``reservoir``: random, and newcomers get in ever more rarely: an even sample of all writes."""
    zeta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Weight of a new task among ``zeta + all visits``, as in the recurrence prior."""
    shortlist: Annotated[int, Field(ge=2)] = 64
    """``value``: rows of least worth for which redundancy is computed (a scoring of all rows)."""


def leaving(
    config: EvictConfig,
    ledger: Ledger,
    alike: Alike | None,
    generator: torch.Generator,
    seen: int,
) -> int:
    """Position in the ledger of the row to go; the last means that the newcomer is not let in.

    ``seen`` is how many rows were ever offered, the newcomer included.
    """
    stored = len(ledger) - 1
    if stored == 0:
        return stored
    if config.kind == "fifo":
        return _first(ledger.uid[:stored])
    if config.kind == "lru":
        return _first(ledger.time[:stored], ledger.uid[:stored])
    if config.kind == "value":
        value = worth(ledger, alike, config.zeta, config.shortlist)
        return _first(value, ledger.visits, ledger.time, ledger.uid)
    most = stored if config.kind == "random" else max(seen, stored + 1)
    drawn = int(torch.randint(most, (1,), generator=generator))
    return min(drawn, stored)


def worth(ledger: Ledger, alike: Alike | None, zeta: float = 1.0, shortlist: int = 64) -> Tensor:
    """``p(recur) * gain * (1 - redundancy)``, ``[N]`` float64; 0 for a row that gains nothing.

    Redundancy is the share of the row's gain that the most helpful other row would keep: how likely
    it is of the same task, times its own gain there over this row's, at most 1. So of two rows of
    one task the better is worth what it has over the other, and the worse nothing. It is computed
    for the ``shortlist`` rows that are worth least without it.
    """
    visits = ledger.visits.clamp(min=0).double()
    gain = ledger.gain.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    value = visits / (visits.sum() + zeta) * gain
    if alike is None or len(ledger) < 2:
        return value
    looked_at = value.argsort(stable=True)[:shortlist]
    own = value[looked_at] * (1 - _redundancy(ledger, gain, alike, looked_at))
    return value.index_copy(0, looked_at, own)


def _redundancy(ledger: Ledger, gain: Tensor, alike: Alike, looked_at: Tensor) -> Tensor:
    """Of the rows at ``looked_at [M]``, in [0, 1]."""
    share = torch.zeros(len(looked_at), dtype=torch.float64)
    for version in {ledger.encoder[i] for i in looked_at.tolist()}:
        mine = torch.tensor([ledger.encoder[i] == version for i in looked_at.tolist()])
        query = looked_at[mine]
        asked = ledger.key[query.to(ledger.key.device)]
        same = alike(asked, ledger.key, ledger.encoder).double().cpu()
        other = torch.tensor([v != version for v in ledger.encoder])
        same = same.nan_to_num(nan=0.0).masked_fill(other, 0.0)
        same[torch.arange(len(query)), query] = 0.0
        kept = (gain / gain[query, None].clamp(min=1e-12)).clamp(max=1.0)
        share[mine] = (same * kept).amax(-1).clamp(0.0, 1.0)
    return share


def _first(*columns: Tensor) -> int:
    """Position of the least entry; ties are settled by the next column."""
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return min(range(len(rows)), key=rows.__getitem__)
