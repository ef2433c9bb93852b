"""Locks that keep two builds from writing to one pool.

The kernel releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from preprocess.records.state import SHARDS
from preprocess.settings import BuildSettings
from shards.errors import ConfigError, StorageError
from shards.files import hold_folder_lock, hold_lock, os_error_text, try_lock


@contextlib.contextmanager
def lock_folder(folder: Path, settings: BuildSettings) -> Iterator[None]:
    """Hold a folder for one build, or one part of it for one build of that part.

    A build without parts excludes all others. Builds of different parts run at the same time, if
    they divide the pool into the same number of parts.

    Args:
        folder: folder of a local pool, or the scratch folder; created if it is missing.
        settings: `part` decides what is held.

    Raises:
        ConfigError: if another build holds it.
        StorageError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        # The folder is shared by the builds of parts, each of which holds its own lock file.
        try:
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            held.enter_context(hold_folder_lock(folder, shared=settings.part is not None))
            if settings.part is not None:
                held.enter_context(hold_lock(folder / SHARDS / _part_lock_name(settings)))
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another build is writing there; wait for it, or give another folder "
                "with --out"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{folder}: cannot be written: {os_error_text(error)}; give another folder with "
                "--out or --scratch"
            ) from None

        # Parts of two divisions would write the same shards.
        if settings.part is not None:
            _check_number_of_parts(folder, settings.num_parts)
        yield


@contextlib.contextmanager
def lock_address(address: str, *, shared: bool) -> Iterator[None]:
    """Hold a pool in object storage against other builds on this machine, whatever their scratch.

    Args:
        address: of the pool.
        shared: whether builds of other parts may hold it at the same time.

    Raises:
        ConfigError: if another build holds it.
    """
    # In the temporary folder, which all builds of this user on this machine share.
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"bmpt-{os.getuid()}-{digest}.lock"

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_hold_temporary(path, shared=shared))
        except BlockingIOError:
            raise ConfigError(
                f"{address}: another build on this machine writes there; wait for it"
            ) from None
        yield


def remove_unused(folder: Path) -> None:
    """Remove a scratch folder that holds nothing but lock files, unless a build holds it."""
    with contextlib.suppress(OSError), hold_folder_lock(folder, shared=False):
        for lock in (folder / SHARDS).glob(".part-*.lock"):
            lock.unlink(missing_ok=True)
        (folder / SHARDS).rmdir()
        folder.rmdir()


@contextlib.contextmanager
def _hold_temporary(path: Path, *, shared: bool) -> Iterator[None]:
    """Hold a lock file that its last holder removes."""
    while True:
        with hold_lock(path, shared=shared) as descriptor:
            if not _is_same_file(path, descriptor):
                # Its last holder removed it after we had opened it: open a new one.
                continue
            try:
                yield
            finally:
                # Only the last holder gets it exclusively.
                if try_lock(descriptor):
                    path.unlink(missing_ok=True)
            return


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _part_lock_name(settings: BuildSettings) -> str:
    return f".part-{settings.part_index}-of-{settings.num_parts}.lock"


def _check_number_of_parts(folder: Path, num_parts: int) -> None:
    """Check that no part of another division of the pool is being built.

    Raises:
        ConfigError: naming the part.
    """
    for lock in (folder / SHARDS).glob(".part-*-of-*.lock"):
        if lock.name.endswith(f"-of-{num_parts}.lock") or not _is_held(lock):
            continue
        part = lock.name.removeprefix(".part-").removesuffix(".lock").replace("-of-", "/")
        raise ConfigError(f"{folder}: part {part} is being built there; all parts need the same N")


def _is_held(lock: Path) -> bool:
    # A killed build leaves its lock file, but not its lock.
    try:
        with lock.open("rb") as file:
            return not try_lock(file.fileno())
    except FileNotFoundError:
        return False
