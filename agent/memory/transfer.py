"""Memories between folders: merged into another, or exported to one file and opened from it."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.files import BadFileError
from agent.memory.files import Contents, MemoryFolder
from agent.memory.folder_writer import MemoryWriter
from agent.memory.manifest import MemoryFolderError

_MEMBER = re.compile(r"manifest\.json|data/(rows-\d{8}|part-[0-9a-f]{16})\.safetensors")
_BATCH = 256


@dataclass
class Merged:
    """What became of the rows of a memory that was merged into another."""

    added: dict[int, int] = field(default_factory=dict)
    """Their uids, by the uid that they had."""
    duplicates: dict[int, int] = field(default_factory=dict)
    """Rows that were there already, with the uid of the one there."""
    refused: dict[int, str] = field(default_factory=dict)
    """Rows left out, and why."""


def merge(writer: MemoryWriter, source: Contents, uids: Sequence[int] | None = None) -> Merged:
    """Add rows of a memory (all, or some) to another; lineages and encoders come along.

    Rows keep lineage and encoder, so nothing is mixed that was not comparable before.

    Raises:
        MemoryFullError: They do not fit; what fits in whole batches was written.
    """
    out = Merged()
    clashing = _bring_parts(writer, source)
    known = writer.digests()
    batch: dict[int, bytes] = {}
    wanted = source.uids if uids is None else uids

    def write() -> None:
        new = writer.commit(add=[source.row(uid) for uid in batch])
        out.added.update(zip(batch, new, strict=True))
        known.update(zip(batch.values(), new, strict=True))
        batch.clear()

    for uid in wanted:
        try:
            row = source.row(uid)
        except BadFileError as error:
            out.refused[uid] = str(error)
            continue
        reason = clashing.get(f"lineage {row.lineage}") or clashing.get(f"encoder {row.encoder}")
        if reason is not None:
            out.refused[uid] = reason
            continue
        digest = writer.packed(row).digest
        if digest in known:
            out.duplicates[uid] = known[digest]
        elif digest not in batch.values():
            batch[uid] = digest
        if len(batch) >= _BATCH:
            write()
    if batch:
        write()
    return out


def export(source: Contents, path: Path, uids: Sequence[int] | None = None) -> int:
    """Write rows of a memory, with all that belongs to them, to one file; how many.

    The file is a zip archive without compression, made beside its final name.
    """
    chosen = source.uids if uids is None else list(uids)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        folder, packed = MemoryFolder(Path(temporary) / "memory"), Path(temporary) / "packed"
        with folder.writer(capacity=source.manifest.capacity) as writer:
            _bring_parts(writer, source)
            for start in range(0, len(chosen), _BATCH):
                writer.commit(put={uid: source.row(uid) for uid in chosen[start : start + _BATCH]})
            writer.compact()
        files = [
            file for file in folder.path.rglob("*") if _MEMBER.fullmatch(_inside(folder, file))
        ]
        with zipfile.ZipFile(packed, "x", zipfile.ZIP_STORED) as archive:
            for file in sorted(files):
                archive.write(file, _inside(folder, file))
        packed.replace(path)
    return len(chosen)


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The memory in a folder, in the folder ``memory`` of a run, or in an exported file.

    Raises:
        MemoryFolderError: There is none.
        BadFileError: The file is no exported memory, or damaged.
    """
    if not path.is_file():
        yield MemoryFolder(located(path)).contents()
        return
    with tempfile.TemporaryDirectory(prefix="engram-memory-") as temporary:
        _unpack(path, Path(temporary))
        yield MemoryFolder(temporary).contents()


def located(path: Path) -> Path:
    """The memory folder that is meant by it or a folder around it.

    Raises:
        MemoryFolderError: There is none, or which one is open.
    """
    if not path.exists():
        raise MemoryFolderError(f"{path}: no such folder")
    inside = sorted(p.parent for p in path.rglob("manifest.json") if (p.parent / "data").is_dir())
    if path in inside or not inside:
        return path  # which says itself if there is nothing
    if len(inside) > 1:
        names = ", ".join(str(p) for p in inside[:8])
        raise MemoryFolderError(f"{path}: holds {len(inside)} memories; say which: {names}")
    return inside[0]


def _bring_parts(writer: MemoryWriter, source: Contents) -> dict[str, str]:
    """Lineages and encoders that are new; what clashes, as ``lineage NAME`` with a reason."""
    ours, theirs, clashing = writer.manifest, source.manifest, {}
    for name, part in theirs.lineages.items():
        if name not in ours.lineages:
            lineage = source.lineage(name)
            current = ours.lineage is None and name == theirs.lineage
            writer.set_lineage(name, lineage.anchor, lineage.state, part.settings, current=current)
        elif ours.lineages[name].sha256 != part.sha256:
            clashing[f"lineage {name}"] = (
                f"lineage {name!r} has another meta-initialisation here: "
                "the two memories only share its name"
            )
    for version, part in theirs.encoders.items():
        if version not in ours.encoders:
            state = source.encoder(version).state
            current = ours.encoder is None and version == theirs.encoder
            writer.set_encoder(version, state, part.settings, current=current)
        elif ours.encoders[version].sha256 != part.sha256:
            clashing[f"encoder {version}"] = (
                f"encoder {version!r} is another one here: the keys cannot be compared"
            )
    return clashing


def _inside(folder: MemoryFolder, file: Path) -> str:
    return file.relative_to(folder.path).as_posix()


def _unpack(path: Path, folder: Path) -> None:
    """Only files that a memory consists of, only once, and no more bytes than the archive has."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            plain = all(
                m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size
                for m in members
            )
            if not plain or len(set(names)) < len(names) or not all(map(_MEMBER.fullmatch, names)):
                raise BadFileError(f"{path}: not an exported memory (engram memory export)")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise BadFileError(f"{path}: claims more bytes than it has")
            (folder / "data").mkdir()
            for member in members:
                with archive.open(member) as packed, (folder / member.filename).open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except zipfile.BadZipFile as error:
        raise BadFileError(f"{path}: not an exported memory, or damaged ({error})") from None
