"""All keys of a config with type, default and meaning, read from the settings models."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shards.cli import warn
from shards.errors import ConfigError

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_WORDS = {str: "text", int: "integer", float: "number", bool: "boolean", Path: "path"}


@dataclass(frozen=True)
class ConfigKey:
    """One key of a config."""

    key: str
    """Dotted name, for example `data.batch_size`."""
    type: str
    """In words, with its bounds: `integer, >= 1`."""
    default: str
    """In the form that `--set` reads; `required` where there is none."""
    meaning: str


@dataclass(frozen=True)
class ConfigKeys:
    """All keys of a config."""

    keys: tuple[ConfigKey, ...]
    """In the order of the settings models."""
    methods: dict[str, tuple[ConfigKey, ...]]
    """Keys of the section `method` that only one method has, by method."""


def all_keys() -> ConfigKeys:
    """Return the keys of all sections, and those of each method. Imports torch."""
    from bmpt.config import RunConfig
    from bmpt.settings import MethodSettings

    keys: list[ConfigKey] = []
    for name, field in RunConfig.model_fields.items():
        if name == "method":
            shared = MethodSettings.model_fields
            keys += [_key(f"method.{key}", value) for key, value in shared.items()]
        else:
            keys += _field_keys(name, field)

    methods = {}
    for method, model in method_models().items():
        own = own_fields(model)
        if own:
            methods[method] = tuple(_key(f"method.{key}", value) for key, value in own.items())
    return ConfigKeys(tuple(keys), methods)


def keys_text(keys: ConfigKeys) -> str:
    """Return one line per key, then the keys of each method."""
    lines = [_key_line(key) for key in keys.keys]
    for method, own in keys.methods.items():
        lines += ["", f"method.name={method}", *map(_key_line, own)]
    return "\n".join(lines)


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config; editors complete and check YAML files with it.

    The section `method` accepts the keys of every method, `base` names the parent.
    """
    from bmpt.config import RunConfig

    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    references = []
    for name, model in method_models().items():
        method_schema = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(method_schema.pop("$defs", {}))
        # The name decides which keys the section may have.
        method_schema["properties"]["name"] = {"const": name}
        definitions[f"method_{name}"] = method_schema
        references.append({"$ref": f"#/$defs/method_{name}"})

    schema["properties"]["method"] = {"anyOf": references}
    schema["properties"]["base"] = {
        "type": "string",
        "description": "a YAML file, relative to this one, whose values this file overrides",
    }
    # A file with a `base:` may leave out what its parent states.
    for part in (schema, *definitions.values()):
        part.pop("required", None)
    return schema


def method_models() -> dict[str, type[BaseModel]]:
    """Return the settings model of each method, by its name."""
    from bmpt.methods import find_method, method_names

    models: dict[str, type[BaseModel]] = {}
    for name in method_names():
        try:
            models[name] = find_method(name)[1]
        except ConfigError as error:
            # A broken package must not hide the keys of the others.
            warn(str(error))
    return models


def own_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields that a method's model adds to the shared ones or declares differently.

    The field `name` is left out: it only names the method.
    """
    from bmpt.settings import MethodSettings

    own = {}
    for name, field in model.model_fields.items():
        shared = MethodSettings.model_fields.get(name)
        is_shared = shared is not None and describe_field(field) == describe_field(shared)
        if name != "name" and not is_shared:
            own[name] = field
    return own


def settings_model(annotation: Any) -> type[BaseModel] | None:
    """Return the settings model that an annotation names, or None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in typing.get_args(annotation):
        model = settings_model(part)
        if model is not None:
            return model
    return None


def describe_field(field: FieldInfo) -> tuple[str, str, str]:
    """Return (type with its bounds, default, meaning) of a field."""
    parts = [type_in_words(field.annotation)]
    for item in field.metadata:
        for name, sign in _BOUNDS.items():
            bound = getattr(item, name, None)
            if bound is not None:
                parts.append(f"{sign} {value_text(bound)}")
    return ", ".join(parts), _default_text(field), field.description or ""


def type_in_words(annotation: Any) -> str:
    """Return a type in words: `integer`, `list of text`, `fp32 or bf16`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)

    if origin is typing.Annotated:
        return type_in_words(arguments[0])
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_in_words(part) for part in arguments if part is not types.NoneType)
    if origin in (tuple, list, set, frozenset):
        parts = [type_in_words(part) for part in arguments if part is not Ellipsis]
        is_fixed = origin is tuple and Ellipsis not in arguments
        return f"{len(parts)} values: {', '.join(parts)}" if is_fixed else f"list of {parts[0]}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " or ".join(str(item.value) for item in annotation)
    return _WORDS.get(annotation, "value")


def _field_keys(name: str, field: FieldInfo) -> Iterator[ConfigKey]:
    """Yield the key of a plain field, or the keys of a section."""
    model = settings_model(field.annotation)
    if model is None:
        yield _key(name, field)
        return
    for inner, inner_field in model.model_fields.items():
        yield from _field_keys(f"{name}.{inner_field.alias or inner}", inner_field)


def _key(name: str, field: FieldInfo) -> ConfigKey:
    return ConfigKey(name, *describe_field(field))


def _key_line(key: ConfigKey) -> str:
    return f"{key.key:<28} {key.type} [{key.default}]  {key.meaning}".rstrip()


def _default_text(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return "required" if default is PydanticUndefined else value_text(default)


def value_text(value: Any) -> str:
    """Return a value in the form that `--set` reads."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(value_text, value))}]"
    return str(value)
