"""The run folder: config, versions, metrics, and checkpoints that survive a kill at any moment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from agent.files import (
    plain,
    read_json,
    read_yaml,
    sync_folder,
    write_atomic,
    write_json,
    write_synced,
)

FORMAT = 1
_PACKAGES = (
    "engram-rl",
    "torch",
    "mujoco",
    "gymnasium",
    "numpy",
    "hydra-core",
    "pydantic",
    "safetensors",
)


class CorruptCheckpointError(RuntimeError):
    """No generation of a checkpoint could be read back as it was written."""


class RunError(RuntimeError):
    """A run folder that cannot be used for what was asked."""


class BusyError(RunError):
    """Another process is working in the run folder."""


def versions() -> dict[str, str]:
    """What ran: Python, the packages that matter, and the machine."""
    out = {"python": platform.python_version(), "machine": platform.machine()}
    out["cpus"] = str(os.cpu_count())
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


class Checkpoints:
    """Generations of (tensors, progress) in a folder, newest last; the newest two are kept.

    A generation is a folder that is prepared under another name and renamed when complete:
    ``tensors.safetensors`` and ``manifest.json``, which carries the progress and the tensors'
    SHA-256.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> Path:
        """Write the next generation, then drop all but the newest two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        generations = self._generations()
        taken = [int(path.name[:8]) for path in self.folder.glob("[0-9]*")]  # damaged ones too
        number = max(taken, default=0) + 1
        data = save_tensors(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        )
        manifest = {
            "format": FORMAT,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "progress": plain(progress),
        }
        manifest["manifest_sha256"] = _digest(manifest)
        temporary = self.folder / f".{number:08d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_synced(temporary / "tensors.safetensors", data)
        write_synced(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        sync_folder(temporary)
        final = self.folder / f"{number:08d}"
        os.rename(temporary, final)
        sync_folder(self.folder)
        for old in generations[:-1]:
            shutil.rmtree(old, ignore_errors=True)
        for left_over in self.folder.glob(".*.tmp"):  # of writers that were killed
            shutil.rmtree(left_over, ignore_errors=True)
        return final

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest generation that is intact, or None if nothing was ever saved.

        Raises:
            CorruptCheckpointError: There are generations, but none of them is intact.
        """
        faults: list[tuple[Path, str]] = []
        for generation in reversed(self._generations()):
            try:
                tensors, progress = self._read(generation)
            except CorruptCheckpointError as error:
                faults.append((generation, str(error)))
                continue
            for damaged, fault in faults:
                print(f"warning: {fault}; using the generation before it", file=sys.stderr)
                # Out of the way, or the next save would keep it rather than the one that is intact.
                damaged.rename(damaged.with_name(f"{damaged.name}.damaged"))
            return tensors, progress
        if faults:
            raise CorruptCheckpointError("; ".join(fault for _, fault in faults))
        return None

    def _generations(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())

    @staticmethod
    def _read(generation: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and progress of one generation, verified."""
        try:
            manifest = json.loads((generation / "manifest.json").read_bytes())
            data = (generation / "tensors.safetensors").read_bytes()
            recorded = manifest.pop("manifest_sha256")
            if manifest["format"] != FORMAT:
                raise CorruptCheckpointError(
                    f"{generation}: format {manifest['format']}, this version reads {FORMAT}"
                )
            if (
                recorded != _digest(manifest)
                or manifest["sha256"] != hashlib.sha256(data).hexdigest()
            ):
                raise CorruptCheckpointError(
                    f"{generation}: checksum does not match, the file is damaged"
                )
            return load_tensors(data), manifest["progress"]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
            raise CorruptCheckpointError(f"{generation}: cannot be read ({error})") from error


class Run:
    """A run folder. Everything a run leaves behind goes through here."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoint")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; a lock whose owner died is free again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f"{self.folder}: another process is working in this run folder; "
                    "wait for it or choose another run="
                ) from None
            yield

    def claim(
        self,
        config: Mapping[str, Any],
        may_change: Set[str] = frozenset(),
        *,
        begun: bool = True,
    ) -> None:
        """Write the resolved settings and the versions, unless it is another experiment's folder.

        Not ``begun``, an experiment that failed at its start has left nothing but its settings.

        Raises:
            RunError: The folder was made with other settings, which are named.
        """
        path, settings = self.folder / "config.yaml", plain(config)
        if begun and path.exists():
            before = read_yaml(path)
            keys = {key for key in {*before, *settings} if key not in may_change}
            changed = [
                line
                for key in sorted(keys)
                for line in _differences(before.get(key), settings.get(key), key)
            ]
            if changed:
                raise RunError(
                    f"{self.folder} was made with other settings: {'; '.join(changed[:5])}. "
                    "Choose another run= or use the same settings"
                )
        self.describe(settings)

    def describe(self, config: Mapping[str, Any], name: str = "config.yaml") -> None:
        """Write settings and versions."""
        text = yaml.safe_dump(plain(config), sort_keys=False)
        write_atomic(self.folder / name, text.encode())
        write_json(self.folder / "versions.json", versions())

    def progress(self) -> dict[str, Any] | None:
        """How far the last checkpoint had got, or None."""
        saved = self.checkpoints.load()
        return None if saved is None else saved[1]

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(plain(metrics), allow_nan=False) + "\n")

    def truncate_log(self, iterations: int) -> None:
        """Drop the lines after ``iterations``, made after the checkpoint that is continued from."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [x for x in path.read_text().splitlines() if 0 < _iteration(x) <= iterations]
            write_atomic(path, "".join(f"{line}\n" for line in kept).encode())

    def note_command(self, command: str, what: str, seconds: float, env_steps: int) -> None:
        """Add to ``commands.json`` what was run here and what it cost."""
        path = self.folder / "commands.json"
        done = [c for c in (read_json(path) if path.exists() else []) if c["what"] != what]
        entry = {"command": command, "what": what, "seconds": seconds, "env_steps": env_steps}
        write_json(path, [*done, entry])


def _iteration(line: str) -> int:
    """The iteration that a line of ``metrics.jsonl`` is of; 0 for a line that was cut off."""
    try:
        return int(json.loads(line)["iteration"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return 0


def _differences(before: Any, now: Any, path: str) -> list[str]:
    """``key=old (now new)`` for every setting that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in _differences(
                before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if before == now else [f"{path}={before} (now {now})"]


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
