"""The run folder: which config it belongs to, and what stands in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bmpt.checkpoints.checkpoint import write_file
from bmpt.config import RunConfig, identity
from shards.config import build_settings, read_yaml_with_base, to_yaml
from shards.errors import ConfigError, StorageError

CONFIG = "config.yaml"
STATE = "state.pt"
CHECKPOINT = "prompts.safetensors"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
RESULTS = "results.json"
PREDICTIONS = "predictions"


@contextmanager
def hold(config: RunConfig, *, fresh: bool = False, scores_only: bool = False) -> Iterator[Path]:
    """Hold the run folder for this config; what an earlier start left in it stays unless `fresh`.

    scores_only: an evaluation may score other manifests than the run that the folder belongs to.
    The kernel releases the lock when the process ends, however it ends.
    Raises: ConfigError if the folder belongs to another config or another process; StorageError."""
    folder = Path(str(config.run.dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written: {error.strerror or error}; give another run.dir"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder}: another run is writing there; wait for it or give another run.dir"
            ) from None
        if fresh:
            _clear(folder)
        _check_owner(folder, config, scores_only=scores_only)
        if not (scores_only and (folder / CONFIG).exists()):
            write_file(folder / CONFIG, to_yaml(config).encode())
        yield folder
    finally:
        os.close(descriptor)


def _check_owner(folder: Path, config: RunConfig, *, scores_only: bool) -> None:
    """Raises: ConfigError naming the first key in which the folder's config differs."""
    if (folder / CONFIG).exists():
        stored = build_settings(
            RunConfig, read_yaml_with_base(folder / CONFIG), where=str(folder / CONFIG)
        )
        theirs, ours = (identity(each, with_places=True) for each in (stored, config))
        if scores_only:
            theirs["eval"] = ours["eval"]
        if theirs != ours:
            key, there, here = _first_difference(theirs, ours)
            raise ConfigError(
                f"{folder / CONFIG}: belongs to another config ({key} is {there!r} there, {here!r} here); "
                f"give another run.dir{'' if scores_only else ', or --fresh to start over'}"
            )


def _clear(folder: Path) -> None:
    """Remove what a run leaves, and nothing else."""
    names = (CONFIG, STATE, CHECKPOINT, METRICS, RESULTS)
    written = [
        *(folder / PREDICTIONS).glob("*.parquet"),
        *(folder / TENSORBOARD).glob("events.out.tfevents.*"),
    ]
    for path in [folder / name for name in names] + written:
        path.unlink(missing_ok=True)


def _first_difference(
    theirs: dict[str, Any], ours: dict[str, Any], prefix: str = ""
) -> tuple[str, Any, Any]:
    """(dotted key, their value, our value) of the first key that differs."""
    for key in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(key), ours.get(key)
        if there != here:
            if isinstance(there, dict) and isinstance(here, dict):
                return _first_difference(there, here, f"{prefix}{key}.")
            return prefix + key, there, here
    raise ValueError("the configs are equal")
