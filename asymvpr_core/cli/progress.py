"""Progress on the terminal: bars where there is one, plain lines where output goes to a file or a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from asymvpr_core.progress import Progress

T = TypeVar("T")

LINE_INTERVAL_S = 5.0  # between two plain lines of one task: often enough to see life, rare enough for a log


def terminal_progress(stream: TextIO | None = None) -> Progress:
    """The progress for this terminal: bars on a terminal, plain lines elsewhere; both go to stderr."""
    stream = stream or sys.stderr
    return BarProgress(Console(file=stream)) if stream.isatty() else LineProgress(stream)


def _overall(items: Iterable[object], total: int | None, completed: int) -> int | None:
    if total is None and isinstance(items, Sized):
        return completed + len(items)
    return total


class BarProgress:
    """Draws one bar per task; tasks inside tasks get a bar below. Not thread-safe."""

    def __init__(self, console: Console):
        self._console = console
        self._bars: Bars | None = None

    def __call__(self, items: Iterable[T], description: str, total: int | None = None, completed: int = 0) -> Iterator[T]:
        """Yield `items` and move the bar after each; the bar ends when the loop is left, however that happens."""
        outermost = self._bars is None
        bars = self._bars = self._bars or self._start()
        task = bars.add_task(description, total=_overall(items, total, completed), completed=completed)
        try:
            for item in items:
                yield item
                bars.advance(task)
            if bars.tasks[bars.task_ids.index(task)].total is None:
                bars.update(task, total=bars.tasks[bars.task_ids.index(task)].completed)
        finally:
            bars.stop_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    def _start(self) -> Bars:
        bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        bars.start()
        return bars


class LineProgress:
    """Writes a line when a task begins, every few seconds, and when it is done."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock = stream, clock

    def __call__(self, items: Iterable[T], description: str, total: int | None = None, completed: int = 0) -> Iterator[T]:
        """Yield `items` and write lines as time passes; a task that is left early gets no last line."""
        overall = _overall(items, total, completed)
        done, started = completed, self._clock()
        written = started
        self._write(description, done, overall, "")
        for item in items:
            yield item
            done += 1
            if self._clock() - written >= LINE_INTERVAL_S:
                written = self._clock()
                self._write(description, done, overall, f", {written - started:.0f} s")
        self._write(description, done, overall, f", done in {self._clock() - started:.1f} s")

    def _write(self, description: str, done: int, overall: int | None, suffix: str) -> None:
        of_total = "" if overall is None else f"/{overall}"
        print(f"{description}: {done}{of_total}{suffix}", file=self._stream, flush=True)
