"""One small face over obstore: where a pool lies, and whole or ranged reads and atomic writes in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from shards.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from obstore.store import LocalStore


class Store:
    """A folder of objects named by `/`-separated paths relative to it.

    Made by `open_store`. The obstore client is made at first use, since its runtime must not be carried
    through a fork into a loader worker; pickling carries the address alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._client: LocalStore | None = None
        self._owner_pid = 0

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.root,)

    def uri(self, name: str) -> str:
        """The full address of an object, for messages."""
        return str(self.root / name)

    def exists(self, name: str) -> bool:
        """Whether an object of that name is there."""
        try:
            self._open().head(name)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"{self.uri(name)}: cannot be read: {error}") from None
        return True

    def read(self, name: str) -> bytes:
        """Read a whole object. Raises: StorageError naming it."""
        try:
            return bytes(self._open().get(name).bytes())
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is this the right pool?") from None
        except OSError as error:
            raise StorageError(f"{self.uri(name)}: cannot be read: {error}") from None

    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read byte ranges of one object, in the given order. Raises: StorageError, also for a short object."""
        try:
            parts = self._open().get_ranges(name, starts=list(starts), lengths=list(sizes))
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.uri(name)}: cannot be read: {' '.join(str(error).split())}") from None
        blocks = [bytes(part) for part in parts]
        for start, size, block in zip(starts, sizes, blocks, strict=True):
            if len(block) != size:
                raise StorageError(
                    f"{self.uri(name)}: holds {len(block)} of {size} bytes at offset {start}; the file is cut short"
                )
        return blocks

    def put(self, name: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new ones, never a part."""
        try:
            self._open().put(name, data)
        except OSError as error:
            raise StorageError(f"{self.uri(name)}: cannot be written: {' '.join(str(error).split())}") from None

    def names(self, prefix: str) -> list[str]:
        """The names of all objects below `prefix`, sorted."""
        try:
            return sorted(entry["path"] for batch in self._open().list(prefix) for entry in batch)
        except OSError as error:
            raise StorageError(f"{self.uri(prefix)}: cannot be listed: {error}") from None

    def _open(self) -> LocalStore:
        if self._client is None or self._owner_pid != os.getpid():
            from obstore.store import LocalStore

            self._client, self._owner_pid = LocalStore(self.root, mkdir=True), os.getpid()
        return self._client


def open_store(uri: str | Path) -> Store:
    """Open a folder given as a path or a `file://` address. Raises: ConfigError for any other scheme."""
    text = str(uri)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file":
        return Store(Path(unquote(urlsplit(text).path)))
    if scheme:
        raise ConfigError(f"{text}: {scheme}:// is not supported in this version; give a local folder")
    return Store(Path(text).absolute())
