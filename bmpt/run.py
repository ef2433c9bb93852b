"""One run from a config to its results: train or go on, score, or read what is finished."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
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
from bmpt.runtime.distributed import World, errors_of_main, from_main
from bmpt.task import Task, open_task
from shards.errors import ConfigError
from shards.progress import ProgressBars


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended: results on the main rank, None elsewhere or after a stop signal."""

    folder: Path
    results: dict[str, Any] | None
    was_stopped: bool = False


def run_training(config: RunConfig, world: World, *, fresh: bool = False) -> RunOutcome:
    """Train, go on from state.pt if the folder has one, then score; a finished run is read, not
    redone.

    Raises: ConfigError, FormatError, StorageError: each names the file or key, the value and the
        cure."""
    task = open_task(config, world, trains=True)
    folder = Path(str(config.run.dir))
    with _holding(config, world, fresh=fresh):
        finished = _finished_results(folder, task) if world.is_main else None
        if from_main(finished is not None, world):
            return RunOutcome(folder, finished)
        try:
            return _train_and_score(task, folder)
        except _StoppedError:  # while scoring: the state of the last step is saved
            return RunOutcome(folder, None, was_stopped=True)


def run_evaluation(
    config: RunConfig, world: World, *, checkpoint: Path | None, keep_finished: bool = False
) -> RunOutcome:
    """Score the manifests of a config, with a checkpoint unless the method trains nothing.

    keep_finished: read the results that are there if nothing they come from has changed."""
    trained_classes = () if checkpoint is None else read_trained_classes(checkpoint)
    task = open_task(config, world, trains=False, trained_classes=trained_classes)
    if checkpoint is None and task.method.trained_groups():
        raise ConfigError(
            f"method.name={config.method.name}: trains, so scoring it needs --checkpoint FILE (prompts.safetensors)"
        )
    info = None
    if checkpoint is not None:
        _check_classes(checkpoint, trained_classes, task)
        info = load_checkpoint(checkpoint, task.method, task.backbone, config)
    with _holding(config, world, scores_only=True):
        folder = Path(str(config.run.dir))
        finished = _results_of(folder, task, info) if world.is_main else None
        if from_main(keep_finished and finished is not None, world):
            return RunOutcome(folder, finished)
        if world.is_main and finished is None and (folder / run_folder.RESULTS).exists():
            print(
                f"warning: {folder / run_folder.RESULTS}: is of another checkpoint or config and is replaced; "
                "give another run.dir to keep both",
                file=sys.stderr,
            )
        with ProgressBars(enabled=world.is_main) as bars:
            return RunOutcome(
                folder, evaluate(task, folder=folder, checkpoint=info, progress=bars.update)
            )


def _check_classes(checkpoint: Path, trained: Sequence[str], task: Task) -> None:
    """Raises: ConfigError for a checkpoint of other classes than those of `data.train`, where the
    pool has that."""
    name = task.config.data.train
    if not trained or name is None or not task.pool.has_manifest(name):
        return
    classes = task.pool.manifest(name).info.classes
    if tuple(classes) == tuple(trained):
        return
    first = next(
        (at for at, pair in enumerate(zip(trained, classes, strict=False)) if pair[0] != pair[1]),
        None,
    )
    where = (
        ""
        if first is None
        else f": class {first} is {trained[first]!r} there, {classes[first]!r} here"
    )
    raise ConfigError(
        f"{checkpoint}: was trained on {len(trained)} classes, data.train={name} has {len(classes)}{where}; give the "
        "config that it was trained with, or set data.train=null to score other lists with it"
    )


@contextmanager
def _holding(
    config: RunConfig, world: World, *, fresh: bool = False, scores_only: bool = False
) -> Iterator[None]:
    """Hold the run folder on the main rank, see `run_folder.hold`, whose errors all ranks raise."""
    with ExitStack() as held:
        with errors_of_main(world):
            if world.is_main:
                held.enter_context(run_folder.hold(config, fresh=fresh, scores_only=scores_only))
        yield


def _train_and_score(task: Task, folder: Path) -> RunOutcome:
    with ProgressBars(enabled=task.world.is_main) as bars:
        trainer = Trainer(task, folder)
        with _noting_sigterm() as stop:
            if not trainer.run(bars, wants_stop=lambda: stop.is_set):
                return RunOutcome(folder, None, was_stopped=True)
            stop.ends_at_once = True
            with errors_of_main(task.world):
                checkpoint = trainer.save_checkpoint()
            return RunOutcome(
                folder, evaluate(task, folder=folder, checkpoint=checkpoint, progress=bars.update)
            )


def _finished_results(folder: Path, task: Task) -> dict[str, Any] | None:
    """The results of this config, this pool and the checkpoint that lies there, if the run is
    through."""
    checkpoint = folder / run_folder.CHECKPOINT
    if not checkpoint.exists():
        return None
    info = CheckpointInfo(
        checkpoint.name, hashlib.sha256(checkpoint.read_bytes()).hexdigest(), step=0
    )
    return _results_of(folder, task, info)


def _results_of(
    folder: Path, task: Task, checkpoint: CheckpointInfo | None
) -> dict[str, Any] | None:
    """results.json, if it comes from this config, pool, base weights and checkpoint; None if it
    does not."""
    try:
        results = json.loads((folder / run_folder.RESULTS).read_text(encoding="utf-8"))
        found = (results["config_sha256"], results["pool_id"], results["model"]["weights_sha256"])
        text_files = results.get("text_files", {})
        stored = results["checkpoint"]["sha256"] if results["checkpoint"] is not None else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ours = (config_sha256(task.config), task.pool.card.pool_id, task.backbone.weights_sha256)
    is_ours = found == ours and text_files == task.text_files
    return (
        results
        if is_ours and stored == (checkpoint.sha256 if checkpoint is not None else None)
        else None
    )


class _StoppedError(Exception):
    """SIGTERM came where nothing is left to save."""


@dataclass
class _Sigterm:
    """Whether SIGTERM came; `ends_at_once` from where on it need not wait for the end of a step."""

    is_set: bool = False
    ends_at_once: bool = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take the signal, as schedulers send it."""
        self.is_set = True
        if self.ends_at_once:
            raise _StoppedError
        return


@contextmanager
def _noting_sigterm() -> Iterator[_Sigterm]:
    sigterm = _Sigterm()
    before = signal.signal(signal.SIGTERM, sigterm.note)
    try:
        yield sigterm
    finally:
        signal.signal(signal.SIGTERM, before)
