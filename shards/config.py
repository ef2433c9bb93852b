"""Strict settings: pydantic models from YAML files, `base:` parents and `--set a.b=c`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from shards.errors import ConfigError
from shards.files import one_line


class Settings(BaseModel):
    """Base of all settings: frozen, and an undeclared key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(
    model: type[SettingsT], path: Path | None, overrides: Sequence[str] = ()
) -> SettingsT:
    """Read a file on top of its `base:` parents, apply overrides, and validate the result.

    Args:
        model: the settings model.
        path: the YAML file; None for overrides only.
        overrides: `a.b=c`, later ones win.

    Raises:
        ConfigError: naming the file, the key and the value; for an unknown key also the most
            similar known one.
    """
    values = read_yaml_with_base(path) if path is not None else {}
    for override in overrides:
        values = merge(values, parse_override(override))
    return build_settings(model, values, where=str(path) if path is not None else "--set")


def build_settings(model: type[SettingsT], values: Mapping[str, Any], *, where: str) -> SettingsT:
    """Validate plain values.

    Raises:
        ConfigError: naming `where`, the key and the value.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        sentences = [_explain(model, item) for item in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(sentences)}") from None


def read_yaml_with_base(path: Path) -> dict[str, Any]:
    """Read a YAML mapping on top of its `base:` parents.

    Raises:
        ConfigError: naming the file that cannot be read.
    """
    values: dict[str, Any] = {}
    for _, layer in read_layers(path):
        values = merge(values, layer)
    return values


def read_layers(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read a YAML mapping and its `base:` parents, each relative to the file that names it.

    Returns:
        (file, values without `base`) of every file, the outermost parent first: later files
        override earlier ones.

    Raises:
        ConfigError: naming the file that cannot be read, or that is its own parent.
    """
    layers: list[tuple[Path, dict[str, Any]]] = []
    seen: set[Path] = set()
    file: Path | None = path

    while file is not None:
        if file.resolve() in seen:
            raise ConfigError(f"{file}: its `base:` leads back to itself; remove one of the links")
        seen.add(file.resolve())

        values = _read_mapping(file)
        base = values.pop("base", None)
        layers.insert(0, (file, values))
        file = None if base is None else file.parent / str(base)

    return layers


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such config file; a `base:` is relative to the file that names it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {one_line(error)}") from None

    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds a {type(values).__name__}, expected a mapping of settings"
        )
    return values


def parse_override(text: str) -> dict[str, Any]:
    """Return {"a": {"b": c}} for `a.b=c`, with the value read as YAML.

    `{}` stays a text: it is the template of a bare class name, and no setting is an empty mapping.

    Raises:
        ConfigError: naming the override.
    """
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {text}: expected key=value, for example --set data.batch_size=16")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML: {one_line(error)}") from None

    if nested == {}:
        nested = value.strip()
    for part in reversed(name.split(".")):
        nested = {part: nested}
    return nested


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with `above` on top: mappings are merged by key, other values replaced."""
    merged = dict(below)
    for key, value in above.items():
        both_map = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_map else value
    return merged


def to_yaml(settings: Settings) -> str:
    """Return settings as YAML; `load_settings` reads it back to an equal object."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(model: type[BaseModel], item: Any) -> str:
    """Return one sentence for one error of pydantic."""
    path = [str(part) for part in item["loc"]]
    name = ".".join(path)

    if item["type"] != "extra_forbidden":
        sentence = item["msg"].removeprefix("Value error, ")
        if not isinstance(item["input"], Mapping):
            sentence += f", got {item['input']!r}"
        return f"{name}: {sentence}" if name else sentence
    return f"unknown key {name}; {suggest_key(path[-1], _fields_at(model, path[:-1]))}"


def suggest_key(key: str, known: Sequence[str]) -> str:
    """Return the end of an error message on an unknown key: the nearest known key, else all."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the field names of the model at a path, or none if there is no model."""
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
