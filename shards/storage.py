"""One small face over obstore: where a pool lies, and whole or ranged reads and atomic writes in it."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from shards.errors import ConfigError, StorageError
from shards.hashing import hash_file

if TYPE_CHECKING:
    from obstore.store import ClientConfig

_FAILURES = (OSError, BaseError)  # obstore raises FileNotFoundError for a missing object, its own errors otherwise
_READ_BYTES = 8 << 20
_LISTED_AT_ONCE = 1000
_UPLOADS = 3  # of one file, when it comes back with other bytes
_ACCESS_CURE = "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and what they may do with the bucket"


class Store(ABC):
    """Objects named by `/`-separated paths relative to one address.

    Made by `open_store`. The obstore client is made at first use, since its runtime must not be carried
    through a fork into a loader worker; pickling carries the address alone, never credentials."""

    def __init__(self) -> None:
        self._client: Any = None
        self._owner_pid = 0

    @abstractmethod
    def uri(self, name: str) -> str:
        """The full address of an object, for messages."""

    @abstractmethod
    def _connect(self) -> Any:
        """Make the obstore client."""

    @abstractmethod
    def read_pieces(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """Read an object from its first byte on, in pieces of the given sizes; each is valid until the next one.

        Raises: StorageError, also for a short object."""

    @abstractmethod
    def adopt(self, name: str, path: Path) -> None:
        """Move a local file into the store, atomically and checked. Raises: StorageError, the file stays then."""

    def exists(self, name: str) -> bool:
        """Whether an object of that name is there."""
        try:
            self._open().head(name)
        except FileNotFoundError:
            return False
        except _FAILURES as error:
            raise self._failed(name, "read", error) from None
        return True

    def size(self, name: str) -> int:
        """The size of an object in bytes. Raises: StorageError naming it."""
        try:
            return int(self._open().head(name)["size"])
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None
        except _FAILURES as error:
            raise self._failed(name, "read", error) from None

    def read(self, name: str) -> bytes:
        """Read a whole object. Raises: StorageError naming it."""
        try:
            return bytes(self._open().get(name).bytes())
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is this the right pool?") from None
        except _FAILURES as error:
            raise self._failed(name, "read", error) from None

    def sha256(self, name: str) -> str:
        """The sha256 of an object's bytes, 64 hex digits; 2.1 GB/s a core. Raises: StorageError naming it."""
        digest = hashlib.sha256()
        whole, rest = divmod(self.size(name), _READ_BYTES)
        for piece in self.read_pieces(name, [_READ_BYTES] * whole + [rest]):
            digest.update(piece)
        return digest.hexdigest()

    @abstractmethod
    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read byte ranges of one object, in the given order. Raises: StorageError, also for a short object."""

    def put(self, name: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new ones, never a part."""
        try:
            self._open().put(name, data)
        except _FAILURES as error:
            raise self._failed(name, "written", error) from None

    def delete(self, name: str) -> None:
        """Remove an object; it may be gone already. Raises: StorageError naming it."""
        try:
            self._open().delete(name)
        except FileNotFoundError:
            return
        except _FAILURES as error:
            raise self._failed(name, "removed", error) from None

    def sizes(self, prefix: str) -> dict[str, int]:
        """The size of every object below `prefix` in bytes, by name in their order."""
        try:
            listed = self._open().list(prefix, chunk_size=_LISTED_AT_ONCE)
            return dict(sorted((entry["path"], int(entry["size"])) for batch in listed for entry in batch))
        except FileNotFoundError as error:
            if "<Code>NoSuchBucket</Code>" in str(error):
                raise self._failed(prefix.rstrip("/"), "listed", error) from None
            return {}
        except _FAILURES as error:
            raise self._failed(prefix.rstrip("/"), "listed", error) from None

    def names(self, prefix: str) -> list[str]:
        """The names of all objects below `prefix`, sorted."""
        return list(self.sizes(prefix))

    def _open(self) -> Any:
        if self._client is None or self._owner_pid != os.getpid():
            self._client, self._owner_pid = self._connect(), os.getpid()
        return self._client

    def _cut_short(self, name: str, starts: Sequence[int], sizes: Sequence[int], held: int) -> StorageError:
        end = max(start + size for start, size in zip(starts, sizes, strict=True))
        return StorageError(f"{self.uri(name)}: holds {held} bytes, expected {end} or more; the file is cut short")

    def _failed(self, name: str, what: str, error: Exception) -> StorageError:
        return StorageError(f"{self.uri(name)}: cannot be {what}: {_reason(error)}")


