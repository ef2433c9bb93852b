"""The log of the steps of a run: lines of metrics.jsonl, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpt.runtime.run_folder import METRICS, TENSORBOARD
from shards.cli import warn
from shards.errors import StorageError
from shards.files import os_error_text, write_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class StepClips:
    """The clips of a step, as a line of the log states them."""

    num_valid: int
    """Number of clips that were read."""

    digest: str
    """Hash of the keys in their order, see `digest_of`."""

    failed: Mapping[str, str] = field(default_factory=dict)
    """Why a sample could not be read, by key."""

    def as_json(self) -> dict[str, Any]:
        """Return the part of a line that describes the clips."""
        row: dict[str, Any] = {"valid_clips": self.num_valid, "batch": self.digest}
        if self.failed:
            row["failed"] = dict(self.failed)
        return row


@dataclass(frozen=True)
class StepRow:
    """A completed step, as a line of the log states it."""

    step: int
    """Number of the step, from 1."""

    epoch: int
    """Number of the epoch, from 0."""

    loss: float
    """Mean over the valid clips of the global batch."""

    lr: float
    """Rate of the backbone."""

    loss_scale: float | None
    """Scale of the loss under fp16, else None."""

    clips: StepClips

    seconds: float
    """Time of the step without the wait for its clips."""

    reading: Mapping[str, float]
    """Cost of reading the clips, see `GlobalBatch.reading_row`."""

    def as_json(self) -> dict[str, Any]:
        """Return the line of metrics.jsonl."""
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": self.loss,
            "lr": self.lr,
        }
        if self.loss_scale is not None:
            row["loss_scale"] = self.loss_scale
        return row | self.clips.as_json() | {"seconds": round(self.seconds, 4)} | dict(self.reading)

    def note(self) -> str:
        """Return the text behind the counts of a progress line."""
        text = f"loss {self.loss:.4f}, waited {self.reading['wait_seconds']:.2f} s"
        if "mb_per_second" in self.reading:
            text += f", {self.reading['mb_per_second']:.0f} MB/s"
        return text


class StepLog:
    """The lines of a run, one per step however often the run was killed; the main rank has one."""

    failed: dict[str, str]
    """Samples that could not be read so far, by key, with the reason of the first time."""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        """Continue the log of a run folder after `step`.

        Lines of later steps, which a resumed run repeats, are removed, and so is a line that a kill
        truncated.
        """
        self.failed = {}
        self._path, self._events = folder / METRICS, folder / TENSORBOARD
        self._scalars = _open_scalars(self._events, step) if tensorboard else None
        if not self._path.exists():
            return
        # not `splitlines`: a key may contain other line separators, such as U+2028
        lines = self._path.read_bytes().split(b"\n")
        rows = [row for row in map(_parse, lines) if 0 < row["step"] <= step]
        write_file(self._path, "".join(map(_line, rows)).encode())
        for row in rows:
            self._note_failures(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add the line of a step, and print a warning for each sample that failed the first time.

        Raises:
            StorageError: The disk is full.
        """
        for key, why in self._note_failures(row).items():
            warn(f"{key} is left out of training: {why}")
        with _explain_write_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        if self._scalars is None:
            return
        with _explain_write_errors(self._events):
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._scalars.add_scalar(f"train/{name}", value, row["step"])

    def flush(self) -> None:
        """Write buffered numbers to disk.

        It must happen before a state is saved, so that a resumed run has all steps up to it.
        """
        if self._scalars is not None:
            with _explain_write_errors(self._events):
                self._scalars.flush()

    def close(self) -> None:
        """End the thread that writes for TensorBoard."""
        if self._scalars is not None:
            with _explain_write_errors(self._events):
                self._scalars.close()

    def _note_failures(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Remember the failed samples of a line and return those that are new."""
        failed = row.get("failed", {})
        new = {key: why for key, why in failed.items() if key not in self.failed}
        self.failed |= new
        return new


def _open_scalars(folder: Path, step: int) -> SummaryWriter:
    """Open the files of TensorBoard, which then hides earlier numbers of steps after `step`.

    Opening takes 0.1 s; each number takes 40 bytes.
    """
    from torch.utils.tensorboard import SummaryWriter

    with _explain_write_errors(folder):
        return SummaryWriter(str(folder), purge_step=step + 1)


@contextmanager
def _explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {os_error_text(error)}; make room"
        ) from None


def _line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of JSON, in which numbers that are not finite are null.

    JSON has no NaN and no infinity; TensorBoard shows them.
    """
    values = dict(row)
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            values[key] = None
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _parse(line: bytes) -> dict[str, Any]:
    """Return the values of a line, with step 0 for a line that a kill or a full disk truncated."""
    try:
        row = json.loads(line.decode())
        return {**row, "step": int(row["step"])}
    except (ValueError, KeyError, TypeError):
        return {"step": 0}
