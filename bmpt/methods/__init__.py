"""The table of methods. A method is a file with its class and its settings, a line here and a YAML.

Methods of other packages register as entry points of the group `bmpt.methods`: the name of the
entry point is the name of the method, and its value is `package.module:ATTRIBUTE`, where ATTRIBUTE
is a pair (method class, settings model) like the values of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError

from bmpt.clip.backbone import Backbone
from bmpt.methods.base import Method
from bmpt.methods.bdc_clip import BdcClip, BdcClipSettings
from bmpt.methods.bike import Bike, BikeSettings
from bmpt.methods.bmpt import Bmpt, BmptSettings
from bmpt.methods.vifi_clip import VifiClip, VifiClipSettings
from bmpt.methods.zero_shot import ZeroShot, ZeroShotSettings
from bmpt.settings import MethodSettings
from shards.config import suggest_key
from shards.errors import ConfigError
from shards.plugins import find_plugins, load_plugin

MethodEntry = tuple[type[Method], type[MethodSettings]]

METHODS: dict[str, MethodEntry] = {
    "zero_shot": (ZeroShot, ZeroShotSettings),
    "vifi_clip": (VifiClip, VifiClipSettings),
    "bdc_clip": (BdcClip, BdcClipSettings),
    "bmpt": (Bmpt, BmptSettings),
    "bike": (Bike, BikeSettings),
}

ENTRY_POINTS = "bmpt.methods"
_NUM_EXPLAINED = 3  # wrong keys in one error message


def method_names() -> list[str]:
    """Return the names of all methods: those of the table, then those of installed packages."""
    return [*METHODS, *(name for name in find_plugins(ENTRY_POINTS) if name not in METHODS)]


def find_method(name: str) -> MethodEntry:
    """Return the class and the settings model of a method, of this package or an installed one.

    Raises:
        ConfigError: The name is unknown, two packages claim it, or its package is broken.
    """
    # This reads metadata only. A package is imported when its method is used, so that a broken
    # package does not stop runs of other methods.
    plugins = find_plugins(ENTRY_POINTS).get(name, [])
    if name in METHODS:
        # Neither method is preferred: a run must not depend on the installed packages.
        if plugins:
            raise ConfigError(
                f"method.name={name}: package {plugins[0].package} registers a method of this "
                "name, which bmpt has already; rename its entry point or uninstall the package"
            )
        return METHODS[name]
    if not plugins:
        raise ConfigError(
            f"method.name={name}: unknown method; choose one of {', '.join(method_names())}"
        )

    found = load_plugin(f"method.name={name}", plugins)
    if not _is_entry(found):
        raise ConfigError(
            f"method.name={name}: {plugins[0].value} of package {plugins[0].package} is not a pair "
            "(subclass of Method, subclass of MethodSettings); correct the package"
        )
    kind, settings = found
    # A stored config names its method by this default; another name would not find it again.
    default = settings.model_fields["name"].default
    if default != name:
        raise ConfigError(
            f"method.name={name}: {settings.__name__} of package {plugins[0].package} has the "
            f"default name {default!r}; make it {name!r}, the name of the entry point"
        )
    return kind, settings


def _is_entry(found: Any) -> bool:
    """Whether an object of a package can be a value of `METHODS`."""
    if not (isinstance(found, tuple) and len(found) == 2):
        return False
    if not all(isinstance(part, type) for part in found):
        return False
    return issubclass(found[0], Method) and issubclass(found[1], MethodSettings)


def validate_method_settings(values: Mapping[str, Any]) -> MethodSettings:
    """Validate the section `method` of a config as the settings of the method that `name` names.

    Raises:
        pydantic.ValidationError: A value is wrong, or a key does not belong to this method; the
            message for a key names the methods that have it.
    """
    name = str(values["name"])
    try:
        settings = find_method(name)[1]
    except ConfigError as error:
        problem = str(error).removeprefix(f"method.name={name}: ")
        raise _errors({"name": problem}, values) from None

    known = settings.model_fields
    wrong = [key for key in values if key not in known][:_NUM_EXPLAINED]
    # Wrong keys come first: the values of another method's settings mean nothing here.
    if wrong:
        raise _errors({key: _explain_key(key, name, list(known)) for key in wrong}, values)
    return settings.model_validate(dict(values))


def _explain_key(key: str, name: str, known: Sequence[str]) -> str:
    """Return one sentence on a key that the settings of method `name` do not have."""
    owners = [other for other, (_, model) in METHODS.items() if key in model.model_fields]
    if not owners:
        return f"unknown key of method {name}; {suggest_key(key, known)}"
    return (
        f"method {name} has no such key, it belongs to {' and '.join(owners)}; leave it out or set "
        f"method.name={owners[0]}"
    )


def _errors(sentences: Mapping[str, str], values: Mapping[str, Any]) -> ValidationError:
    """Return a validation error with one sentence for each of some keys."""
    return ValidationError.from_exception_data(
        "method",
        [
            {
                "type": "value_error",
                "loc": (key,),
                "input": values[key],
                "ctx": {"error": ValueError(sentence)},
            }
            for key, sentence in sentences.items()
        ],
    )


def build_method(
    backbone: Backbone,
    settings: MethodSettings,
    *,
    num_frames: int,
    seed: int,
    classes: Sequence[str] = (),
) -> Method:
    """Build the method that the settings name; only its trained parameters require a gradient.

    Args:
        backbone: The CLIP that the method is put on; the method shares its parameters.
        settings: The settings of the method.
        num_frames: Frames per clip (T).
        seed: Seed of the new tensors; the global generator is left as it was.
        classes: Names of the classes that the method is trained on.

    Raises:
        ConfigError: The backbone cannot carry these settings.
    """
    kind, _ = find_method(settings.name)
    # The tensors of a method depend on the seed only, not on what was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = kind(backbone, settings, num_frames=num_frames, classes=classes)
    method.freeze_untrained()
    return method
