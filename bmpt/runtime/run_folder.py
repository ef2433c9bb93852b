"""The run folder: the names of its files, the config that it belongs to, and its lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bmpt.config import RunConfig, identity
from shards.config import build_settings, read_yaml_with_base, to_yaml
from shards.errors import ConfigError, StorageError
from shards.files import hold_folder_lock, os_error_text, write_file

CONFIG = "config.yaml"
STATE = "state.pt"
CHECKPOINT = "prompts.safetensors"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
RESULTS = "results.json"
PREDICTIONS = "predictions"


def folder_of(config: RunConfig) -> Path:
    """Return the run folder of a config that `load_config` has read."""
    return Path(str(config.run.dir))


@contextmanager
def lock_run_folder(
    config: RunConfig, *, fresh: bool = False, scores_only: bool = False
) -> Iterator[Path]:
    """Lock the run folder of a config, and store the config in it.

    The kernel releases the lock when the process ends, however it ends.

    Args:
        config: The config.
        fresh: Whether to remove the files of an earlier run; else they are kept.
        scores_only: Whether the folder may belong to a run that scores other manifests.

    Yields:
        The folder.

    Raises:
        ConfigError: The folder belongs to another config or another process.
        StorageError: The folder cannot be written.
    """
    folder = folder_of(config)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The folder itself is locked: no lock file is left behind.
            stack.enter_context(hold_folder_lock(folder))
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another run is writing there; wait for it or give another run.dir"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{folder}: cannot be written: {os_error_text(error)}; give another run.dir"
            ) from None

        if fresh:
            _remove_files(folder)
        # After the lock: another process may be writing its config.
        _check_owner(folder, config, scores_only=scores_only)
        if not (scores_only and (folder / CONFIG).exists()):
            write_file(folder / CONFIG, to_yaml(config).encode())
        yield folder


def _check_owner(folder: Path, config: RunConfig, *, scores_only: bool) -> None:
    """Raise ConfigError naming the first key in which the folder's config differs."""
    path = folder / CONFIG
    if not path.exists():
        return
    or_fresh = "" if scores_only else ", or --fresh to start over"
    try:
        stored = build_settings(RunConfig, read_yaml_with_base(path), where=str(path))
    except ConfigError as error:
        raise ConfigError(
            f"{path}: was written by an earlier version, or edited; give another run.dir{or_fresh} "
            f"({str(error).removeprefix(f'{path}: ')})"
        ) from None
    theirs = identity(stored, with_places=True)
    ours = identity(config, with_places=True)
    if scores_only:
        # an evaluation may choose other lists than the run
        theirs["eval"] = ours["eval"]
    if theirs == ours:
        return

    key, there, here = _first_difference(theirs, ours)
    raise ConfigError(
        f"{path}: belongs to another config ({key} is {there!r} there, {here!r} here); give "
        f"another run.dir{or_fresh}"
    )


def _remove_files(folder: Path) -> None:
    """Remove the files that a run writes, and no others."""
    for name in (CONFIG, STATE, CHECKPOINT, METRICS, RESULTS):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / PREDICTIONS).glob("*.parquet"):
        path.unlink(missing_ok=True)
    for path in (folder / TENSORBOARD).glob("events.out.tfevents.*"):
        path.unlink(missing_ok=True)


def _first_difference(
    theirs: dict[str, Any], ours: dict[str, Any], prefix: str = ""
) -> tuple[str, Any, Any]:
    """Return (dotted key, their value, our value) of the first key that differs.

    `name` comes first: the settings of another method have other keys.
    """
    for key in sorted(theirs.keys() | ours.keys(), key=lambda key: (key != "name", key)):
        there, here = theirs.get(key), ours.get(key)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            return _first_difference(there, here, f"{prefix}{key}.")
        return prefix + key, there, here
    raise ValueError("the configs are equal")
