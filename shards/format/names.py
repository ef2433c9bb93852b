"""Spellings of videos and classes: two sources may spell the same name differently."""

from __future__ import annotations

import re
from urllib.parse import unquote

_IGNORED = re.compile(r"[\s_-]+")


def fold_name(class_name: str) -> str:
    """Return a class name without case, spaces, `_` and `-`: equal for two spellings of it."""
    return _IGNORED.sub("", class_name.casefold())


def video_stem(key: str) -> str:
    """Return the file name of a sample's video without extension: the decoded end of the key."""
    return unquote(key.rpartition("/")[2], errors="surrogateescape")


def is_utf8(name: str) -> bool:
    """Return whether a name has no surrogates; names read in another encoding have some."""
    return name.encode("utf-8", "replace").decode() == name