class LocalStore(Store):
    """A folder; it need not be there before something is put into it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __reduce__(self) -> tuple[type[LocalStore], tuple[Path]]:
        return LocalStore, (self.root,)

    def uri(self, name: str) -> str:
        """The path of an object."""
        return str(self.root / name)

    def read_pieces(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """One buffer is used again and again: 3 times as fast as `read_ranges` for a file in the page cache."""
        buffer = memoryview(bytearray(max(sizes, default=0)))
        try:
            with (self.root / name).open("rb", buffering=0) as file:
                for size in sizes:
                    filled = 0
                    while filled < size and (count := file.readinto(buffer[filled:size])):
                        filled += count
                    if filled < size:
                        raise StorageError(f"{self.uri(name)}: ends before the {sum(sizes)} bytes that it should hold")
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
            blocks = [os.pread(descriptor, size, start) for start, size in zip(starts, sizes, strict=True)]
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


class BucketStore(Store):
    """A prefix of an S3-compatible bucket.

    Endpoint, region and credentials come from the environment: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the role of the machine. Failed requests are tried again by obstore:
    10 times within 3 minutes, but not those that the server refuses."""

    def __init__(self, bucket: str, prefix: str) -> None:
        super().__init__()
        self.bucket, self.prefix = bucket, prefix

    def __reduce__(self) -> tuple[type[BucketStore], tuple[str, str]]:
        return BucketStore, (self.bucket, self.prefix)

    def uri(self, name: str) -> str:
        """`s3://bucket/prefix/name`."""
        return "s3://" + "/".join(filter(None, (self.bucket, self.prefix, name)))

    def exists(self, name: str) -> bool:
        """Whether an object of that name is there. Raises: StorageError also if there is no such bucket."""
        if super().exists(name):
            return True
        self.sizes(f"{name}/")  # a listing tells whether there is a bucket, HEAD does not
        return False

    def read_ranges(self, name: str, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """A request a range, several at once; who wants fewer joins ranges first (`shards.fetch`)."""
        try:
            parts = self._open().get_ranges(name, starts=list(starts), lengths=list(sizes), coalesce=0)
            blocks = [bytes(part) for part in parts]
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None
        except _FAILURES as error:
            if "status code: 416 " not in str(error):
                raise self._failed(name, "read", error) from None
            blocks = [b"" for _ in sizes]
        if any(len(block) < size for block, size in zip(blocks, sizes, strict=True)):
            raise self._cut_short(name, starts, sizes, self.size(name))
        return blocks

    def read_pieces(self, name: str, sizes: Sequence[int]) -> Iterator[memoryview]:
        """One request; what the pieces do not take yet is held, at most about 10 MB and the largest piece."""
        held = bytearray()
        try:
            blocks = iter(self._open().get(name).stream(min_chunk_size=_READ_BYTES))
            for size in sizes:
                while len(held) < size:
                    block = next(blocks, None)
                    if block is None:
                        raise StorageError(f"{self.uri(name)}: ends before the {sum(sizes)} bytes that it should hold")
                    held += block
                yield memoryview(bytes(held[:size]))
                del held[:size]
        except FileNotFoundError:
            raise StorageError(f"{self.uri(name)}: no such file; is the pool complete?") from None
        except _FAILURES as error:
            raise self._failed(name, "read", error) from None

    def adopt(self, name: str, path: Path) -> None:
        """Upload a file and remove it once the object, read back, has its size and its sha256."""
        try:
            size, sha256 = path.stat().st_size, hash_file(path)
            for _ in range(_UPLOADS):
                self._open().put(name, path)
                if self.size(name) == size and self.sha256(name) == sha256:
                    path.unlink()
                    return
            self.delete(name)
        except _FAILURES as error:
            raise self._failed(name, "written", error) from None
        raise StorageError(f"{self.uri(name)}: {path} came back changed {_UPLOADS} times; check the server")

    def _connect(self) -> Any:
        from obstore.store import S3Store

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options: ClientConfig = {"allow_http": endpoint.startswith("http://")}
        return S3Store(self.bucket, prefix=self.prefix or None, client_options=options)


def open_store(uri: str | Path) -> Store:
    """Open a path, a `file://` address or `s3://bucket/prefix`. Raises: ConfigError for any other scheme."""
    text = str(uri)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file":
        return LocalStore(Path(unquote(urlsplit(text).path)))
    if scheme == "s3":
        bucket, _, prefix = text.removeprefix("s3://").strip("/").partition("/")
        if not bucket:
            raise ConfigError(f"{text}: names no bucket; give s3://bucket/prefix")
        return BucketStore(bucket, prefix)
    if scheme:
        raise ConfigError(f"{text}: {scheme}:// is not supported in this version; give a local folder or s3://")
    return LocalStore(Path(text).absolute())


def _reason(error: Exception) -> str:
    """What went wrong in one line; obstore gives a page of Rust, of XML and of debug output."""
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if code is not None and code[1] == "NoSuchBucket":
        return "no such bucket; make it, or check the address and AWS_ENDPOINT_URL"
    if "/latest/api/token" in text or "/latest/meta-data" in text:  # asked of the machine as the last resort
        return f"no credentials were found; {_ACCESS_CURE}"
    refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if refused or re.search(r"status code: 40[13] ", text):
        return f"access was refused{f' ({code[1]})' if code else ''}; {_ACCESS_CURE}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return re.sub(r": <\?xml.*", "", text.partition("\n")[0])
