"""Read annotation files from elsewhere: line endings, byte order marks and encodings vary."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import ConfigError
from shards.files import os_error_text

_LEVELS_BELOW = 2


@dataclass(frozen=True)
class TextFile:
    """The content of a text file."""

    path: Path
    text: str
    """Without a byte order mark; bytes that are not UTF-8 are surrogate escapes."""
    sha256: str
    """Of the raw bytes."""

    def lines(self) -> list[str]:
        """Split the text into lines, without the line ends (LF or CRLF)."""
        # str.splitlines would also split at U+2028 and at form feeds, which names may contain.
        return [line.removesuffix("\r") for line in self.text.split("\n")]


def read_text_file(path: Path) -> TextFile:
    """Read a whole file. Raises ConfigError that names it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {os_error_text(error)}") from None
    # Names in other encodings are kept, so that they can be matched with names on disk.
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return TextFile(path, text, hashlib.sha256(data).hexdigest())


def find_annotation_files(folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Find the files whose name matches, in the folder or up to two levels below.

    Returns:
        Name -> path, from the first level that holds such a file; empty if none does.

    Raises:
        ConfigError: the folder is missing, or one level holds a name twice."""
    # Level by level: an archive may hold an older copy of the files in a subfolder.
    for level in _levels(folder):
        path_of: dict[str, Path] = {}
        for path in level:
            if not pattern.fullmatch(path.name):
                continue
            if path.name in path_of:
                raise ConfigError(
                    f"{folder}: holds both {path_of[path.name]} and {path}; give --annotations the "
                    "folder of one"
                )
            path_of[path.name] = path
        if path_of:
            return path_of
    return {}


def nothing_found(folder: Path, expected: str) -> ConfigError:
    """Return the error for an annotation folder that holds none of the expected files."""
    return ConfigError(
        f"{folder}: no annotation file there or up to two levels below; expected {expected}; "
        "give their folder with --annotations DIR"
    )


def _levels(folder: Path) -> Iterator[list[Path]]:
    """Yield the files of the folder, of its subfolders, and of theirs; hidden names are skipped."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; give --annotations the folder of the annotation files"
        )
    folders = [folder]
    for _ in range(_LEVELS_BELOW + 1):
        entries: list[Path] = []
        for parent in folders:
            entries += sorted(path for path in parent.iterdir() if not path.name.startswith("."))
        yield [entry for entry in entries if not entry.is_dir()]
        folders = [entry for entry in entries if entry.is_dir()]
