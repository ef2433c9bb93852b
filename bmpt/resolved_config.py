"""A config with the origin of each value, and all keys that a config can have: `bmpt config`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmpt.config import EXPERIMENTS, load_config
from bmpt.config_keys import value_text
from shards.config import parse_override, read_layers
from shards.config_names import find_config

DEFAULT = "default"


@dataclass(frozen=True)
class ResolvedValue:
    """One key of a config."""

    key: str
    """Dotted name, for example `data.batch_size`."""
    value: Any
    """As in JSON."""
    origin: str
    """A file, `--set`, `default`, or `name of the config` for the run folder."""


@dataclass(frozen=True)
class ResolvedConfig:
    """A config as a run uses it."""

    path: str
    """The file that was named."""
    values: tuple[ResolvedValue, ...]
    """Every key, in the order of the settings models."""


def resolve_config(address: Path | str, overrides: Sequence[str] = ()) -> ResolvedConfig:
    """Load a config and find out where each value comes from.

    Args:
        address: path of a config, or name of a shipped experiment.
        overrides: `a.b=c`, as of `--set`.

    Raises:
        ConfigError: naming the file, the key and the value.
    """
    config = load_config(address, overrides)
    path = find_config(address, EXPERIMENTS, listed_by="`bmpt experiments`")

    # Later origins replace earlier ones, in the order in which the values were merged.
    origins: dict[str, str] = {}
    for file, values in read_layers(path):
        origins.update(dict.fromkeys(_dotted_keys(values), _shown(file)))
    for override in overrides:
        origins.update(dict.fromkeys(_dotted_keys(parse_override(override)), "--set"))
    origins.setdefault("run.dir", "name of the config")

    resolved = []
    for key, value in _flatten(config.model_dump(mode="json")):
        resolved.append(ResolvedValue(key, value, _origin(key, origins)))
    return ResolvedConfig(str(path), tuple(resolved))


def resolved_text(resolved: ResolvedConfig) -> str:
    """Return one line per key: its name, its value and its origin."""
    rows = [(item.key, value_text(item.value), item.origin) for item in resolved.values]
    key_width = max(len(key) for key, _, _ in rows)
    value_width = min(40, max(len(value) for _, value, _ in rows))
    return "\n".join(
        f"{key:<{key_width}}  {value:<{value_width}}  {origin}" for key, value, origin in rows
    )


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """Return the origin of a key, or of the section that was given as one value."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return DEFAULT


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _dotted_keys(values: Mapping[str, Any]) -> list[str]:
    return [key for key, _ in _flatten(values)]


def _shown(file: Path) -> str:
    """Return the path relative to the working folder where it is below it."""
    absolute, here = file.resolve(), Path.cwd().resolve()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
