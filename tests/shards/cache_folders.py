"""The folder of a cache, seen from outside."""

from __future__ import annotations

import contextlib
from pathlib import Path


def held_bytes(folder: Path) -> int:
    """Return the bytes of all pieces in a cache folder, also those that are being written."""
    sizes = {}
    for path in folder.glob("pieces/*/*"):
        # a piece that has just been finished is found under its own name
        with contextlib.suppress(FileNotFoundError):
            name = path.stem.rpartition(".")[0] if path.suffix == ".part" else path.name
            sizes[path.parent / name] = path.stat().st_size
    return sum(sizes.values())
