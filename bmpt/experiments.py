"""The experiments that ship with the project: `bmpt experiments`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bmpt.config import DEFAULT_METHOD, EXPERIMENTS
from bmpt.settings import DataSettings, EvalSettings
from shards.config import build_settings, read_yaml_with_base
from shards.config_names import config_names, configs_folder


@dataclass(frozen=True)
class Experiment:
    """An experiment that ships with the project."""

    name: str
    """the argument of `bmpt train` and `bmpt eval`, and the run folder below `runs/`"""

    path: str
    """its file"""

    method: str
    """method.name"""

    pool: str
    """data.pool, which names the data set"""

    protocol: str
    """the first part of the scored manifests' names, for example `few_shot`"""

    train: str | None
    """manifest of the training clips; None where nothing is trained"""

    eval: tuple[str, ...]
    """manifests that are scored"""


@dataclass(frozen=True)
class ExperimentList:
    """All experiments that ship with the project, in the order of their names."""

    experiments: tuple[Experiment, ...]


def list_experiments() -> ExperimentList:
    """Read all shipped experiments.

    Raises:
        ConfigError: a shipped file was changed and is not valid."""
    # k2 before k16
    names = sorted(config_names(EXPERIMENTS), key=_with_numbers)
    return ExperimentList(tuple(_read_experiment(name) for name in names))


def experiments_text(found: ExperimentList) -> str:
    """Return a table of one line per experiment."""
    rows = [("experiment", "method", "pool", "protocol")]
    rows += [(item.name, item.method, item.pool, item.protocol) for item in found.experiments]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _read_experiment(name: str) -> Experiment:
    # not `load_config`: the settings of the methods bring torch, which takes a second
    path = configs_folder() / EXPERIMENTS / f"{name}.yaml"
    values = read_yaml_with_base(path)
    data = build_settings(DataSettings, values.get("data", {}), where=f"{path}: data")
    scoring = build_settings(EvalSettings, values.get("eval", {}), where=f"{path}: eval")

    scored = scoring.manifests or (() if data.val is None else (data.val,))
    protocols = dict.fromkeys(manifest.split("/")[0] for manifest in scored)
    return Experiment(
        name=name,
        path=str(path),
        method=values.get("method", {}).get("name", DEFAULT_METHOD),
        pool=data.pool,
        protocol=", ".join(protocols),
        train=data.train,
        eval=scored,
    )


def _with_numbers(name: str) -> list[str | int]:
    """Return the parts of a name, with digits as numbers: texts and numbers take turns."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
