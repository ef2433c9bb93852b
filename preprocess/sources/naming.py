"""Names of videos and classes on disk, in lists and in pools: keys, extensions, YouTube ids."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shards.format.names import fold_name

VIDEO_EXTENSIONS = (".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".mpg")

# Python reads a byte that is not UTF-8 as a surrogate escape, U+DC80 to U+DCFF.
_NOT_IN_KEYS = re.compile("[%.\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
# Ids may contain `-` and `_`, so the times are matched from the right.
_YOUTUBE_NAME = re.compile(r"([A-Za-z0-9_-]{11})(?:_\d+_\d+)?")


def video_key(name: str, *, keep_folders: bool = False) -> str:
    """Return the key of a path on disk or in a list: no extension, percent-encoded.

    Args:
        keep_folders: keep the folders of the path; otherwise the key is the file name."""
    stem = strip_extension(name)
    if not keep_folders:
        stem = stem.rpartition("/")[2]
    return _NOT_IN_KEYS.sub(_percent, stem)


def strip_extension(name: str) -> str:
    """Remove a video extension in upper or lower case; any other suffix belongs to the name."""
    # Only known extensions: `Mr._Smith` has a dot and no extension.
    stem, dot, extension = name.rpartition(".")
    return stem if dot and f".{extension.lower()}" in VIDEO_EXTENSIONS else name


def parent_folder(relative_path: str) -> str | None:
    """Return the name of the folder that holds a file; None if the path has no folder."""
    folder = relative_path.rpartition("/")[0].rpartition("/")[2]
    return folder or None


def storable(text: str) -> str:
    """Percent-encode the bytes of a name that are not UTF-8, so that a table can hold it."""
    return text if text.isascii() else _NOT_UTF8.sub(_percent, text)


def youtube_id(key: str) -> str | None:
    """Return the YouTube id of a key `<id>_<start>_<end>` or `<id>`; None for any other key."""
    # A whole match: other names can start with 11 such characters, for example `making_a_cake`.
    match = _YOUTUBE_NAME.fullmatch(key)
    return match[1] if match else None


def first_clash(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two different names that lists could not tell apart, or None."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(fold_name(name), name)
        if other != name:
            return other, name
    return None


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))
