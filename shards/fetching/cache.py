"""A bounded cache on a local disk, shared by all processes of a node.

Every entry is loaded once, and the entries never take more bytes than the cap.

    <folder>/locks/000 .. fff     one lock per stripe of entries. A process that loads an entry
                                  holds its lock; the others wait and then find the entry.
    <folder>/used                 bytes that are stored or reserved, changed under its own lock
    <folder>/pieces/<xx>/<name>   the entries. `.part` has its full length from the reservation
                                  until it is written; `.passing` is a transient entry, which will
                                  not be read again soon.

Everything may be deleted at any time. The kernel releases the locks of a process that ends: a
`.part` file whose lock is free was left by a killed process, and the next eviction deletes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.files import hold_lock, os_error_text

_TOUCH_SECONDS = 60.0  # an entry that was used within this time is not marked as used again
# Filled part of the cap after an eviction. Counting the folder takes 2 us per entry, so that an
# eviction makes room for many entries at once.
_FILLED_AFTER_EVICTION = 0.9
# On disk, transient entries and the folder of all entries keep these names.
_TRANSIENT = ".passing"
_ENTRIES = "pieces"


@dataclass(frozen=True)
class _Entry:
    """An entry, or the reservation of one, that an eviction found on disk."""

    path: Path
    num_bytes: int
    used_at: float

    @property
    def is_part(self) -> bool:
        return self.path.suffix == ".part"

    @property
    def is_transient(self) -> bool:
        return _TRANSIENT in self.path.suffixes


class Cache:
    """Entries by name; a name stands for one content for ever."""

    folder: Path

    max_bytes: int
    """Cap of all entries together."""

    transient_bytes: int
    """Budget for transient entries. Beyond it the oldest ones are evicted before anything else."""

    def __init__(self, folder: Path, *, max_bytes: int, transient_bytes: int = 0) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.transient_bytes = transient_bytes
        self._has_warned = False

    def read(
        self,
        name: str,
        size: int,
        ranges: Sequence[tuple[int, int]],
        load: Callable[[], bytes],
        *,
        is_transient: bool = False,
    ) -> tuple[list[bytes], bool]:
        """Read ranges of an entry, and load it first if no process of this node has done so.

        A folder that cannot be written causes one warning and disables the cache; the run goes on.

        Args:
            name: of the entry.
            size: bytes of the whole entry.
            ranges: (start, size) of each range within the entry.
            load: returns the whole entry, already checked. What it raises is raised here.
            is_transient: whether the entry will not be read again soon.

        Returns:
            The bytes of the ranges, and whether the entry was in the cache.
        """
        path = self._path(name, is_transient=is_transient)
        stored = _read_ranges(path, size, ranges)
        if stored is not None:
            return stored, True

        with contextlib.ExitStack() as locks:
            is_writable = True
            try:
                self._stripe(path).parent.mkdir(parents=True, exist_ok=True)
                locks.enter_context(hold_lock(self._stripe(path), wait=True))
            except OSError as error:
                is_writable = False
                self._warn(error)

            # Another process may have loaded the entry while this one waited for the lock.
            stored = _read_ranges(path, size, ranges)
            if stored is not None:
                return stored, True

            data = load()
            if is_writable:
                self._try_to_store(path, data)

        return [data[start : start + length] for start, length in ranges], False

    def drop(self, name: str, *, is_transient: bool = False) -> None:
        """Delete an entry that turned out to be damaged."""
        # Another process may have deleted it already, or it may belong to another user.
        with contextlib.suppress(OSError):
            self._path(name, is_transient=is_transient).unlink()

    def _path(self, name: str, *, is_transient: bool = False) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        suffix = _TRANSIENT if is_transient else ""
        return self.folder / _ENTRIES / digest[:2] / (digest[2:] + suffix)

    def _stripe(self, path: Path) -> Path:
        """Return the lock file of an entry, one of 4096.

        Of the 128 loads of 8 ranks with 16 requests each, 3 % wait for another entry's load.
        """
        return self.folder / "locks" / (path.parent.name + path.name[0])

    def _try_to_store(self, path: Path, data: bytes) -> None:
        """Store an entry, or warn if the folder cannot be written."""
        try:
            self._store(path, data)
        except FileNotFoundError:
            pass  # the folder has just been deleted
        except OSError as error:
            self._warn(error)

    def _store(self, path: Path, data: bytes) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            if not self._reserve(part, len(data)):
                return
            with part.open("r+b") as file:
                file.write(data)
            # Under the lock, so that an eviction counts the entry once, under either name.
            with hold_lock(self.folder / "used", wait=True):
                part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _reserve(self, part: Path, size: int) -> bool:
        """Reserve `size` bytes by a file of that length, evicting entries if they do not fit.

        Returns:
            False if they do not fit into the cap.
        """
        if size > self.max_bytes:
            return False

        with hold_lock(self.folder / "used", wait=True) as descriptor:
            used = _parse_used(os.pread(descriptor, 32, 0))
            if used is None or used + size > self.max_bytes:
                used = self._evict(min(self.max_bytes - size, usable_bytes(self.max_bytes)))

            # Reservations of other processes cannot be evicted, so that it may still not fit.
            fits = used + size <= self.max_bytes
            if fits:
                used += size
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(used).encode(), 0)

            if fits:
                part.parent.mkdir(parents=True, exist_ok=True)
                with part.open("wb") as file:
                    file.truncate(size)

        return fits

    def _evict(self, target_bytes: int) -> int:
        """Delete entries until at most `target_bytes` are stored.

        Transient entries beyond their budget go first, then the least recently used entries.

        Returns:
            The bytes that remain, reservations of other processes included.
        """
        entries = self._list_entries()
        bytes_left = sum(entry.num_bytes for entry in entries)

        for entry in self._by_eviction(entries):
            if bytes_left <= target_bytes:
                break
            # A process that is reading the file keeps its open copy.
            entry.path.unlink(missing_ok=True)
            bytes_left -= entry.num_bytes

        return bytes_left

    def _list_entries(self) -> list[_Entry]:
        """Return all entries and reservations; delete those that a killed process left."""
        entries = []
        for path in (self.folder / _ENTRIES).glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entry = _Entry(path, status.st_size, status.st_mtime)
                if entry.is_part and self._is_abandoned(path):
                    path.unlink()
                else:
                    entries.append(entry)
        return entries

    def _by_eviction(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Return the entries that may be deleted, the first to be evicted first."""
        expired: list[_Entry] = []
        others: list[_Entry] = []
        transient_bytes = 0

        # From the newest on: the budget belongs to the newest transient entries.
        # Equal times are common where a file system stores whole seconds: the order is fixed then.
        newest_first = sorted(entries, key=_eviction_key, reverse=True)
        for entry in newest_first:
            if entry.is_transient:
                transient_bytes += entry.num_bytes  # reservations count, too
            if entry.is_part:
                continue
            is_expired = entry.is_transient and transient_bytes > self.transient_bytes
            if is_expired:
                expired.append(entry)
            else:
                others.append(entry)

        return expired[::-1] + others[::-1]

    def _is_abandoned(self, part: Path) -> bool:
        """Return whether no process is writing a reservation: the lock of its stripe is free."""
        try:
            with hold_lock(self._stripe(part)):
                return True
        except FileNotFoundError:
            raise
        except OSError:
            # Another process holds the lock, or the file system cannot tell.
            return False

    def _warn(self, error: OSError) -> None:
        """Print one warning per process that the folder cannot be written."""
        if self._has_warned:
            return

        # Imported here, since it brings typer, which no loader process needs.
        from shards.cli import warn

        self._has_warned = True
        warn(
            f"{self.folder}: the cache cannot be written ({os_error_text(error)}); reading "
            "continues without it: make room, or set data.cache to another folder"
        )


def _eviction_key(entry: _Entry) -> tuple[float, int, Path]:
    return entry.used_at, entry.num_bytes, entry.path


def usable_bytes(max_bytes: int) -> int:
    """Return the bytes under a cap that survive every eviction, from the last used on."""
    return int(_FILLED_AFTER_EVICTION * max_bytes)


def _parse_used(text: bytes) -> int | None:
    """Return the number in the file `used`; None if the file is new or damaged."""
    return int(text) if text.isdigit() else None


def _read_ranges(path: Path, size: int, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
    """Read ranges of a whole entry and mark it as used; None if it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        parts = [os.pread(descriptor, length, start) for start, length in ranges]
    except OSError:
        return None
    finally:
        os.close(descriptor)

    # Another program may have written the file, or the disk may have lost its end.
    is_complete = [len(part) for part in parts] == [length for _, length in ranges]
    if status.st_size != size or not is_complete:
        return None

    if time.time() - status.st_mtime > _TOUCH_SECONDS:
        with contextlib.suppress(OSError):
            os.utime(path)
    return parts
