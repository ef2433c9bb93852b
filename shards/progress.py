"""What a person sees while a run goes on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from shards.cli import show_duration

if TYPE_CHECKING:
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBars:
    """Named bars with counts, rate and time left, on stderr; silent unless `enabled`."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._is_terminal = enabled and sys.stderr.isatty()
        self._last_line = 0.0
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> ProgressBars:
        if self._is_terminal:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bars = Progress(
                *columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_terminal:
            self._bars.stop()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are through."""
        if self._is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, note=note)
            self._bars.update(self._tasks[name], completed=done, total=total, note=note)
        elif self._enabled:
            now = time.monotonic()
            since, before = self._begun.setdefault(name, (now, done))
            if done == total or now - self._last_line > _SECONDS_BETWEEN_LINES:
                self._last_line = now
                left = (now - since) / (done - before) * (total - done) if done > before else 0.0
                eta = f", ETA {show_duration(left)}" if left else ""
                print(f"{name}: {done}/{total} {note}".rstrip() + eta, file=sys.stderr, flush=True)
