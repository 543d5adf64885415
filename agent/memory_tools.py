"""What one does with a memory on disk: ``engram memory list | show | export | merge | ...``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich import box
from rich.markup import escape
from rich.table import Table

from agent.config import ConfigError, build
from agent.memory.files import Contents, MemoryFolder, damaged_rows
from agent.memory.manifest import MemoryFolderError
from agent.memory.transfer import export, located, merge, opened
from agent.memory_map import draw_map, label_of
from agent.progress import console

By = Literal["gain", "visits", "time"]
_KIB = 1024


@dataclass(kw_only=True, config={"extra": "forbid"})
class MemorySettings:
    """``engram memory``."""

    action: Literal["list", "show", "export", "import", "merge", "prune", "verify", "map"]
    """What to do."""
    folders: list[str]
    """Memory folders, run folders or exported files; import and merge: the target first."""
    uids: list[Annotated[int, Field(ge=0)]]
    """Only these rows; prune: drop them."""
    by: By
    """Order of a list, and what ``rows`` keeps most of."""
    rows: Annotated[int, Field(ge=0)] | None
    """Prune: rows kept at most."""
    min_gain: float | None
    """Prune: rows that gain less are dropped."""
    damaged: bool
    """Prune: drop rows that cannot be read."""
    capacity: Annotated[int, Field(ge=1)] | None
    """Import, merge: rows at most from now on."""
    out: str | None
    """Export: the file; map: the picture."""


def memory(config: dict[str, Any], typed: str) -> None:
    """Do one of the things that can be done with memories on disk."""
    settings = build(config, "", MemorySettings)
    several = settings.action in ("import", "merge")
    if len(settings.folders) < 1 + several or (len(settings.folders) > 1 and not several):
        wanted = "TARGET SOURCE [SOURCE ...]" if several else "FOLDER"
        raise ConfigError(
            f"folders={settings.folders}: expected engram memory {settings.action} {wanted}"
        )
    actions = {
        "list": _list,
        "show": _show,
        "export": _export,
        "import": _merge,
        "merge": _merge,
        "prune": _prune,
        "verify": _verify,
        "map": _map,
    }
    actions[settings.action](settings)


def rows_table(contents: Contents, by: By) -> Table:
    """A line for each row, the one with the most of ``by`` first; returns with their deviation."""
    table = Table(
        "row", "task", "return", "gain", "visits", "tried", "right", "time", "KiB",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for column in table.columns[2:]:  # the task gives way first
        column.justify, column.no_wrap = "right", True
    for uid, facts in _ordered(contents, by):
        counts = [facts[name] for name in ("visits", "recalls", "accepted", "time")]
        table.add_row(
            str(uid),
            escape(label_of(facts.get("info"))),
            f"{facts['record.mean']:,.1f} +-{facts['record.sd']:,.1f}",
            f"{_measure(facts, 'gain'):+,.1f}",
            *(f"{int(value):,}" for value in counts),
            f"{facts['bytes'] / _KIB:,.1f}",
        )
    return table


def summary(contents: Contents) -> list[str]:
    """What there is to say of the whole memory, a sentence a line."""
    manifest = contents.manifest
    facts = [contents.facts(uid) for uid in contents.uids]
    size = sum(entry.bytes for entry in manifest.files)
    limit = "no limit" if manifest.capacity is None else f"at most {manifest.capacity:,}"
    lines = [
        f"{len(contents):,} rows ({limit}), {size / _KIB:,.1f} KiB in {len(manifest.files)} files, "
        f"commit {manifest.generation}"
    ]
    for what, known in (("lineage", manifest.lineages), ("encoder", manifest.encoders)):
        names = sorted({str(f.get(what)) for f in facts} | known.keys())
        for name in names:
            count = sum(f.get(what) == name for f in facts)
            kept = f"{known[name].bytes / _KIB:,.1f} KiB" if name in known else "not in the folder"
            now = ", written now" if name == getattr(manifest, what) else ""
            lines.append(f"{what} {name}: {count:,} rows, {kept}{now}")
    return [*lines, *contents.faults]


def _list(settings: MemorySettings) -> None:
    with opened(Path(settings.folders[0])) as contents:
        console.print(rows_table(contents, settings.by))
        console.print(escape(summary(contents)[0]))


def _show(settings: MemorySettings) -> None:
    with opened(Path(settings.folders[0])) as contents:
        if not settings.uids:
            console.print(escape("\n".join(summary(contents))))
        for uid in _chosen(contents, settings.uids) or []:
            row = contents.row(uid)
            table = Table("field", "value", title=f"Row {uid}", box=box.SIMPLE_HEAD)
            for name, value in sorted(contents.facts(uid).items()):
                table.add_row(name, escape(f"{value:,.6g}" if _is_number(value) else f"{value}"))
            for name, tensor in (("key", row.key), ("params", row.params)):
                spread = f"norm {float(tensor.norm()):.4g}"
                table.add_row(name, escape(f"{list(tensor.shape)}, {spread}"))
            table.add_row("probe", f"{len(row.probe.reward)} steps")
            console.print(table)


def _export(settings: MemorySettings) -> None:
    source = Path(settings.folders[0])
    out = Path(settings.out or f"{source.resolve().name}.engram")
    with opened(source) as contents:
        count = export(contents, out, _chosen(contents, settings.uids))
    console.print(f"Wrote {count} rows to {out} ({out.stat().st_size / _KIB:,.1f} KiB)")


def _merge(settings: MemorySettings) -> None:
    target = Path(settings.folders[0])
    if target.is_file():
        raise MemoryFolderError(f"{target}: rows can be added to a folder, not to an exported file")
    folder = MemoryFolder(located(target) if target.exists() else target)
    with folder.writer(capacity=settings.capacity) as writer:
        for name in settings.folders[1:]:
            with opened(Path(name)) as source:
                done = merge(writer, source, _chosen(source, settings.uids))
            console.print(
                f"{name}: {len(done.added)} rows added, {len(done.duplicates)} there already, "
                f"{len(done.refused)} refused"
            )
            for reason in sorted(set(done.refused.values())):
                console.print(f"  {escape(reason)}")
        console.print(f"{folder.path} holds {len(writer)} rows")


def _prune(settings: MemorySettings) -> None:
    folder = MemoryFolder(located(Path(settings.folders[0])))
    with folder.writer() as writer:
        contents = folder.contents()
        gone = set(_chosen(contents, settings.uids) or [])
        if settings.damaged:
            gone |= {uid for uid, _ in damaged_rows(contents)}
        kept = [(uid, facts) for uid, facts in _ordered(contents, settings.by) if uid not in gone]
        if settings.min_gain is not None:
            gone |= {uid for uid, facts in kept if not _measure(facts, "gain") >= settings.min_gain}
            kept = [(uid, facts) for uid, facts in kept if uid not in gone]
        if settings.rows is not None:
            gone |= {uid for uid, _ in kept[settings.rows :]}
        writer.commit(remove=gone)
        writer.compact()
        console.print(f"{folder.path}: {len(gone)} rows dropped, {len(writer)} kept")


def _verify(settings: MemorySettings) -> None:
    path = Path(settings.folders[0])
    if path.is_file():
        with opened(path) as contents:
            faults = MemoryFolder(contents.folder).verify()
    else:
        faults = MemoryFolder(located(path)).verify()
    for fault in faults:
        console.print(escape(fault))
    if faults:
        raise MemoryFolderError(f"{path}: {len(faults)} faults")
    console.print(f"{path}: all is as it was written")


def _map(settings: MemorySettings) -> None:
    source = Path(settings.folders[0])
    out = Path(settings.out or f"{source.resolve().name}-map.png")
    with opened(source) as contents:
        drawn = draw_map(contents, out)
    console.print(escape(f"Wrote {out}: {drawn}"))


def _chosen(contents: Contents, uids: Sequence[int]) -> list[int] | None:
    """The rows that were asked for, each of which must be there; None for all."""
    claimed = {uid for entry in contents.manifest.segments for uid in entry.uids}
    if missing := [uid for uid in uids if uid not in claimed]:
        raise MemoryFolderError(f"{contents.folder}: no rows {missing}")
    return list(uids) or None


def _ordered(contents: Contents, by: By) -> list[tuple[int, dict[str, Any]]]:
    rows = [(uid, contents.facts(uid)) for uid in contents.uids]
    return sorted(rows, key=lambda row: (-_measure(row[1], by), row[0]))


def _measure(facts: dict[str, Any], by: By) -> float:
    """What a row has of something; what is not a number is less than anything."""
    value = facts["record.mean"] - facts["baseline"] if by == "gain" else facts[by]
    return float(value) if value == value else float("-inf")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
