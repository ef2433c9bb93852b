"""Read small text files of other people: line endings, byte order marks and encodings vary."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import ConfigError

_LEVELS_BELOW = 2


@dataclass(frozen=True)
class TextFile:
    """Text without a byte order mark; bytes that are not UTF-8 are surrogate escapes; sha256 of the
    raw bytes."""

    path: Path
    text: str
    sha256: str

    def lines(self) -> list[str]:
        """The lines without their ends (LF or CRLF); `str.splitlines` would also cut at U+2028 and
        form feeds."""
        return [line.removesuffix("\r") for line in self.text.split("\n")]


def read_text_file(path: Path) -> TextFile:
    """Read a whole file. Raises: ConfigError naming it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return TextFile(path, text, hashlib.sha256(data).hexdigest())


def find_annotation_files(folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """The files whose names match, by name, from the first of: `folder`, one level below, two
    levels below.

    Raises: ConfigError if the folder is missing or one name is there twice; an empty answer is the
        caller's."""
    for level in _levels(folder):
        found: dict[str, Path] = {}
        for path in level:
            if not pattern.fullmatch(path.name):
                continue
            if path.name in found:
                raise ConfigError(
                    f"{folder}: holds both {found[path.name]} and {path}; give --annotations the folder of one"
                )
            found[path.name] = path
        if found:
            return found
    return {}


def nothing_found(folder: Path, expected: str) -> ConfigError:
    """The error of an annotation folder without a file that is known."""
    return ConfigError(
        f"{folder}: no annotation file there or up to two levels below; expected {expected}; "
        "give their folder with --annotations DIR"
    )


def _levels(folder: Path) -> Iterator[list[Path]]:
    """The files of the folder, then those of its subfolders, then those of theirs; hidden ones left
    out."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; give --annotations the folder of the annotation files"
        )
    folders = [folder]
    for _ in range(_LEVELS_BELOW + 1):
        entries = [
            entry
            for parent in folders
            for entry in sorted(parent.iterdir())
            if not entry.name.startswith(".")
        ]
        yield [entry for entry in entries if not entry.is_dir()]
        folders = [entry for entry in entries if entry.is_dir()]
