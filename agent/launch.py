"""How this process was started, alone or by torchrun beside others; without importing torch."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes torchrun started for this command; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if _by_torchrun() else 1


def place() -> int:
    """Which of them this is, from 0; the first alone writes and prints."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def place_on_machine() -> int:
    """Which of those on this machine it is, from 0."""
    return int(os.environ["LOCAL_RANK"]) if processes() > 1 else 0


def _by_torchrun() -> bool:
    # Schedulers set RANK and WORLD_SIZE too, for jobs that have nothing to do with each other.
    return "TORCHELASTIC_RUN_ID" in os.environ
