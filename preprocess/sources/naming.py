"""Names as they are on disk, in lists and in pools: keys, extensions, YouTube ids, class names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shards.format.names import fold_name

VIDEO_EXTENSIONS = (".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg")
PATH_KEYED = ("folder", "demo")  # their keys are paths: file names may repeat from class to class

_NOT_IN_KEYS = re.compile("[%.\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_YOUTUBE_NAME = re.compile(r"([A-Za-z0-9_-]{11})(?:_\d+_\d+)?")


def video_key(dataset: str, name: str) -> str:
    """The key of a path on disk or in a list: without folders (except `folder`, `demo`) and
    extension, encoded."""
    stem = strip_extension(name)
    if dataset not in PATH_KEYED:
        stem = stem.rpartition("/")[2]
    return _NOT_IN_KEYS.sub(_percent, stem)


def strip_extension(name: str) -> str:
    """Cut a video extension, in any case; anything else after a dot belongs to the name."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and f".{extension.lower()}" in VIDEO_EXTENSIONS else name


def storable(text: str) -> str:
    """Percent-encode what is not UTF-8 (surrogate escapes), so that the text can stand in a
    table."""
    return text if text.isascii() else _NOT_UTF8.sub(_percent, text)


def youtube_id(key: str) -> str | None:
    """The 11 characters in front of `_<start>_<end>`, or alone; ids hold `-` and `_`, hence from
    the right."""
    match = _YOUTUBE_NAME.fullmatch(key)
    return match[1] if match else None


def first_clash(names: Iterable[str]) -> tuple[str, str] | None:
    """Two different names that fold to one, which no list could tell apart; None if there are
    none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(fold_name(name), name)
        if other != name:
            return other, name
    return None


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))
