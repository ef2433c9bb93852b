"""The interface to the storage of a pool: whole and ranged reads, atomic writes.

`shards.storage.open.open_store` returns the implementation for an address.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from obstore.exceptions import BaseError

from shards.errors import ConfigError, StorageError
from shards.files import os_error_text

# obstore raises FileNotFoundError for a missing object and its own errors for everything else.
FAILURES = (OSError, BaseError)
READ_BYTES = 8 << 20
_LIST_CHUNK_SIZE = 1000

Answer = TypeVar("Answer")

# The process in which obstore started its threads, with the first client.
_process_of_threads: int | None = None


class Store(ABC):
    """Objects with `/`-separated names below one address.

    The client of obstore is created at the first request, because its threads do not survive a
    fork into a loader worker. Pickling keeps the address only, never credentials.
    """

    def __init__(self) -> None:
        self._client: Any = None
        self._client_key: object = None
        self._has_answered = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_client": None, "_client_key": None}

    @abstractmethod
    def uri(self, name: str) -> str:
        """Return the full address of an object, for messages."""

    @abstractmethod
    def read_chunks(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """Read an object from its first byte on, in chunks of the given sizes.

        Yields:
            The chunks; each is valid until the next one is requested.

        Raises:
            StorageError: if the object is missing or shorter than all chunks together.
        """

    @abstractmethod
    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read byte ranges of one object, in the given order.

        Raises:
            StorageError: if the object is missing or ends before a range does.
        """

    @abstractmethod
    def move_in(self, name: str, path: Path) -> None:
        """Move a local file into the store, atomically and checked.

        Raises:
            StorageError: the file is still where it was.
        """

    @abstractmethod
    def _connect(self) -> Any:
        """Create the client of obstore.

        Raises:
            ConfigError: for settings of the environment that cannot be used.
        """

    def exists(self, name: str) -> bool:
        """Return whether there is an object of that name."""
        try:
            self.request(name, "read", lambda client: client.head(name))
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Return the size of an object in bytes.

        Raises:
            StorageError: naming the object.
        """
        try:
            return int(self.request(name, "read", lambda client: client.head(name))["size"])
        except FileNotFoundError:
            raise self._missing(name) from None

    def read(self, name: str) -> bytes:
        """Read a whole object.

        Raises:
            StorageError: naming the object.
        """
        try:
            return self.request(name, "read", lambda client: bytes(client.get(name).bytes()))
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is this the right pool?") from None

    def sha256(self, name: str) -> str:
        """Return the sha256 of an object as 64 hex digits; one core hashes 2.1 GB per second.

        Raises:
            StorageError: naming the object.
        """
        digest = hashlib.sha256()
        num_whole, rest = divmod(self.size(name), READ_BYTES)

        for chunk in self.read_chunks(name, [READ_BYTES] * num_whole + [rest]):
            digest.update(chunk)
        return digest.hexdigest()

    def put(self, name: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new ones, never a part.

        Raises:
            StorageError: naming the object.
        """
        try:
            self.request(name, "written", lambda client: client.put(name, data))
        except FileNotFoundError as error:
            raise self._failed(name, "written", error) from None

    def delete(self, name: str) -> None:
        """Delete an object, if it exists.

        Raises:
            StorageError: naming the object.
        """
        try:
            self.request(name, "removed", lambda client: client.delete(name))
        except FileNotFoundError:
            return

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of every object below `prefix`, sorted by name."""

        def collect(client: Any) -> dict[str, int]:
            sizes: dict[str, int] = {}
            for batch in client.list(prefix, chunk_size=_LIST_CHUNK_SIZE):
                sizes.update((entry["path"], int(entry["size"])) for entry in batch)
            return dict(sorted(sizes.items()))

        try:
            return self.request(prefix.rstrip("/"), "listed", collect)
        except FileNotFoundError:
            return {}

    def names(self, prefix: str) -> list[str]:
        """Return the names of all objects below `prefix`, sorted."""
        return list(self.sizes(prefix))

    def request(self, name: str, action: str, call: Callable[[Any], Answer]) -> Answer:
        """Call the client of obstore; every call of the client passes through here.

        An answer, also the answer that an object is missing, shows that address and credentials
        are right. From then on a new client retries failed requests for longer
        (`shards.storage.retries`).

        Args:
            name: of the object, for messages.
            action: `read`, `written`, `removed` or `listed`, for messages.
            call: makes the request with the client.

        Raises:
            FileNotFoundError: if the object is missing.
            StorageError: for every other failure, naming the object.
        """
        try:
            answer = call(self._open())
        except FileNotFoundError as error:
            self._has_answered = True
            if self._is_bucket_missing(error):
                raise self._failed(name, action, error) from None
            raise
        except ConfigError as error:
            # Settings of the environment may be right again for the next request: keys rotate.
            raise StorageError(f"{self.uri(name)}: cannot be {action}: {error}") from None
        except FAILURES as error:
            raise self._failed(name, action, error) from None

        self._has_answered = True
        return answer

    def _open(self) -> Any:
        """Return the client of this process.

        Raises:
            StorageError: in a process that was forked after a client existed. It has none of the
                client's threads and would wait for ever.
        """
        global _process_of_threads
        if _process_of_threads not in (None, os.getpid()):
            raise StorageError(
                f"{self.uri('')}: cannot be read in a process that was forked after a pool was "
                'opened; start it with multiprocessing_context="spawn" or "forkserver"'
            )
        _process_of_threads = os.getpid()

        key = (os.getpid(), self._has_answered)
        if self._client is None or self._client_key != key:
            self._client, self._client_key = self._connect(), key
        return self._client

    def _is_bucket_missing(self, error: FileNotFoundError) -> bool:
        """Return whether the bucket of the object is missing, too."""
        return False

    def _missing(self, name: str) -> StorageError:
        return StorageError(f"{self.uri(name)}: no such file; is the pool complete?")

    def _too_short(self, name: str, num_bytes: int) -> StorageError:
        return StorageError(
            f"{self.uri(name)}: ends before the {num_bytes} bytes that it should hold"
        )

    def _truncated(
        self, name: str, starts: Sequence[int], sizes: Sequence[int], num_bytes: int
    ) -> StorageError:
        end = max(start + size for start, size in zip(starts, sizes, strict=True))
        return StorageError(
            f"{self.uri(name)}: holds {num_bytes} bytes, expected {end} or more; "
            "the file is truncated"
        )

    def _failed(self, name: str, action: str, error: Exception) -> StorageError:
        return StorageError(f"{self.uri(name)}: cannot be {action}: {self._reason(error)}")

    def _reason(self, error: Exception) -> str:
        """Return the reason of a failure on one line; obstore adds a page of debug output."""
        if isinstance(error, OSError) and error.strerror:
            return os_error_text(error)
        return str(error).partition("\n")[0]
