"""The log of a run on the main rank, and its write errors, which all ranks raise together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bmpt.engine.step_log import StepClips, StepLog, StepRow
from bmpt.runtime.distributed import World, broadcast_from_main
from bmpt.runtime.failures import name_failures
from bmpt.runtime.run_folder import METRICS
from shards.errors import StorageError
from shards.reader import Manifest


class RunLog:
    """Logs the steps of a run; on ranks other than the main rank it does nothing.

    An error while the log or the state is written is kept, not raised: the other ranks learn of it
    when they share the next batch, and all ranks raise it at the same step.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, world: World, *, step: int, tensorboard: bool
    ) -> None:
        """Continue the log of a run folder after `step`.

        Args:
            folder: The run folder.
            manifest: The training data, whose failed samples are named at the end.
            world: The ranks.
            step: The last step that is complete.
            tensorboard: Whether to write for TensorBoard too.

        Raises:
            StorageError: The log cannot be written.
        """
        self._manifest, self._world = manifest, world
        self._reasons = folder / METRICS
        self._error: StorageError | None = None
        self._steps: StepLog | None = None
        if world.is_main:
            self._steps = StepLog(folder, step=step, tensorboard=tensorboard)

    @property
    def has_failed(self) -> bool:
        """Whether this rank keeps a write error."""
        return self._error is not None

    def raise_on_all_ranks(self) -> None:
        """Raise the error that the main rank keeps; all ranks must call it.

        Raises:
            StorageError: Always, if the main rank keeps an error.
        """
        # Only the main rank writes, so only it can have an error.
        error = broadcast_from_main(self._error, self._world)
        if error is not None:
            raise error

    def write(self, row: StepRow) -> None:
        """Write the line of a step now, before the run ends with an error.

        Raises:
            StorageError: The disk is full.
        """
        if self._steps is not None:
            self._steps.write(row.as_json())

    def write_clips(self, step: int, epoch: int, clips: StepClips) -> None:
        """Write the clips of a step that is not completed, before the run ends with an error.

        Raises:
            StorageError: The disk is full.
        """
        if self._steps is not None:
            self._steps.write({"step": step, "epoch": epoch, **clips.as_json()})

    def keep(self, row: StepRow, save_state: Callable[[], None] | None) -> None:
        """Write the line of a completed step, then the state if one is due.

        The line comes first: a resumed run drops lines beyond the saved step, but cannot add
        missing ones.
        """
        if self._steps is None:
            return
        try:
            self._steps.write(row.as_json())
            if save_state is not None:
                self._steps.flush()
                save_state()
        # Raised here it would leave the other ranks waiting in the next exchange.
        except StorageError as error:
            self._error = error

    def name_failures(self) -> None:
        """Print a warning that names the samples which could not be read."""
        if self._steps is not None:
            name_failures(
                self._manifest.info.path,
                self._steps.failed,
                num_samples=len(self._manifest),
                reasons=self._reasons,
                repeats=True,
            )

    def finish(self) -> None:
        """Close the log after the last step.

        Raises:
            StorageError: This rank keeps an error, or the log cannot be closed.
        """
        if self._error is not None:
            raise self._error
        self.close()

    def close(self) -> None:
        """Close the log, which may be closed already."""
        if self._steps is not None:
            self._steps.close()
