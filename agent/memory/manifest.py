"""The manifest: which files of a memory folder count, and which of their rows are alive.

It is replaced as a whole by a rename, so every reader sees one commit or the next and nothing
between. The one before is kept beside it, in case the newest is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from agent.files import BadFileError, plain, write_atomic
from agent.run import RunError

FORMAT = 2
"""The newest that is read. 2: rows that hold only what differs from the anchor (``free``)."""
NAME, PREVIOUS = "manifest.json", "manifest.previous.json"
_LONGEST = 64 * 2**20
_strict: Any = {"extra": "forbid"}
Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**62)]


class MemoryFolderError(RunError):
    """A memory folder that cannot be used for what was asked."""


@dataclass(frozen=True, kw_only=True, config=_strict)
class StoredFile:
    """A file of the folder ``data``."""

    # No path ever comes out of a manifest, only names of this form.
    name: Annotated[str, Field(pattern=r"^(rows-\d{8}|part-[0-9a-f]{16})\.safetensors$")]
    """File name."""
    bytes: Count
    """Its size."""
    sha256: Sha
    """Its checksum."""


@dataclass(frozen=True, kw_only=True, config=_strict)
class Rows(StoredFile):
    """A segment."""

    alive: list[tuple[Count, Count]]
    """Rows that count, as (first uid, how many in succession)."""

    @property
    def uids(self) -> list[int]:
        """The rows that count, ascending."""
        return [uid for first, count in self.alive for uid in range(first, first + count)]


@dataclass(frozen=True, kw_only=True, config=_strict)
class Part(StoredFile):
    """Tensors that rows refer to: a lineage's anchor, what an encoder has learned."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Plain JSON that belongs to them."""


@dataclass(frozen=True, kw_only=True, config=_strict)
class Manifest:
    """One commit."""

    format: int = 1
    """Of the folder: the oldest that can say what is in it."""
    generation: Count = 0
    """Commits so far."""
    next_uid: Count = 0
    """The next row's name; names are never given twice."""
    next_file: Count = 1
    """Number of the next segment."""
    capacity: Annotated[int, Field(ge=1)] | None = None
    """Rows at most; null: no limit."""
    lineage: str | None = None
    """That of rows written now."""
    encoder: str | None = None
    """Version of the key that rows are written with now."""
    lineages: dict[str, Part] = field(default_factory=dict)
    """Anchors, by lineage."""
    encoders: dict[str, Part] = field(default_factory=dict)
    """Encoders' states, by version."""
    segments: list[Rows] = field(default_factory=list)
    """Oldest first."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        spans = sorted(span for entry in self.segments for span in entry.alive)
        # Counted before anything is expanded: a short text can claim a great many rows.
        too_many = any(sum(n for _, n in s.alive) * 8 > s.bytes for s in self.segments)
        if too_many or any(a + n > b for (a, n), (b, _) in pairwise(spans)):
            raise ValueError("rows are claimed twice, or more of them than fit into the files")
        if spans and spans[-1][0] + spans[-1][1] > self.next_uid:
            raise ValueError("rows are claimed that were never written")
        return self

    @property
    def files(self) -> list[StoredFile]:
        """All files that count."""
        return [*self.segments, *self.lineages.values(), *self.encoders.values()]

    @property
    def rows(self) -> int:
        """Rows alive."""
        return sum(count for entry in self.segments for _, count in entry.alive)


@dataclass(frozen=True, config=_strict)
class _Envelope:
    sha256: str
    manifest: dict[str, Any]


def publish(folder: Path, manifest: Manifest) -> None:
    """Make this the folder's manifest, for good; what it names must be on the disk by now."""
    small = any("free" in part.settings for part in manifest.lineages.values())
    content = asdict(replace(manifest, format=2 if small else 1))
    data = json.dumps({"sha256": _digest(content), "manifest": content}, allow_nan=False).encode()
    current = folder / NAME
    if current.exists():
        # Not waited for: it is read only if the newest is damaged, and checked like that one.
        temporary = folder / f".{PREVIOUS}.{os.getpid()}.tmp"
        temporary.write_bytes(current.read_bytes())
        os.replace(temporary, folder / PREVIOUS)
    write_atomic(current, data)


def load(folder: Path) -> tuple[Manifest, str | None]:
    """The newest intact manifest, and what was wrong with the newest if it is the one before.

    Raises:
        MemoryFolderError: There is no memory, or one that a later version wrote.
        BadFileError: Both manifests are damaged.
    """
    if not (folder / NAME).is_file():
        raise MemoryFolderError(f"{folder}: no memory here ({NAME} is missing)")
    try:
        return read_manifest(folder / NAME), None
    except BadFileError as error:
        if not (folder / PREVIOUS).is_file():
            raise
        older = read_manifest(folder / PREVIOUS)
        print(f"warning: {error}; using the commit before it", file=sys.stderr)
        return older, str(error)


def spans(uids: Iterable[int]) -> list[tuple[int, int]]:
    """``Rows.alive`` of some uids."""
    out: list[tuple[int, int]] = []
    for uid in sorted(uids):
        if out and sum(out[-1]) == uid:
            out[-1] = (out[-1][0], out[-1][1] + 1)
        else:
            out.append((uid, 1))
    return out


def part_of(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None
) -> tuple[bytes, Part]:
    """The file of a part and its entry; equal contents have equal names."""
    data = save_tensors({name: v.detach().cpu().contiguous() for name, v in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    words = json.loads(json.dumps(plain(settings or {})))
    name = f"part-{sha256[:16]}.safetensors"
    return data, Part(name=name, bytes=len(data), sha256=sha256, settings=words)


def read_part(folder: Path, part: Part) -> dict[str, Tensor]:
    """The tensors of a part, verified."""
    path = folder / "data" / part.name
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise BadFileError(f"{path}: checksum does not match, the file is damaged")
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise BadFileError(f"{path}: not tensors ({error})") from None


def read_manifest(path: Path) -> Manifest:
    """A manifest, verified."""
    if path.stat().st_size > _LONGEST:
        raise BadFileError(f"{path}: longer than any manifest")
    try:
        envelope = TypeAdapter(_Envelope).validate_json(path.read_bytes())
        version = envelope.manifest.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise MemoryFolderError(
                f"{path.parent}: memory of format {version}, this version of Engram reads "
                f"{FORMAT}; a later one is needed"
            )
        if envelope.sha256 != _digest(envelope.manifest):
            raise BadFileError(f"{path}: checksum does not match, the file is damaged")
        return TypeAdapter(Manifest).validate_python(envelope.manifest)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadFileError(
            f"{path}: not a manifest ({'.'.join(map(str, problem['loc']))}: {problem['msg']})"
        ) from None


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
