"""Files, written so that a kill at any moment leaves the old contents or the new, whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class BadFileError(ValueError):
    """A file of a run folder that is not what it should be; the message names it."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that at any moment the path holds the old contents or the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically. NaN and infinity, which JSON has no word for, become null."""
    text = json.dumps(plain(value), indent=1, allow_nan=False)
    write_atomic(path, text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file, naming it if it is not one."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadFileError(f"{path}: not valid JSON ({error}); was it edited or cut off?") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, naming it if it is not one."""
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadFileError(f"{path}: not valid YAML ({error}); was it edited or cut off?") from None
    if not isinstance(value, dict):
        raise BadFileError(f"{path}: expected settings, found {type(value).__name__}")
    return value


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename durable; on systems whose folders cannot be opened there is nothing to do."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain(value: Any) -> Any:
    """JSON's own types only; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
