"""Write and read `state.pt`, from which an interrupted run resumes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from bmpt.clip.weights import UNREADABLE
from shards.errors import FormatError
from shards.files import write_file

# 2: failures_in_a_row; 3: inputs
STATE_FORMAT = 3


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write state.pt atomically.

    Raises:
        StorageError: if the file cannot be written.
    """
    # Through memory: torch's own writer does not report a full disk as such.
    buffer = io.BytesIO()
    torch.save({"version": STATE_FORMAT, **state}, buffer)
    write_file(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read state.pt onto the CPU, without executing code in it.

    Raises:
        FormatError: if the file is damaged, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise FormatError(
            f"{path}: is not a state that can be read safely; start over with --fresh"
        ) from None

    version = state.get("version") if isinstance(state, dict) else None
    if version != STATE_FORMAT:
        raise FormatError(
            f"{path}: has state version {version}, this code reads {STATE_FORMAT}; start over "
            "with --fresh"
        )
    return state
