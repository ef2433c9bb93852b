"""The run folder: which config it belongs to, and what stands in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bmpt.config import TrainConfig
from bmpt.engine.checkpoint import write_file
from shards.config import build_settings, read_yaml_with_base, to_yaml
from shards.errors import ConfigError

CONFIG = "config.yaml"
STATE = "state.pt"
CHECKPOINT = "prompts.safetensors"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
PREDICTIONS = "predictions"

# What may differ between two starts of one run: it changes neither the batches nor their order.
_TOPOLOGY: Any = {"run": True, "data": {"num_workers"}, "train": {"accumulation"}}


def claim(config: TrainConfig, *, fresh: bool) -> Path:
    """Take the run folder for this config; what an earlier start left in it stays unless `fresh`.

    Raises: ConfigError if the folder belongs to another config; StorageError if it cannot be written."""
    folder = Path(str(config.run.dir))
    ours = config.model_dump(mode="json", exclude=_TOPOLOGY)
    if fresh:
        _clear(folder)
    elif (folder / CONFIG).exists():
        stored = build_settings(TrainConfig, read_yaml_with_base(folder / CONFIG), where=str(folder / CONFIG))
        theirs = stored.model_dump(mode="json", exclude=_TOPOLOGY)
        if theirs != ours:
            key, there, here = _first_difference(theirs, ours)
            raise ConfigError(
                f"{folder / CONFIG}: belongs to another config ({key} is {there!r} there, {here!r} here); "
                "give another run.dir, or --fresh to start over"
            )
    write_file(folder / CONFIG, to_yaml(config).encode())
    return folder


def _clear(folder: Path) -> None:
    """Remove what a run leaves, and nothing else."""
    names = (CONFIG, STATE, CHECKPOINT, METRICS, RESULTS)
    for path in [folder / name for name in names] + sorted((folder / PREDICTIONS).glob("*.parquet")):
        path.unlink(missing_ok=True)


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Add one JSON line to metrics.jsonl."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def drop_metrics_after(folder: Path, step: int) -> None:
    """Forget the lines of steps that a resumed run does again, and one that a kill cut short."""
    path = folder / METRICS
    if path.exists():
        whole = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        write_file(path, "".join(line + "\n" for line in kept).encode())


def _first_difference(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    """(dotted key, their value, our value) of the first key that differs."""
    for key in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(key), ours.get(key)
        if there != here:
            if isinstance(there, dict) and isinstance(here, dict):
                return _first_difference(there, here, f"{prefix}{key}.")
            return prefix + key, there, here
    raise ValueError("the configs are equal")
