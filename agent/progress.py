"""What one sees of a long run: a live line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False)
_PLAIN_EVERY_S = 10.0


class Live:
    """Progress of one long piece of work, counted in env steps."""

    def __init__(self, what: str, total_steps: int | None) -> None:
        """``total_steps`` None: the work is not bounded by a number of steps."""
        self._what, self._total = what, total_steps
        self._last_plain = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total_steps, note="", count="")

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing, leaving the last line."""
        self._progress.stop()

    def update(self, steps: int, note: str) -> None:
        """Show how far it is, and a few words on how it goes."""
        total = self._total
        count = f"{steps:,} env steps" if total is None else f"{steps:,}/{total:,} env steps"
        shown = steps if total is None else min(steps, total)
        self._progress.update(self._task, completed=shown, note=note, count=count)
        now, over = time.monotonic(), total is not None and steps >= total
        if not console.is_terminal and (now - self._last_plain > _PLAIN_EVERY_S or over):
            self._last_plain = now
            console.print(f"{self._what}: {count} | {note}")


class Stop:
    """Whether somebody asked to stop.

    Long loops look at it between iterations, where stopping loses nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; the second one is not waited for."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self.signal = True, number


class Stopped(Exception):  # noqa: N818
    """Work was stopped on request after its state had been saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a request to stop at the next safe place."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
