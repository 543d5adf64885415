"""The one writer of a memory folder: commits that are whole and on the disk, or never were."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from agent.files import BadFileError, write_atomic
from agent.memory.manifest import (
    NAME,
    PREVIOUS,
    Manifest,
    MemoryFolderError,
    Rows,
    load,
    part_of,
    publish,
    read_manifest,
    read_part,
    spans,
)
from agent.memory.row import Row
from agent.memory.row_record import Record, coding_of, pack
from agent.memory.segment import Segment, segment_bytes, shape_of

MOST_SEGMENTS = 64
"""Files of rows beyond which the smaller half is made one."""
SEGMENT_BYTES = 256 * 2**20
"""Bytes of a file of rows, about, at most."""


class MemoryFullError(MemoryFolderError):
    """The folder's capacity is reached: remove something in the same commit, or before."""


class MemoryWriter:
    """Writes to a memory folder; made by ``MemoryFolder.writer``, which holds the lock.

    What a method returned from is on the disk and stays there if the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, folder / "data"
        self._data.mkdir(parents=True, exist_ok=True)
        self._segments: dict[str, Segment] = {}
        self._manifest, fault = Manifest(), None
        is_new = not (folder / NAME).is_file()
        if not is_new:
            self._manifest, fault = load(folder)
        self._codings = {
            name: coding_of(read_part(folder, part)["anchor"], part.settings)
            for name, part in self._manifest.lineages.items()
        }
        if fault is not None:
            self._set_aside()
        if fault is not None or is_new:
            self._publish(self._manifest)
        self._tidy()

    def __len__(self) -> int:
        """Rows that count now."""
        return self._manifest.rows

    @property
    def manifest(self) -> Manifest:
        """What was committed last."""
        return self._manifest

    @property
    def uids(self) -> list[int]:
        """Names of the rows, oldest first."""
        return sorted(uid for entry in self._manifest.segments for uid in entry.uids)

    @property
    def capacity(self) -> int | None:
        """Rows at most; None: no limit."""
        return self._manifest.capacity

    def append(self, row: Row) -> int:
        """Write a row; returns its uid."""
        return self.commit(add=[row])[0]

    def replace(self, uid: int, row: Row) -> None:
        """Write a new version of a row. KeyError if there is none."""
        self._must_have([uid])
        self.commit(put={uid: row})

    def remove(self, uid: int) -> None:
        """Forget a row. KeyError if there is none."""
        self.commit(remove=[uid])

    def commit(
        self,
        *,
        add: Sequence[Row] = (),
        put: Mapping[int, Row] | None = None,
        remove: Iterable[int] = (),
    ) -> list[int]:
        """Several changes at once: readers see all of them or none.

        ``add`` gets new uids, which are returned; ``put`` writes rows under given ones, new or not.

        Raises:
            KeyError: A row to remove is not there.
            MemoryFullError: There would be more rows than the capacity; nothing was written.
            ValueError: A row is not finite or not of its lineage; nothing was written.
        """
        manifest, put, gone = self._manifest, dict(put or {}), set(remove)
        self._must_have(gone)
        if wrong := [uid for uid in put if uid < 0 or uid in gone]:
            raise ValueError(f"rows {wrong}: both written and removed, or not a name of a row")
        first = max([manifest.next_uid, *(uid + 1 for uid in put)])
        new = dict(enumerate(add, first))
        after = len((set(self.uids) - gone) | put.keys()) + len(new)
        if manifest.capacity is not None and after > manifest.capacity:
            raise MemoryFullError(
                f"{self._folder}: {after} rows do not fit, the capacity is {manifest.capacity}"
            )
        rows = sorted((put | new).items())
        self._change([(uid, self.packed(row)) for uid, row in rows], gone, first + len(new))
        return list(new)

    def mirror(self, rows: Mapping[int, Row]) -> int:
        """Make the folder hold exactly these rows, in one commit; returns how many were written.

        Rows that are there already, unchanged, are left alone.

        Raises:
            MemoryFullError: They are more than the capacity; nothing was written.
        """
        if self.capacity is not None and len(rows) > self.capacity:
            raise MemoryFullError(
                f"{self._folder}: {len(rows)} rows do not fit, the capacity is {self.capacity}"
            )
        there = self._where()
        digests = {uid: s.digest(uid) for uid, s in there.items() if s is not None}
        packed = [(uid, self.packed(rows[uid])) for uid in sorted(rows)]
        changed = [(uid, record) for uid, record in packed if digests.get(uid) != record.digest]
        self._change(changed, there.keys() - rows.keys(), max(rows, default=-1) + 1)
        return len(changed)

    def compact(self) -> None:
        """Put small segments together and drop what no longer counts; frees the space at once."""
        batch: list[Rows] = []
        for entry in sorted(self._manifest.segments, key=lambda entry: entry.bytes):
            if batch and sum(e.bytes for e in batch) + entry.bytes > SEGMENT_BYTES:
                self._rewrite(batch)
                batch = []
            batch.append(entry)
        self._rewrite(batch)
        self._publish(self._manifest)  # so that the manifest before names no old file either

    def limit(self, capacity: int | None) -> None:
        """Set the capacity.

        Raises:
            MemoryFullError: There are more rows already.
        """
        if capacity is not None and self._manifest.rows > capacity:
            raise MemoryFullError(
                f"{self._folder}: holds {self._manifest.rows} rows, which is more than "
                f"capacity={capacity}; prune it first"
            )
        if capacity != self._manifest.capacity:
            self._publish(replace(self._manifest, capacity=capacity))

    def set_lineage(
        self,
        name: str,
        anchor: Tensor,
        state: Mapping[str, Tensor] | None = None,
        settings: Mapping[str, Any] | None = None,
        current: bool = True,
    ) -> None:
        """What rows of a lineage are relative to, ``anchor [P]``; ``current``: rows written now.

        ``settings["segments"]``: how P divides into layers (see ``Codec``); ``settings["free"]``:
        spans of P that differ from the anchor, where not all do.

        Raises:
            MemoryFolderError: There is another anchor of that name, and rows relative to it.
        """
        data, part = part_of({**(state or {}), "anchor": anchor}, settings)
        known = self._manifest.lineages.get(name)
        if known is not None and known != part and self._uses(name):
            raise MemoryFolderError(
                f"{self._folder}: rows of lineage {name!r} are relative to another "
                "meta-initialisation; a new one needs a new name"
            )
        write_atomic(self._data / part.name, data)
        lineages = self._manifest.lineages | {name: part}
        now = name if current else self._manifest.lineage
        self._publish(replace(self._manifest, lineage=now, lineages=lineages))
        self._codings[name] = coding_of(anchor.detach().cpu().clone(), part.settings)

    def set_encoder(
        self,
        version: str,
        state: Mapping[str, Tensor],
        settings: Mapping[str, Any] | None = None,
        current: bool = True,
    ) -> None:
        """What makes keys of this version; ``current``: those of rows written now."""
        data, part = part_of(state, settings)
        write_atomic(self._data / part.name, data)
        encoders = self._manifest.encoders | {version: part}
        now = version if current else self._manifest.encoder
        self._publish(replace(self._manifest, encoder=now, encoders=encoders))

    def packed(self, row: Row) -> Record:
        """The row as it would be written here."""
        return pack(row, self._codings.get(row.lineage))

    def digests(self) -> dict[bytes, int]:
        """The uid of each row by its record's digest."""
        return {s.digest(uid): uid for uid, s in self._where().items() if s is not None}

    def _where(self) -> dict[int, Segment | None]:
        """The segment of each row; None where it is damaged."""
        out: dict[int, Segment | None] = {}
        for entry in self._manifest.segments:
            try:
                segment = self._open(entry)
            except (BadFileError, FileNotFoundError):
                segment = None
            out |= {uid: segment if segment and uid in segment else None for uid in entry.uids}
        return out

    def _must_have(self, uids: Iterable[int]) -> None:
        if missing := set(uids) - set(self.uids):
            raise KeyError(f"{self._folder}: no rows {sorted(missing)}")

    def _uses(self, lineage: str) -> bool:
        texts = [s.words(uid) for uid, s in self._where().items() if s is not None]
        return any(json.loads(text).get("lineage") == lineage for text in texts)

    def _open(self, entry: Rows) -> Segment:
        if entry.name not in self._segments:
            self._segments[entry.name] = Segment(self._data / entry.name, entry.bytes)
        return self._segments[entry.name]

    def _change(self, rows: Sequence[tuple[int, Record]], gone: Set[int], next_uid: int) -> None:
        """One commit of packed rows, and now and then some order among the segments."""
        if not rows and not gone:
            return
        self._write(rows, gone | {uid for uid, _ in rows}, next_uid)
        if len(self._manifest.segments) <= MOST_SEGMENTS:
            return
        batch, size = [], 0
        for entry in sorted(self._manifest.segments, key=lambda entry: entry.bytes):
            size += entry.bytes
            if size > SEGMENT_BYTES or len(batch) > MOST_SEGMENTS // 2:
                break
            batch.append(entry)
        if len(batch) > MOST_SEGMENTS // 4:  # or it would be done again after every commit
            try:
                self._rewrite(batch)
            except (
                OSError
            ) as error:  # the commit itself is done: it must not look as if it were not
                print(f"warning: {self._folder}: not compacted ({error})", file=sys.stderr)

    def _write(self, rows: Sequence[tuple[int, Record]], gone: Set[int], next_uid: int) -> None:
        """New segments first, then the manifest that names them."""
        number, segments = self._manifest.next_file, []
        for entry in self._manifest.segments:
            kept = [uid for uid in entry.uids if uid not in gone]
            if kept:
                segments.append(replace(entry, alive=spans(kept)))
        for group in _grouped(rows):
            data = segment_bytes(group)
            name = f"rows-{number:08d}.safetensors"
            write_atomic(self._data / name, data)
            alive = spans(uid for uid, _ in group)
            sha256 = hashlib.sha256(data).hexdigest()
            segments.append(Rows(name=name, bytes=len(data), sha256=sha256, alive=alive))
            number += 1
        next_uid = max(next_uid, self._manifest.next_uid)
        self._publish(
            replace(self._manifest, segments=segments, next_file=number, next_uid=next_uid)
        )

    def _rewrite(self, entries: Sequence[Rows]) -> None:
        """Put the rows of some segments together; segments with damage are left as they are."""
        rows: list[tuple[int, Record]] = []
        for entry in entries:
            try:
                segment = self._open(entry)
                rows += [(uid, segment.record(uid)) for uid in entry.uids]
            except (BadFileError, FileNotFoundError) as error:
                print(f"warning: {error}; the file is left as it is", file=sys.stderr)
        if rows:
            self._write(sorted(rows, key=lambda row: row[0]), {uid for uid, _ in rows}, 0)

    def _publish(self, manifest: Manifest) -> None:
        manifest = replace(manifest, generation=self._manifest.generation + 1)
        try:
            publish(self._folder, manifest)
        except BaseException:
            # Whether the rename had happened is for the disk to say.
            if (self._folder / NAME).is_file():
                self._manifest = load(self._folder)[0]
            raise
        self._manifest = manifest
        self._tidy()

    def _tidy(self) -> None:
        """Delete what neither this manifest nor the one before names, and what a kill has left."""
        named = {file.name for file in self._manifest.files}
        if (self._folder / PREVIOUS).is_file():
            try:
                named |= {file.name for file in read_manifest(self._folder / PREVIOUS).files}
            except BadFileError:
                pass  # it is replaced at the next commit; nothing depends on it until then
        for path in [*self._folder.glob(".*.tmp"), *self._data.iterdir()]:
            if path.suffix in (".tmp", ".safetensors") and path.name not in named:
                path.unlink(missing_ok=True)
        self._segments = {name: s for name, s in self._segments.items() if name in named}

    def _set_aside(self) -> None:
        """The newest manifest is damaged: keep it, and the files that only it may have named."""
        damaged = self._folder / NAME
        write_atomic(self._folder / f"{NAME}.damaged", damaged.read_bytes())
        os.replace(self._folder / PREVIOUS, damaged)
        named = {file.name for file in self._manifest.files}
        for path in self._data.glob("*.safetensors"):
            if path.name not in named:
                path.rename(path.with_suffix(".orphan"))


def _grouped(rows: Sequence[tuple[int, Record]]) -> list[list[tuple[int, Record]]]:
    """Rows that fit into one segment: of one shape, and not too many."""
    groups: dict[object, list[list[tuple[int, Record]]]] = {}
    sizes: dict[object, int] = {}
    for uid, record in rows:
        shape = shape_of(record)
        size = sum(value.nbytes for value in record.tensors.values())
        if shape not in groups or sizes[shape] + size > SEGMENT_BYTES:
            groups.setdefault(shape, []).append([])
            sizes[shape] = 0
        groups[shape][-1].append((uid, record))
        sizes[shape] += size
    return [group for parts in groups.values() for group in parts]
