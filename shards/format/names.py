"""Names of videos and classes, so that two sources that spell them differently can be told to mean
the same."""

from __future__ import annotations

import re
from urllib.parse import unquote

_NOT_IN_FOLDED = re.compile(r"[\s_-]+")


def fold_name(class_name: str) -> str:
    """What two spellings of a class have in common: no case, spaces, `_` or `-`."""
    return _NOT_IN_FOLDED.sub("", class_name.casefold())


def video_stem(key: str) -> str:
    """The file name of a sample's video without its extension, as it is on disk: the last part of
    the key, decoded."""
    return unquote(key.rpartition("/")[2], errors="surrogateescape")


def is_utf8(name: str) -> bool:
    """Whether it has no surrogates, as names that were read from a file in another encoding
    have."""
    return name.encode("utf-8", "replace").decode() == name
