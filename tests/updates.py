"""A progress that keeps its updates."""

from __future__ import annotations

from shards.progress import NullProgress


class Updates(NullProgress):
    """Keep (name, done, total, note) of every update."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, int, int, str]] = []

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Keep the update."""
        self.all.append((name, done, total, note))
