"""The progress of long work: bars on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from shards.cli import show_duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Show counts, rate and time left of named steps on stderr.

    On a terminal each step has a bar. Elsewhere a step has a line when it begins, at most one line
    every ten seconds, and a last line when it is complete: a log file stays short.
    """

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        self._bar_ids: dict[str, TaskID] = {}
        self._starts: dict[str, _Start] = {}
        self._printed_at = 0.0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bars = _make_bars()
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` items are complete.

        Args:
            name: of the step, for example `clips`.
            done: items that are complete; a resumed step starts above 0.
            total: items in all.
            note: shown behind the counts, for example the loss.
        """
        now = time.monotonic()
        is_first = name not in self._starts
        start = self._starts.setdefault(name, _Start(now, done))

        # The rate counts this process's items only, not those of the run that it resumes.
        seconds = now - start.seconds
        rate = (done - start.done) / seconds if seconds > 0 else 0.0

        if self._bars is not None:
            self._move_bar(name, done, total, note, rate)
        elif is_first or done >= total or now - self._printed_at > _SECONDS_BETWEEN_LINES:
            self._printed_at = now
            print(_line(name, done, total, note, rate), file=sys.stderr, flush=True)

    def _move_bar(self, name: str, done: int, total: int, note: str, rate: float) -> None:
        assert self._bars is not None
        rate_text = f"{rate:.1f}/s" if rate else ""

        if name not in self._bar_ids:
            self._bar_ids[name] = self._bars.add_task(name, total=total, note=note, rate=rate_text)

        self._bars.update(
            self._bar_ids[name], completed=done, total=total, note=note, rate=rate_text
        )


class NullProgress(Progress):
    """Show nothing: the default of functions, and the progress of ranks above 0."""

    def __enter__(self) -> NullProgress:
        return self

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Start:
    seconds: float
    """Clock when the step began."""
    done: int
    """Items that were already complete then."""


def _make_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


def _line(name: str, done: int, total: int, note: str, rate: float) -> str:
    """Return `clips: 120/7000, 31.5/s, ETA 3 min 38 s`."""
    parts = [f"{name}: {done}/{total}"]
    if note:
        parts.append(note)
    if rate:
        parts.append(f"{rate:.1f}/s")
    if rate and done < total:
        parts.append(f"ETA {show_duration((total - done) / rate)}")
    return ", ".join(parts)
