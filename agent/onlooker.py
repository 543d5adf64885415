"""The run folder of training in several processes, for all of them but the first, which writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from agent.run import Checkpoints, Run


class _NoCheckpoints(Checkpoints):
    def save(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> Path:
        return self.folder

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return None


class Onlooker(Run):
    """Reads nothing and writes nothing; the folder may not even exist on its machine."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.checkpoints = _NoCheckpoints(self.folder / "checkpoint")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The first process holds it."""
        yield

    def claim(
        self,
        config: Mapping[str, Any],
        may_change: Set[str] = frozenset(),
        *,
        begun: bool = True,
    ) -> None:
        """Left to the first process."""

    def describe(self, config: Mapping[str, Any], name: str = "config.yaml") -> None:
        """Left to the first process."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Left to the first process."""

    def truncate_log(self, iterations: int) -> None:
        """Left to the first process."""

    def note_command(self, command: str, what: str, seconds: float, env_steps: int) -> None:
        """Left to the first process."""
