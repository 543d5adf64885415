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
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(highlight=False)
_PLAIN_EVERY_S = 10.0


class Live:
    """Progress of one long piece of work, counted in env steps."""

    def __init__(self, what: str, total_steps: int | None) -> None:
        """``total_steps`` None: the work is not bounded by a number of steps."""
        self._what, self._total = what, total_steps
        self._last_plain = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=1.0, note="", count="", left="")

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

    def update(self, steps: int, note: str, share: float | None = None) -> None:
        """Show how far it is, and a few words on how it goes.

        ``share`` of the work is done, if that is not the same as ``steps`` of the total.
        """
        count = f"{steps:,} env steps"
        if self._total is not None:
            count = f"{steps:,}/{self._total:,} env steps"
            share = steps / self._total if share is None else share
        elif share is not None:
            count += f", {min(share, 1.0):.0%} of the time"
        left, over = self._left(share), share is not None and share >= 1
        done = None if share is None else min(share, 1.0)
        self._progress.update(self._task, completed=done, note=note, count=count, left=left)
        now = time.monotonic()
        if not console.is_terminal and (now - self._last_plain > _PLAIN_EVERY_S or over):
            self._last_plain = now
            console.print(f"{self._what}: {count} | {note}" + (f" | {left}" if left else ""))

    def _left(self, share: float | None) -> str:
        """How long it will take at the pace since the first update; empty if not known yet.

        What was done before that, by an earlier command, took no time here.
        """
        if share is None or share >= 1:
            return ""
        now = time.monotonic()
        if self._first is None:
            self._first = (share, now)
        begun, since = self._first
        if share <= begun:
            return ""
        seconds = (1 - share) * (now - since) / (share - begun)
        return f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """A time in its two largest units, such as ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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
