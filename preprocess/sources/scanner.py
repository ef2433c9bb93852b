"""Find the video files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocess.sources.naming import VIDEO_EXTENSIONS, strip_extension
from shards.errors import ConfigError, StorageError


@dataclass(frozen=True)
class VideoFile:
    """A file with a video extension; `relative_path` as the system gives it, `/` between parts.

    A broken link or a device is one too, of 0 bytes: it becomes a row, like every video that cannot
    be read."""

    path: Path
    relative_path: str
    num_bytes: int


def scan_videos(root: Path, dataset: str) -> list[VideoFile]:
    """List every video file below `root`, symlinks followed (a link to a folder above itself is
    not).

    Cost: one stat a file. Raises: ConfigError if the folder is missing or holds no video."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise ConfigError(f"{root}: {what}; put the {dataset} videos there or give --videos DIR")
    files = list(_walk(root.absolute(), "", ()))
    if not files:
        extensions = " ".join(VIDEO_EXTENSIONS)
        raise ConfigError(
            f"{root}: holds no video file ({extensions}); give the {dataset} videos with --videos DIR"
        )
    return files


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[VideoFile]:
    """Yield the videos of one folder and those below it; `above` are the (device, inode) of its
    ancestors."""
    try:
        facts = folder.stat()
        here = (facts.st_dev, facts.st_ino)
        if here in above:
            return
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be read: {error.strerror or error}; check the permissions"
        ) from None
    for entry in entries:
        path = folder / entry.name
        if path.is_dir():
            yield from _walk(path, f"{prefix}{entry.name}/", (*above, here))
        elif strip_extension(entry.name) not in ("", entry.name):
            yield VideoFile(
                path, prefix + entry.name, entry.stat().st_size if path.is_file() else 0
            )
