"""One small face for where a pool lies: whole or ranged reads and atomic writes, in a folder or
elsewhere."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from obstore.exceptions import BaseError

from shards.errors import ConfigError, StorageError

FAILURES = (
    OSError,
    BaseError,
)  # obstore raises FileNotFoundError for a missing object, its own errors otherwise
READ_BYTES = 8 << 20
_LISTED_AT_ONCE = 1000

Answer = TypeVar("Answer")

_process_of_threads: int | None = None  # that obstore started, at the first client


class Store(ABC):
    """Objects named by `/`-separated paths relative to one address.

    Made by `shards.storage.open.open_store`. The obstore client is made at first use, since its
    runtime must not be carried through a fork into a loader worker; pickling carries the address
    alone, never credentials."""

    def __init__(self) -> None:
        self._client: Any = None
        self._made_for: object = None
        self._has_answered = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_client": None, "_made_for": None}

    @abstractmethod
    def uri(self, name: str) -> str:
        """The full address of an object, for messages."""

    @abstractmethod
    def _connect(self) -> Any:
        """Make the obstore client. Raises: ConfigError for settings of the environment that it
        cannot use."""

    @abstractmethod
    def read_pieces(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """Read an object from its first byte on, in pieces of the given sizes; each is valid until
        the next one.

        Raises: StorageError, also for a short object."""

    @abstractmethod
    def adopt(self, name: str, path: Path) -> None:
        """Move a local file into the store, atomically and checked. Raises: StorageError, the file
        stays then."""

    @abstractmethod
    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read byte ranges of one object, in the given order. Raises: StorageError, also for a
        short object."""

    def exists(self, name: str) -> bool:
        """Whether an object of that name is there."""
        try:
            self._ask(name, "read", lambda client: client.head(name))
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """The size of an object in bytes. Raises: StorageError naming it."""
        try:
            return int(self._ask(name, "read", lambda client: client.head(name))["size"])
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None

    def read(self, name: str) -> bytes:
        """Read a whole object. Raises: StorageError naming it."""
        try:
            return self._ask(name, "read", lambda client: bytes(client.get(name).bytes()))
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is this the right pool?") from None

    def sha256(self, name: str) -> str:
        """The sha256 of an object's bytes, 64 hex digits; 2.1 GB/s a core. Raises: StorageError
        naming it."""
        digest = hashlib.sha256()
        whole, rest = divmod(self.size(name), READ_BYTES)
        for piece in self.read_pieces(name, [READ_BYTES] * whole + [rest]):
            digest.update(piece)
        return digest.hexdigest()

    def put(self, name: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new ones, never a part."""
        try:
            self._ask(name, "written", lambda client: client.put(name, data))
        except FileNotFoundError as error:
            raise self._failed(name, "written", error) from None

    def delete(self, name: str) -> None:
        """Remove an object; it may be gone already. Raises: StorageError naming it."""
        try:
            self._ask(name, "removed", lambda client: client.delete(name))
        except FileNotFoundError:
            return

    def sizes(self, prefix: str) -> dict[str, int]:
        """The size of every object below `prefix` in bytes, by name in their order."""

        def collect(client: Any) -> dict[str, int]:
            listed = client.list(prefix, chunk_size=_LISTED_AT_ONCE)
            return dict(
                sorted((entry["path"], int(entry["size"])) for batch in listed for entry in batch)
            )

        try:
            return self._ask(prefix.rstrip("/"), "listed", collect)
        except FileNotFoundError:
            return {}

    def names(self, prefix: str) -> list[str]:
        """The names of all objects below `prefix`, sorted."""
        return list(self.sizes(prefix))

    def _ask(self, name: str, what: str, request: Callable[[Any], Answer]) -> Answer:
        """Let the client do something. Raises: FileNotFoundError; StorageError naming the
        object."""
        try:
            answer = request(self._open())
        except FileNotFoundError as error:
            self._has_answered = True
            if self._is_lost(error):
                raise self._failed(name, what, error) from None
            raise
        except (
            ConfigError
        ) as error:  # of the environment or a file in it, which may be right again for the next one
            raise StorageError(f"{self.uri(name)}: cannot be {what}: {error}") from None
        except FAILURES as error:
            raise self._failed(name, what, error) from None
        self._has_answered = True
        return answer

    def _open(self) -> Any:
        """The client of this process; another one once the store has answered, see
        `shards.storage.buckets`.

        Raises: StorageError in a process whose parent had one: a fork has none of its threads and
            would wait."""
        global _process_of_threads
        if _process_of_threads not in (None, os.getpid()):
            raise StorageError(
                f"{self.uri('')}: cannot be read in a process that was forked after a pool was opened; start it with "
                'multiprocessing_context="spawn" or "forkserver"'
            )
        _process_of_threads = os.getpid()
        wanted = (os.getpid(), self._has_answered)
        if self._client is None or self._made_for != wanted:
            self._client, self._made_for = self._connect(), wanted
        return self._client

    def _is_lost(self, error: FileNotFoundError) -> bool:
        """Whether not only the object is missing, but the place it should lie in."""
        return False

    def _cut_short(
        self, name: str, starts: Sequence[int], sizes: Sequence[int], held: int
    ) -> StorageError:
        end = max(start + size for start, size in zip(starts, sizes, strict=True))
        return StorageError(
            f"{self.uri(name)}: holds {held} bytes, expected {end} or more; the file is cut short"
        )

    def _failed(self, name: str, what: str, error: Exception) -> StorageError:
        return StorageError(f"{self.uri(name)}: cannot be {what}: {self._reason(error)}")

    def _reason(self, error: Exception) -> str:
        """What went wrong in one line; obstore adds a page of debug output."""
        return (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]


class LocalStore(Store):
    """A folder; it need not be there before something is put into it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def uri(self, name: str) -> str:
        """The path of an object."""
        return str(self.root / name)

    def read_pieces(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """One buffer is used again and again: 3 times as fast as `read_ranges` for a file in the
        page cache."""
        buffer = memoryview(bytearray(max(sizes, default=0)))
        try:
            with (self.root / name).open("rb", buffering=0) as file:
                for size in sizes:
                    filled = 0
                    while filled < size and (count := file.readinto(buffer[filled:size])):
                        filled += count
                    if filled < size:
                        raise StorageError(
                            f"{self.uri(name)}: ends before the {sum(sizes)} bytes that it should hold"
                        )
                    yield buffer[:size]
        except OSError as error:
            raise self._failed(name, "read", error) from None

    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """A system call a range (2 us), whatever lies between them."""
        try:
            descriptor = os.open(self.root / name, os.O_RDONLY)
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None
        except OSError as error:
            raise self._failed(name, "read", error) from None
        try:
            blocks = [
                os.pread(descriptor, size, start) for start, size in zip(starts, sizes, strict=True)
            ]
            held = os.fstat(descriptor).st_size
        except OSError as error:
            raise self._failed(name, "read", error) from None
        finally:
            os.close(descriptor)
        if any(len(block) < size for block, size in zip(blocks, sizes, strict=True)):
            raise self._cut_short(name, starts, sizes, held)
        return blocks

    def put(self, name: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new ones, never a part."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(name, "written", error) from None
        super().put(name, data)

    def adopt(self, name: str, path: Path) -> None:
        """Move a file of the same file system into the folder."""
        try:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(self.root / name)
        except OSError as error:
            raise self._failed(name, "written", error) from None

    def _connect(self) -> Any:
        from obstore import store

        if not self.root.is_dir():  # obstore raises an error of its own for it, or makes the folder
            raise FileNotFoundError(f"{self.root}: no such folder")
        return store.LocalStore(self.root)
