"""One run from a config to its results: train or resume, score, or read finished results."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bmpt.checkpoints.checkpoint import (
    CheckpointInfo,
    config_sha256,
    load_checkpoint,
    read_trained_classes,
)
from bmpt.config import RunConfig
from bmpt.engine.train import Trainer
from bmpt.evaluation.evaluate import evaluate
from bmpt.runtime import run_folder
from bmpt.runtime.distributed import World, broadcast_from_main, raise_main_errors_everywhere
from bmpt.task import Task, open_task
from shards.cli import warn
from shards.errors import ConfigError
from shards.files import hash_file
from shards.progress import NullProgress, Progress


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    folder: Path
    """The run folder."""

    results: dict[str, Any] | None
    """Content of results.json on the main rank; None on the others or after a stop signal."""

    was_stopped: bool = False
    """Whether a stop signal ended the run."""


def run_training(config: RunConfig, world: World, *, fresh: bool = False) -> RunOutcome:
    """Train and score, or continue from state.pt if the folder has one.

    The results of a finished run are read and not computed again.

    Args:
        config: The config.
        world: The ranks.
        fresh: Whether to remove the files of an earlier run first.

    Raises:
        ConfigError, FormatError, StorageError: The message names the file or key, the value and the
            cure.
    """
    task = _open(config, world, trains=True)
    folder = run_folder.folder_of(config)
    with _lock(config, world, fresh=fresh):
        # Only the main rank reads the folder: other nodes may not see it.
        finished = _finished_results(folder, task) if world.is_main else None
        if broadcast_from_main(finished is not None, world):
            return RunOutcome(folder, finished)
        try:
            return _train_and_score(task, folder)
        except _StoppedError:  # while scoring: the state of the last step is saved
            return RunOutcome(folder, None, was_stopped=True)


def run_evaluation(
    config: RunConfig, world: World, *, checkpoint: Path | None, keep_finished: bool = False
) -> RunOutcome:
    """Score the manifests of a config.

    Args:
        config: The config.
        world: The ranks.
        checkpoint: The trained tensors; None for a method that trains nothing.
        keep_finished: Whether to read the existing results if all their inputs are unchanged.

    Raises:
        ConfigError, FormatError, StorageError: The message names the file or key, the value and the
            cure.
    """
    # A classifier has the classes of its checkpoint, not those of the lists to score.
    trained_classes = () if checkpoint is None else read_trained_classes(checkpoint)
    task = _open(config, world, trains=False, trained_classes=trained_classes)
    if checkpoint is None and task.method.trained_groups():
        raise ConfigError(
            f"method.name={config.method.name}: trains, so scoring it needs --checkpoint FILE "
            "(prompts.safetensors)"
        )
    info = None
    if checkpoint is not None:
        _check_classes(checkpoint, trained_classes, task)
        info = load_checkpoint(checkpoint, task.method, task.backbone, config)

    folder = run_folder.folder_of(config)
    with _lock(config, world, scores_only=True):
        finished = _results_of(folder, task, info) if world.is_main else None
        if broadcast_from_main(keep_finished and finished is not None, world):
            return RunOutcome(folder, finished)
        results_file = folder / run_folder.RESULTS
        if world.is_main and finished is None and results_file.exists():
            warn(
                f"{results_file}: belongs to another checkpoint or config and is replaced; give "
                "another run.dir to keep both"
            )
        with _progress(world) as progress:
            results = evaluate(task, folder=folder, checkpoint=info, progress=progress)
    return RunOutcome(folder, results)


def _open(
    config: RunConfig, world: World, *, trains: bool, trained_classes: Sequence[str] = ()
) -> Task:
    """Open the task of a config and print its warnings on the main rank."""
    task = open_task(config, world, trains=trains, trained_classes=trained_classes)
    if world.is_main:
        for warning in task.warnings:
            warn(warning)
    return task


def _progress(world: World) -> Progress:
    """Return the progress of the main rank, which shows it, or of another rank, which does not."""
    return Progress() if world.is_main else NullProgress()


def _check_classes(checkpoint: Path, trained: Sequence[str], task: Task) -> None:
    """Raise ConfigError if a checkpoint was trained on other classes than those of `data.train`.

    It is checked only where the pool has that manifest.
    """
    name = task.config.data.train
    if not trained or name is None or not task.pool.has_manifest(name):
        return
    classes = task.pool.manifest(name).info.classes
    if tuple(classes) == tuple(trained):
        return

    where = ""
    for index, (theirs, ours) in enumerate(zip(trained, classes, strict=False)):
        if theirs != ours:
            where = f": class {index} is {theirs!r} there, {ours!r} here"
            break
    raise ConfigError(
        f"{checkpoint}: was trained on {len(trained)} classes, data.train={name} has "
        f"{len(classes)}{where}; give the config that it was trained with, or set data.train=null "
        "to score other lists with it"
    )


@contextmanager
def _lock(
    config: RunConfig, world: World, *, fresh: bool = False, scores_only: bool = False
) -> Iterator[None]:
    """Lock the run folder on the main rank; all ranks raise its errors."""
    with ExitStack() as stack:
        with raise_main_errors_everywhere(world):
            if world.is_main:
                stack.enter_context(
                    run_folder.lock_run_folder(config, fresh=fresh, scores_only=scores_only)
                )
        yield


def _train_and_score(task: Task, folder: Path) -> RunOutcome:
    with _progress(task.world) as progress:
        trainer = Trainer(task, folder)
        with _catch_sigterm() as stop:
            if not trainer.run(progress, wants_stop=lambda: stop.is_set):
                return RunOutcome(folder, None, was_stopped=True)
            # from here on there is no step to wait for
            stop.ends_at_once = True
            with raise_main_errors_everywhere(task.world):
                checkpoint = trainer.save_checkpoint()
            results = evaluate(task, folder=folder, checkpoint=checkpoint, progress=progress)
            return RunOutcome(folder, results)


def _finished_results(folder: Path, task: Task) -> dict[str, Any] | None:
    """Return the results of a finished run of this config, pool and checkpoint, or None."""
    checkpoint = folder / run_folder.CHECKPOINT
    if not checkpoint.exists():
        return None
    info = CheckpointInfo(checkpoint.name, hash_file(checkpoint), step=0)
    return _results_of(folder, task, info)


def _results_of(
    folder: Path, task: Task, checkpoint: CheckpointInfo | None
) -> dict[str, Any] | None:
    """Return results.json if it belongs to this config, pool, base weights and checkpoint."""
    try:
        # A file that was cut or edited counts as no results: the run computes them again.
        results = json.loads((folder / run_folder.RESULTS).read_text(encoding="utf-8"))
        stored = (
            results["config_sha256"],
            results["pool_id"],
            results["model"]["weights_sha256"],
            results.get("text_files", {}),
            results["checkpoint"]["sha256"] if results["checkpoint"] is not None else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    expected = (
        config_sha256(task.config),
        task.pool.card.pool_id,
        task.backbone.weights_sha256,
        dict(task.text_files),
        None if checkpoint is None else checkpoint.sha256,
    )
    return results if stored == expected else None


class _StoppedError(Exception):
    """SIGTERM arrived where nothing is left to save."""


@dataclass
class _Sigterm:
    """Whether SIGTERM has arrived."""

    is_set: bool = False

    ends_at_once: bool = False
    """Whether the signal raises an error instead of waiting for the end of a step."""

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal, which schedulers send."""
        self.is_set = True
        if self.ends_at_once:
            raise _StoppedError


@contextmanager
def _catch_sigterm() -> Iterator[_Sigterm]:
    """Note SIGTERM instead of ending the process."""
    sigterm = _Sigterm()
    before = signal.signal(signal.SIGTERM, sigterm.note)
    try:
        yield sigterm
    finally:
        signal.signal(signal.SIGTERM, before)
