"""What a run says of its steps: a line of metrics.jsonl each, and the same numbers for
TensorBoard."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpt.checkpoints.checkpoint import write_file
from bmpt.runtime.run_folder import METRICS, TENSORBOARD
from shards.errors import StorageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class StepLog:
    """The steps of a run, each once however often it was killed; the main rank has one.

    failed: samples that could not be read so far, by key, with the reason of the first time"""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        """Go on after `step`: forget the steps that a resumed run does again, and a line that a
        kill cut short."""
        self.failed: dict[str, str] = {}
        self._path, self._events = folder / METRICS, folder / TENSORBOARD
        self._scalars = _open_scalars(self._events, step) if tensorboard else None
        if self._path.exists():
            lines = self._path.read_bytes().split(
                b"\n"
            )  # not `splitlines`: a key may hold another separator, U+2028
            rows = [row for row in map(_parse, lines) if 0 < row["step"] <= step]
            write_file(self._path, "".join(map(_line, rows)).encode())
            for row in rows:
                self._note_failures(row)

    def write(self, row: dict[str, Any]) -> None:
        """Add one step. Raises: StorageError if the disk is full."""
        for key, why in self._note_failures(row).items():
            print(f"warning: {key} is left out of training: {why}", file=sys.stderr, flush=True)
        with _writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        if self._scalars is None:
            return
        with _writing(self._events):
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._scalars.add_scalar(f"train/{name}", value, row["step"])

    def flush(self) -> None:
        """Have on disk what was written; before a state is saved, so that a resumed run has all
        steps up to it."""
        if self._scalars is not None:
            with _writing(self._events):
                self._scalars.flush()

    def close(self) -> None:
        """End the thread that writes for TensorBoard."""
        if self._scalars is not None:
            with _writing(self._events):
                self._scalars.close()

    def _note_failures(self, row: dict[str, Any]) -> dict[str, str]:
        """Returns: those that are new."""
        new = {key: why for key, why in row.get("failed", {}).items() if key not in self.failed}
        self.failed |= new
        return new


def _open_scalars(folder: Path, step: int) -> SummaryWriter:
    """TensorBoard leaves out what earlier starts wrote of steps after `step` (0.1 s and 40 bytes a
    number)."""
    from torch.utils.tensorboard import SummaryWriter

    with _writing(folder):
        return SummaryWriter(str(folder), purge_step=step + 1)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises: StorageError for what a disk refuses."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}; make room"
        ) from None


def _line(row: dict[str, Any]) -> str:
    """JSON has no NaN and no infinity: they are null, while TensorBoard shows them."""
    known = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(known, ensure_ascii=False, allow_nan=False) + "\n"


def _parse(line: bytes) -> dict[str, Any]:
    """A line's values; step 0 for one that a kill or a full disk cut short, within a character
    too."""
    try:
        row = json.loads(line.decode())
        return {**row, "step": int(row["step"])}
    except (ValueError, KeyError, TypeError):
        return {"step": 0}
