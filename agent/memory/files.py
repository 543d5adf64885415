"""A memory on disk: append-only segments and a manifest; one writer, readers in any process.

    <folder>/manifest.json            which files count, replaced by renames (see ``manifest``)
    <folder>/manifest.previous.json   the one before
    <folder>/data/rows-*.safetensors  segments: rows (see ``segment``)
    <folder>/data/part-*.safetensors  anchors of lineages, states of encoders
    <folder>/.lock                    held by the writer

A commit writes its segment, waits until it is on the disk, and then renames a new manifest into
place. A writer that is killed leaves at worst a file that no manifest names; the next one deletes
it. What a reader opened stays readable for as long as it holds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from agent.files import BadFileError
from agent.memory.folder_writer import MemoryWriter
from agent.memory.manifest import Manifest, MemoryFolderError, Part, load, read_part
from agent.memory.row import Row
from agent.memory.row_record import Coding, Record, coding_of, unpack
from agent.memory.segment import DamagedRowError, Segment

_ATTEMPTS = 50
_PAUSE_S = 0.01


@dataclass(frozen=True)
class Lineage:
    """What the rows of one lineage are relative to."""

    name: str
    """As ``Row.lineage``."""
    anchor: Tensor
    """The meta-initialisation ``[P]``."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What else belongs to it, such as the observation normaliser."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Plain JSON: the policy's settings; ``segments``: how P divides into layers."""

    @property
    def coding(self) -> Coding:
        """How its policies are written."""
        return coding_of(self.anchor, self.settings)


@dataclass(frozen=True)
class Encoder:
    """What made the keys of a version."""

    version: str
    """As ``Row.encoder``."""
    state: dict[str, Tensor]
    """Its ``state_dict``."""
    settings: dict[str, Any]
    """Plain JSON: its kind and settings."""


