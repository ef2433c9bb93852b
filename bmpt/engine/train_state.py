"""The state of a training run: everything that changes with a step, saved as state.pt."""

from __future__ import annotations

from pathlib import Path

import torch

from bmpt.checkpoints.state import load_state, save_state
from bmpt.engine.optim import build_optimizer
from bmpt.task import Split, Task
from shards.errors import FormatError
from shards.files import one_line
from shards.sampling.orders import make_order
from shards.stream.failures import FailureRule
from shards.stream.pipeline import StreamState

_LONGEST_REASON = 120  # characters of an error of torch


class TrainState:
    """The state of a run on one rank, which `load` restores from the file that `save` wrote."""

    step: int
    """Number of completed optimiser steps."""

    optimizer: torch.optim.AdamW

    scaler: torch.amp.GradScaler
    """Scales the loss under fp16."""

    failure_rule: FailureRule
    """Counts the samples in a row that could not be read; its limit is not part of the state."""

    def __init__(self, task: Task, split: Split) -> None:
        """Start at step 0.

        Args:
            task: The task, whose method holds the trained tensors.
            split: Its training data.
        """
        self._task, self._split = task, split
        self.step = 0
        self.optimizer = build_optimizer(task.method, task.config.train)
        self.scaler = torch.amp.GradScaler(
            task.world.device.type, enabled=task.config.train.precision == "fp16"
        )
        self.failure_rule = FailureRule(limit=None)

    def save(self, path: Path, stream: StreamState) -> None:
        """Write the state, with that of the stream of clips.

        Raises:
            StorageError: The file cannot be written.
        """
        save_state(
            path,
            {
                "step": self.step,
                "stream": stream.model_dump(),
                "failures_in_a_row": self.failure_rule.in_a_row,
                "inputs": inputs_of_run(self._task),
                "trained": self._task.method.trained_state(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
        )

    def load(self, path: Path) -> StreamState | None:
        """Restore the state from a file, and return that of the stream; None without a file.

        Raises:
            FormatError: The file is not a state of this run.
        """
        if not path.exists():
            return None
        # Onto the CPU and without executing anything in the file.
        saved = load_state(path)
        try:
            _check_inputs(path, saved["inputs"], self._task)
            stream = StreamState.model_validate(saved["stream"])
            # Frozen weights are not saved: the config names them, and the inputs have their hash.
            with torch.no_grad():
                for name, value in saved["trained"].items():
                    self._task.method.get_parameter(name).copy_(value)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            self.step = int(saved["step"])
            self.failure_rule.in_a_row = int(saved["failures_in_a_row"])
        # what torch and pydantic raise for a state of other shapes or names
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = one_line(error)[:_LONGEST_REASON]
            raise FormatError(
                f"{path}: is not a state of this run ({reason}); start over with --fresh"
            ) from None
        self._check_stream(stream)
        return stream

    def _check_stream(self, stream: StreamState) -> None:
        """Raise FormatError for the state of a stream of other data or another order."""
        manifest, data = self._split.manifest, self._task.config.data
        order = make_order(
            manifest.table["shard"],
            data.order,
            seed=self._task.config.seed,
            group_shards=data.group_shards,
        )
        stream.check(manifest, order)


def inputs_of_run(task: Task) -> dict[str, str]:
    """Return hashes of the inputs that a config names by their path only, except the pool."""
    inputs = {"model.pretrained": task.backbone.weights_sha256}
    inputs |= {f"text.{key}": value for key, value in task.text_files.items()}
    # Other methods give the same numbers on any number of ranks, so that a run can resume on fewer.
    if task.config.method.traits.depends_on_batch:
        inputs["number of ranks"] = str(task.world.size)
    return inputs


def _check_inputs(path: Path, saved: dict[str, str], task: Task) -> None:
    """Raise FormatError if the run now has other inputs than when the state was saved."""
    changed = [key for key, value in inputs_of_run(task).items() if saved.get(key) != value]
    if changed:
        raise FormatError(
            f"{path}: was written with another {', '.join(changed)}; put back what was there, or "
            "start over with --fresh"
        )
