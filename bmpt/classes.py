"""Class names to class texts: what the text tower reads for each class."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bmpt.config import TextSettings
from shards.errors import ConfigError

# a capital after a small letter or digit, and the last capital of a run before a small letter: "TaiChi", "YoYo"
_CAMEL_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def readable(class_name: str) -> str:
    """Make text of a class name: CamelCase split, `_` to space, lower case.

    `ApplyEyeMakeup` -> `apply eye makeup`, `shoot_bow` -> `shoot bow`."""
    return " ".join(_CAMEL_BOUNDARY.sub(" ", class_name).replace("_", " ").split()).lower()


def class_texts(class_names: Sequence[str], settings: TextSettings) -> list[str]:
    """One class text a class, in order. Raises: ConfigError for a template without exactly one `{}`."""
    if settings.template.count("{}") != 1:
        raise ConfigError(f"text.template={settings.template!r}: expected exactly one {{}} for the class name")
    before, after = settings.template.split("{}")
    return [before + (name if settings.raw_names else readable(name)) + after for name in class_names]
