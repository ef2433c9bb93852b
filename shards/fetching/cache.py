"""A bounded cache on local disk, shared by all processes of a node: one load of each piece, never
over its cap.

    <folder>/locks/000 .. fff   who loads a piece holds the lock of its stripe, so that the others
    wait and then find it <folder>/used               bytes that are taken or promised, kept under
    its own lock <folder>/pieces/<xx>/<name> whole pieces; `.part` of full length from the promise
    until it is written, `.passing` if
                                nobody will want them again soon

Everything may be removed at any time. The kernel releases locks when a process ends; a `.part`
whose lock is free is nobody's, and the next count removes it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_TOUCH_SECONDS = 60.0  # a piece that was used within this time is not marked again
_ROOM_LEFT = 0.9  # of the cap after room was made, since counting the folder takes 2 us a piece
_PASSING = ".passing"


class Cache:
    """Pieces by name; a name stands for one content for ever.

    max_bytes: hard cap of all pieces together; passing_bytes: so many bytes of passing pieces are
        in use, the newest;
    the others go before anything else"""

    def __init__(self, folder: Path, *, max_bytes: int, passing_bytes: int = 0) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.passing_bytes = passing_bytes
        self._has_complained = False

    def read(
        self,
        name: str,
        size: int,
        ranges: Sequence[tuple[int, int]],
        load: Callable[[], bytes],
        *,
        is_passing: bool = False,
    ) -> tuple[list[bytes], bool]:
        """Read ranges (start, size) of a piece of `size` bytes, loading it if no process of this
        node has.

        load: gives the whole piece, checked. Returns: the ranges, and whether the piece was there.
        A folder that cannot be written is said once and costs the cache, not the run. Raises: what
        `load` raises."""
        place = self._place(name, is_passing=is_passing)
        found = _read_file(place, size, ranges)
        if found is not None:
            return found, True
        with contextlib.ExitStack() as held:
            is_held = False
            try:
                held.enter_context(self._hold_stripe(place))
                is_held = True
            except OSError as error:
                self._complain(error)
            found = _read_file(place, size, ranges)
            if found is not None:
                return found, True
            data = load()
            try:
                if is_held:
                    self._store(place, data)
            except FileNotFoundError:  # somebody has just removed the folder
                pass
            except OSError as error:
                self._complain(error)
        return [data[start : start + length] for start, length in ranges], False

    def drop(self, name: str, *, is_passing: bool = False) -> None:
        """Forget a piece that turned out to be damaged."""
        with contextlib.suppress(OSError):  # gone already, or another user's
            self._place(name, is_passing=is_passing).unlink()

    def _place(self, name: str, *, is_passing: bool = False) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self.folder / "pieces" / digest[:2] / (digest[2:] + _PASSING * is_passing)

    def _hold_stripe(self, place: Path) -> contextlib.AbstractContextManager[int]:
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return _locked(self._stripe(place))

    def _stripe(self, place: Path) -> Path:
        """4096 of them: of the 128 loads of 8 ranks with 16 requests each, 3 % wait for another
        piece's."""
        return self.folder / "locks" / (place.parent.name + place.name[0])

    def _store(self, place: Path, data: bytes) -> None:
        part = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            if not self._promise(part, len(data)):
                return
            with part.open("r+b") as file:
                file.write(data)
            with _locked(self.folder / "used"):  # whoever counts sees it once, under either name
                part.replace(place)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _promise(self, part: Path, size: int) -> bool:
        """Take room by a file of that length; see `_make_room` for what goes. False if it never
        fits."""
        if size > self.max_bytes:
            return False
        with _locked(self.folder / "used") as descriptor:
            used = _parse(os.pread(descriptor, 32, 0))
            if used is None or used + size > self.max_bytes:
                used = self._make_room(min(self.max_bytes - size, room_bytes(self.max_bytes)))
            fits = used + size <= self.max_bytes  # what others are writing now cannot be removed
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(used + size * fits).encode(), 0)
            if fits:
                part.parent.mkdir(parents=True, exist_ok=True)
                with part.open("wb") as file:
                    file.truncate(size)
        return fits

    def _make_room(self, room: int) -> int:
        """Count what is there and remove pieces until at most `room` bytes are left. Returns: the
        bytes left.

        Passing pieces that have passed go first, then what was not used for longest."""
        pieces: list[tuple[float, int, Path]] = []
        for path in (self.folder / "pieces").glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".part" and self._is_abandoned(path):
                    path.unlink()
                else:
                    pieces.append((status.st_mtime, status.st_size, path))
        left = sum(size for _, size, _ in pieces)
        ranked, passing = [], 0
        for used_at, size, path in sorted(pieces, reverse=True):
            passing += size * (_PASSING in path.suffixes)  # those that are being written too
            has_passed = path.suffix == _PASSING and passing > self.passing_bytes
            ranked.append((not has_passed, used_at, size, path))
        for _, _, size, path in sorted(ranked):
            if left <= room:
                break
            if path.suffix != ".part":
                path.unlink(missing_ok=True)  # who reads it now keeps what it has open
                left -= size
        return left

    def _is_abandoned(self, part: Path) -> bool:
        """Whether nobody is writing it: its stripe's lock is free."""
        with self._stripe(part).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            print(
                f"warning: {self.folder}: the cache cannot be written ({error.strerror or error}); reading goes on "
                "without it: make room, or set data.cache to another folder",
                file=sys.stderr,
            )


def room_bytes(max_bytes: int) -> int:
    """What a run may rely on under a cap: of the pieces used last, so many bytes stay whenever room
    is made."""
    return int(_ROOM_LEFT * max_bytes)


def _parse(number: bytes) -> int | None:
    """What `used` says; None if it is new or damaged."""
    return int(number) if number.isdigit() else None


def _read_file(place: Path, size: int, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
    """The ranges of a whole piece, None if it is not there; marks it as used."""
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        blocks = [os.pread(descriptor, length, start) for start, length in ranges]
    except OSError:
        return None
    finally:
        os.close(descriptor)
    is_whole = all(len(block) == length for block, (_, length) in zip(blocks, ranges, strict=True))
    if status.st_size != size or not is_whole:  # another hand, or a disk that lost its end
        return None
    if time.time() - status.st_mtime > _TOUCH_SECONDS:
        with contextlib.suppress(OSError):
            os.utime(place)
    return blocks


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a lock file; the kernel lets go of it when the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
