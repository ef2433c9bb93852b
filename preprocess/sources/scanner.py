"""Find the video files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocess.sources.naming import VIDEO_EXTENSIONS, strip_extension
from shards.errors import ConfigError, StorageError
from shards.files import os_error_text


@dataclass(frozen=True)
class VideoFile:
    """A directory entry with a video extension.

    A broken link or a device counts too, with 0 bytes: like every unreadable video it becomes a
    row of the pool."""

    path: Path
    relative_path: str
    """Below the scanned folder, as the operating system spells it, `/` between parts."""
    num_bytes: int


def scan_videos(root: Path, dataset: str) -> list[VideoFile]:
    """List every video file below `root`; one `stat` per file.

    Symbolic links are followed, except a link to a folder that contains it.

    Raises:
        ConfigError: the folder is missing or holds no video.
        StorageError: a folder cannot be read."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise ConfigError(f"{root}: {what}; put the {dataset} videos there or give --videos DIR")
    files = list(_walk(root.absolute(), "", ()))
    if not files:
        extensions = " ".join(VIDEO_EXTENSIONS)
        raise ConfigError(
            f"{root}: holds no video file ({extensions}); give the {dataset} videos with "
            "--videos DIR"
        )
    return files


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[VideoFile]:
    """Yield the videos in and below one folder.

    `above` holds the (device, inode) of all folders that contain this one, to end link cycles."""
    try:
        facts = folder.stat()
        here = (facts.st_dev, facts.st_ino)
        if here in above:
            return
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be read: {os_error_text(error)}; check the permissions"
        ) from None

    for entry in entries:
        path = folder / entry.name
        # Path.is_dir follows links and is False for broken ones.
        if path.is_dir():
            yield from _walk(path, f"{prefix}{entry.name}/", (*above, here))
        # The name "" is an extension alone, such as `.mp4`.
        elif strip_extension(entry.name) not in ("", entry.name):
            num_bytes = entry.stat().st_size if path.is_file() else 0
            yield VideoFile(path, prefix + entry.name, num_bytes)
