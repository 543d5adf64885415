"""The bank: the rows of the memory on a device, read through immutable snapshots.

Rows are appended to a log (``log``); replacing or removing one only changes what the bank counts as
its rows, so whoever holds a snapshot goes on reading the old ones. When more of the log is dead
than alive, a new one is made of the living and takes its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from agent.memory.codec import Codec, Kind, fit_codec
from agent.memory.key.base import Key
from agent.memory.limits import (
    BankConfig,
    BankFullError,
    LineageMismatchError,
    refuse_unlike,
    shortened,
)
from agent.memory.log import Log, Sizes
from agent.memory.packing import json_bytes, json_value, packed
from agent.memory.rewriting import State, with_keys, with_lineage
from agent.memory.row import Row
from agent.memory.snapshot import Snapshot
from agent.memory.tiers import TierName, Tiers

__all__ = ["Bank", "BankConfig", "BankFullError", "Check", "LineageMismatchError", "Sizes"]

Check = Callable[[Tensor], bool]
"""Whether a policy ``[P]``, decoded, is still good enough."""
_PART = 1024  # rows copied at a time
_FEWEST_DEAD = 64  # rows, before a log is worth compacting


class Bank:
    """Rows by uid, a number that a row keeps when it is replaced. One writer; many readers."""

    def __init__(
        self,
        config: BankConfig,
        sizes: Sizes,
        anchor: Tensor,
        lineage: str,
        device: torch.device | str = "cpu",
        encoder: str = "",
        tiers: Tiers | None = None,
    ) -> None:
        """Rows relative to the meta-initialisation ``anchor [P]``.

        ``encoder`` is the version of the key whose keys are compared; empty: that of the first row.
        ``tiers`` replaces those of the settings.
        """
        if anchor.shape != (sizes.params,):
            raise ValueError(f"the anchor must be [{sizes.params}], got {tuple(anchor.shape)}")
        self.config, self.lineage, self.device = config, lineage, torch.device(device)
        bulk = tiers or Tiers.named(config.tiers, self.device, config.folder, config.device_bytes)
        off_device: list[TierName] = [name for name in config.tiers if name != "device"]
        probes = tiers or Tiers.named(off_device or config.tiers, self.device, config.folder)
        self._tiers = (bulk, probes)
        anchor = anchor.detach().to(self.device, torch.float32, copy=True)
        self._log = self._new_log(sizes, encoder, anchor)
        self._at: dict[int, int] = {}
        self._next = 0
        self._bytes = 0
        self._snapshot: Snapshot | None = None

    @property
    def sizes(self) -> Sizes:
        """D, P, H, O and A of the rows."""
        return self._log.sizes

    @property
    def anchor(self) -> Tensor:
        """The meta-initialisation ``[P]``."""
        return self._log.anchors[0]

    @property
    def encoder(self) -> str:
        """Version of the key whose keys are compared."""
        return self._log.encoder

    @property
    def bytes(self) -> int:
        """Bytes of the rows held now, with all that is kept of them."""
        return self._bytes

    def __len__(self) -> int:
        """Rows held now."""
        return len(self._at)

    def __contains__(self, uid: object) -> bool:
        """Whether there is a row of this name."""
        return uid in self._at

    def append(self, row: Row, check: Check | None = None) -> int:
        """Write a row; returns its uid. It gets more bits as long as ``check`` says no.

        Raises:
            BankFullError: There is no room; nothing was written.
            ValueError: The row is not like those of this bank, or not finite.
        """
        if len(self) >= self.config.rows:
            raise BankFullError(f"the bank holds its {self.config.rows} rows already")
        uid = self._next
        self._put(uid, row, check, freed=0)
        self._next += 1
        return uid

    def replace(
        self, uid: int, row: Row, check: Check | None = None, kind: Kind | None = None
    ) -> None:
        """A new version of a row; snapshots keep the old one, and so does the bank if this raises.

        It is coded as ``kind`` at least; None: as set.

        Raises:
            KeyError: There is no such row.
            BankFullError: The new version is larger and there is no room.
            ValueError: The row is not like those of this bank, or not finite.
        """
        self._put(uid, row, check, self._log.bytes_at(self._position(uid)), kind)
        self._tidy()

    def remove(self, uid: int) -> None:
        """Forget a row; snapshots keep it. KeyError if there is none."""
        self._bytes -= self._log.bytes_at(self._position(uid))
        del self._at[uid]
        self._snapshot = None
        self._tidy()

    def count(
        self,
        uid: int,
        *,
        visits: int = 0,
        recalls: int = 0,
        accepted: int = 0,
        time: int | None = None,
    ) -> None:
        """Add to a row's counters, and set its time, without writing a new version."""
        at = self._position(uid)
        for name, more in (("visits", visits), ("recalls", recalls), ("accepted", accepted)):
            self._log.columns[name][at] += more
        if time is not None:
            self._log.columns["time"][at] = time
        self._snapshot = None

    def row(self, uid: int) -> Row:
        """A row, whole: its tensors on the CPU, its policy decoded. KeyError if there is none."""
        return self._log.row(self._position(uid))

    def codec(self, uid: int) -> Kind:
        """How a row's policy is coded."""
        return self._log.codecs[int(self._log.columns["codec"][self._position(uid)])].kind

    def snapshot(self) -> Snapshot:
        """The rows as they are now, in the order of their uids."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self._log, self._living(), self.lineage)
        return self._snapshot

    def compact(self) -> None:
        """Give back the space of what was replaced or removed, once no snapshot holds it."""
        self._rewrite(self._new_log(self.sizes, self.encoder, self.anchor))

    def rebase(
        self, anchor: Tensor, lineage: str, check: Callable[[int, Tensor], bool] | None = None
    ) -> None:
        """Move to a new meta-initialisation ``anchor [P]``; what every row does stays the same.

        Rows of the bank's lineage are of the new ``lineage`` then. Without ``check`` a row stays
        coded against the anchor that it was made from, which is kept as long as such rows are: its
        policy does not change by a bit. With ``check(uid, policy)`` each row is coded anew against
        the new anchor, in the fewest bits, from the configured ones up, that pass.
        """
        if anchor.shape != self.anchor.shape:
            raise ValueError(f"the anchor must be [{self.sizes.params}], got {tuple(anchor.shape)}")
        log = self._new_log(self.sizes, self.encoder, anchor)
        if check is None:
            self._rewrite(log, lambda _, state: with_lineage(state, self.lineage, lineage))
        else:
            for uid in self._at:
                row = self.row(uid)
                own = row.lineage == self.lineage
                row = row.with_(lineage=lineage if own else row.lineage)
                codec, record = self._coded(row, log, own, lambda p, u=uid: check(u, p))
                log.add(uid, row, codec, record)
            self._take(log)
        self.lineage = lineage

    def rekey(self, key: Key) -> None:
        """Make the keys of all rows anew from their probes; from now on ``key``'s are compared."""
        old = self._log
        sizes = dataclasses.replace(self.sizes, key=key.size)
        log = self._new_log(sizes, key.version, self.anchor)
        self._rewrite(
            log,
            lambda at, state: with_keys(state, key, [old.row(i) for i in at.tolist()], self.device),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as plain tensors on the CPU."""
        facts = {"lineage": self.lineage, "encoder": self.encoder, "next": self._next}
        facts |= {"sizes": dataclasses.asdict(self.sizes), "block": self.config.block}
        rows = self._log.dump(self._living())
        return rows | {"meta_init": self.anchor.cpu().clone(), "facts": json_bytes(facts)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved rows, their meta-initialisation and key version, on this device.

        Raises:
            LineageMismatchError: They are of another lineage.
            BankFullError: They are more than this bank may hold.
            ValueError: They are of policies or episodes of other sizes.
        """
        facts = json_value(state["facts"])
        if facts["lineage"] != self.lineage:
            raise LineageMismatchError(
                f"the saved memory is of lineage {facts['lineage']!r}, this one of "
                f"{self.lineage!r}: its policies were worked out from another meta-initialisation"
            )
        saved = Sizes.saved(facts["sizes"])
        # Keys may be of any size, as their encoder comes along.
        here = dataclasses.replace(self.sizes, key=saved.key)
        if saved != here or facts["block"] != self.config.block:
            raise ValueError(
                f"the saved memory holds rows of {saved} in blocks of {facts['block']}, "
                f"this one of {self.sizes} in blocks of {self.config.block}"
            )
        anchor = state["meta_init"].to(self.device, torch.float32, copy=True)
        log = self._new_log(saved, facts["encoder"], anchor)
        if len(state["uid"]):
            log.extend({name: value.cpu() for name, value in state.items()})
        held = sum(log.bytes_at(i) for i in range(len(log)))
        if len(log) > self.config.rows or (self.config.bytes or held) < held:
            raise BankFullError(
                f"the saved memory has {len(log)} rows of {held:,} bytes together, but this one "
                f"may hold {self.config.rows} rows and {self.config.bytes or 'any number of'} bytes"
            )
        self._take(log)
        self._next = facts["next"]

    def _put(
        self, uid: int, row: Row, check: Check | None, freed: int, kind: Kind | None = None
    ) -> None:
        """Write a version of a row, if it fits once ``freed`` bytes are given back."""
        if not self.encoder and len(self._log) == 0:
            self._log.encoder = row.encoder
        refuse_unlike(row, self.sizes, self.encoder)
        row = row.with_(probe=shortened(row.probe, self.config.probe_steps))
        own = row.lineage == self.lineage
        codec, record = self._coded(row, self._log, own, check, kind)
        other = -1 if row.encoder == self.encoder else len(row.key)
        size = self._log.row_bytes(other, codec, len(packed(row.probe)), row.info)
        most = self.config.bytes
        if most is not None and self._bytes - freed + size > most:
            raise BankFullError(
                f"the row takes {size:,} bytes, but {most - self._bytes + freed:,} of {most:,} "
                "are left"
            )
        self._at[uid] = self._log.add(uid, row, codec, record)
        self._bytes += size - freed
        self._snapshot = None

    def _coded(
        self, row: Row, log: Log, own: bool, check: Check | None, kind: Kind | None = None
    ) -> tuple[Codec, Tensor]:
        """A row's policy, coded in as few bits as the settings and the check allow.

        One of another lineage is far from the anchor, and would lose too much in few bits.
        """
        anchor = log.anchors[0]
        delta = row.params.detach().to(anchor.device, torch.float32) - anchor
        start: Kind = (kind or self.config.codec) if own else "float32"
        return fit_codec(
            delta,
            lambda decoded: check is None or check(anchor + decoded),
            log.codecs[0].segments,
            start,
            self.config.block,
            self.sizes.free,
        )

    def _position(self, uid: int) -> int:
        if uid not in self._at:
            raise KeyError(f"no row {uid} in this bank of {len(self)} rows")
        return self._at[uid]

    def _living(self) -> Tensor:
        return torch.tensor(list(self._at.values()), dtype=torch.int64)

    def _tidy(self) -> None:
        dead = len(self._log) - len(self)
        if dead >= _FEWEST_DEAD and dead > len(self):
            self.compact()

    def _new_log(self, sizes: Sizes, encoder: str, anchor: Tensor) -> Log:
        chunk_rows = min(self.config.chunk_rows, 2 * self.config.rows)
        return Log(sizes, encoder, anchor, self._tiers, chunk_rows, self.config.block)

    def _rewrite(self, log: Log, change: Callable[[Tensor, State], State] | None = None) -> None:
        """Copy the living rows to another log, part by part, and take that instead."""
        if len(self):
            for at in self._living().split(_PART):
                state = self._log.dump(at)
                log.extend(state if change is None else change(at, state))
        self._take(log)

    def _take(self, log: Log) -> None:
        self._log = log
        self._at = {uid: i for i, uid in enumerate(log.columns["uid"].tolist())}
        self._bytes = sum(log.bytes_at(i) for i in self._at.values())
        self._snapshot = None