class Contents:
    """A memory folder as it was at one commit, whatever is written afterwards."""

    def __init__(
        self, folder: Path, manifest: Manifest, opened: dict[str, Segment], missing_ok: bool
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self._segments: dict[int, Segment] = {}
        self.faults: list[str] = []
        """Files that are damaged, with all their rows."""
        for entry in manifest.segments:
            key = f"{entry.name} {entry.sha256}"
            try:
                if key not in opened:
                    opened[key] = Segment(folder / "data" / entry.name, entry.bytes)
                segment, uids = opened[key], entry.uids
                if not all(uid in segment for uid in uids):
                    raise BadFileError(f"{segment.path}: rows are missing; the file is damaged")
            except (BadFileError, FileNotFoundError) as error:
                if isinstance(error, FileNotFoundError) and not missing_ok:
                    raise
                self.faults.append(str(error))
                continue
            self._segments |= dict.fromkeys(uids, segment)
        self.uids = sorted(self._segments)
        """Names of the rows, oldest first."""
        self._lineages: dict[str, Lineage] = {}
        self._codings: dict[str, Coding] = {}

    def __len__(self) -> int:
        """Rows that can be read, but for those that turn out to be damaged."""
        return len(self.uids)

    def row(self, uid: int) -> Row:
        """One row, read off the disk and checked.

        Raises:
            KeyError: There is none of that name.
            DamagedRowError: It is not what was written.
        """
        record = self.record(uid)
        if not self._codings:
            self._codings = {name: self.lineage(name).coding for name in self.manifest.lineages}
        try:
            return unpack(record, self._codings)
        except ValueError as error:
            raise DamagedRowError(f"{self._segment(uid).path}: row {uid}: {error}") from None

    def record(self, uid: int) -> Record:
        """One row as it is written, checked."""
        return self._segment(uid).record(uid)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """All rows with their uids; what is damaged is warned of and left out."""
        for fault in self.faults:
            print(f"warning: {fault}; its rows are left out", file=sys.stderr)
        for uid in self.uids:
            try:
                yield uid, self.row(uid)
            except DamagedRowError as error:
                print(f"warning: {error}", file=sys.stderr)

    def facts(self, uid: int) -> dict[str, Any]:
        """What there is to say of a row in numbers and words, without reading its policy.

        By the dotted names of its fields (``record.mean``, ``info``), and ``bytes``. Unchecked.
        """
        segment = self._segment(uid)
        try:
            words, size = json.loads(segment.words(uid)), segment.row_bytes(uid)
        except ValueError:
            words, size = {}, 0  # damaged; ``row`` says so
        return {**segment.numbers(uid), **words, "bytes": size}

    def key(self, uid: int) -> Tensor:
        """A row's evidence ``[D]``, without reading its policy. Unchecked."""
        return self._segment(uid).field(uid, "key")

    def lineage(self, name: str | None = None) -> Lineage:
        """A lineage; without a name, that of rows written now."""
        wanted = name if name is not None else self.manifest.lineage
        if wanted not in self._lineages:
            part = self._part(self.manifest.lineages, wanted, "lineage")
            tensors = dict(read_part(self.folder, part))
            if wanted is None or "anchor" not in tensors:
                raise BadFileError(f"{self.folder / 'data' / part.name}: no anchor in it")
            anchor = tensors.pop("anchor")
            self._lineages[wanted] = Lineage(wanted, anchor, tensors, part.settings)
        return self._lineages[wanted]

    def encoder(self, version: str | None = None) -> Encoder:
        """An encoder; without a version, that of rows written now."""
        wanted = version if version is not None else self.manifest.encoder
        part = self._part(self.manifest.encoders, wanted, "encoder")
        return Encoder(wanted or "", read_part(self.folder, part), part.settings)

    def _segment(self, uid: int) -> Segment:
        if uid not in self._segments:
            if any(uid in entry.uids for entry in self.manifest.segments):
                raise DamagedRowError(f"{self.folder}: row {uid} is in a damaged file")
            raise KeyError(f"{self.folder}: no row {uid}")
        return self._segments[uid]

    def _part(self, parts: dict[str, Part], name: str | None, what: str) -> Part:
        if name is None or name not in parts:
            known = ", ".join(sorted(parts)) or "none"
            raise MemoryFolderError(f"{self.folder}: no {what} {name!r}; there is {known}")
        return parts[name]


class MemoryFolder:
    """A memory on disk, which need not exist yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: dict[str, Segment] = {}

    @property
    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return (self.path / "manifest.json").is_file()

    def contents(self) -> Contents:
        """The memory as it is now, without waiting for any writer.

        Raises:
            MemoryFolderError: There is no memory here.
            BadFileError: The manifest is damaged, and the one before it as well.
        """
        before = -1
        for _ in range(_ATTEMPTS):
            manifest, _ = load(self.path)
            try:
                really = manifest.generation == before
                found = Contents(self.path, manifest, self._opened, missing_ok=really)
            except FileNotFoundError:
                # Compacted and deleted since the manifest was read, or else really missing.
                before = manifest.generation
                time.sleep(_PAUSE_S)
                continue
            names = {f"{entry.name} {entry.sha256}" for entry in manifest.segments}
            self._opened = {k: v for k, v in self._opened.items() if k in names}
            return found
        raise MemoryFolderError(f"{self.path}: changes faster than it can be read")

    def read(self) -> list[tuple[int, Row]]:
        """All rows with their uids, oldest first; what is damaged is warned of and left out."""
        return list(self.contents().rows())

    @contextmanager
    def writer(self, capacity: int | None = None, wait_s: float = 0.0) -> Iterator[MemoryWriter]:
        """Write, as the only one: another writer is waited for ``wait_s`` seconds at most.

        ``capacity``: rows at most from now on; None leaves it as it is (at first: no limit).

        Raises:
            MemoryFolderError: There is another writer, or the memory is larger than ``capacity``.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_s
        with (self.path / ".lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise MemoryFolderError(
                            f"{self.path}: another process is writing to this memory; "
                            "wait for it or copy the memory (engram memory export)"
                        ) from None
                time.sleep(_PAUSE_S)
            writer = MemoryWriter(self.path)
            if capacity is not None:
                writer.limit(capacity)
            yield writer

    def verify(self) -> list[str]:
        """Everything that is wrong, each with its file; empty if all is as it was written."""
        manifest, fault = load(self.path)
        faults = [] if fault is None else [fault]
        for entry in manifest.files:
            path = self.path / "data" / entry.name
            if not path.is_file():
                faults.append(f"{path}: missing")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
                faults.append(f"{path}: checksum does not match, the file is damaged")
        return faults + [fault for _, fault in damaged_rows(self.contents())]


def damaged_rows(contents: Contents) -> list[tuple[int, str]]:
    """Rows that cannot be read, and why; those of files damaged as a whole among them."""
    claimed = [uid for entry in contents.manifest.segments for uid in entry.uids]
    found: list[tuple[int, str]] = []
    for uid in sorted(claimed):
        try:
            contents.row(uid)
        except BadFileError as error:
            found.append((uid, str(error)))
    return found
