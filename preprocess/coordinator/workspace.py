"""Where a build writes: open shards and their journals in a local folder, finished shards in the
pool.

For a local pool both are the pool's own folder. A pool in object storage has a scratch folder
beside it: a finished shard goes up while the next one is written, followed by a receipt (its rows
    and its hash), and leaves scratch. A later
run, on any machine, goes on from the receipts; what scratch holds saves decoding and may be
lost."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from preprocess.records.state import BUILD_NOTE, PARTS, REPAIR, SHARDS, tar_name
from preprocess.records.tables import (
    ShardRows,
    join_tables,
    read_samples,
    rows_table,
    split_by_shard,
    to_parquet,
)
from preprocess.settings import BuildSettings
from shards.errors import ConfigError, StorageError
from shards.format.schema import POOL_CARD, ShardEntry
from shards.format.writer import ShardWriter
from shards.storage.base import Store
from shards.storage.local import LocalStore
from shards.storage.open import open_store

_UPLOADS_AHEAD = 2  # finished shards that wait for theirs, so that scratch stays bounded


@dataclass(frozen=True)
class BegunShard:
    """What earlier runs left of a shard that no closed pool has.

    rows: of its first videos; is_ended: nothing can be added; is_in_pool: the tar lies where the
        pool has it
    entry: its line in `pool.json` where that is known, else None"""

    rows: list[dict[str, Any]]
    is_ended: bool
    is_in_pool: bool
    entry: ShardEntry | None = None


class Workspace:
    """The folder of a local pool; a context manager while shards are written.

    folder: local; open shards and journals are in its `shards/`, the locks are on it"""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    @contextlib.contextmanager
    def lock(self, settings: BuildSettings) -> Iterator[None]:
        """Hold the folder for one run, or one part of it for one run of that part.

        The kernel releases the locks when the process ends, however it ends. Raises: ConfigError,
        StorageError."""
        held: list[int] = []
        try:
            try:
                (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
                held.append(os.open(self.folder, os.O_RDONLY))
                if settings.part is not None:
                    lock = (
                        self.folder
                        / SHARDS
                        / f".part-{settings.part_index}-of-{settings.num_parts}.lock"
                    )
                    held.append(os.open(lock, os.O_RDWR | os.O_CREAT, 0o644))
            except OSError as error:
                raise StorageError(
                    f"{self.folder}: cannot be written: {error.strerror or error}"
                ) from None
            modes = [fcntl.LOCK_EX] if settings.part is None else [fcntl.LOCK_SH, fcntl.LOCK_EX]
            if not all(
                _try_lock(descriptor, mode) for descriptor, mode in zip(held, modes, strict=True)
            ):
                raise ConfigError(
                    f"{self.folder}: another build is writing there; wait for it, or give another folder with --out"
                )
            for other in (self.folder / SHARDS).glob(".part-*-of-*.lock"):
                if settings.part is not None and not other.name.endswith(
                    f"-of-{settings.num_parts}.lock"
                ):
                    _check_free(other)
            yield
        finally:
            for descriptor in held:
                os.close(descriptor)

    def writer(self, name: str) -> ShardWriter:
        """Open or continue a shard. Raises: StorageError."""
        return ShardWriter(self.folder / SHARDS, name)

    def is_begun(self, name: str) -> bool:
        """Whether a build that has not ended wrote this shard, or began to."""
        return (self.folder / SHARDS / f".{name}.jsonl").exists()

    def num_begun(self, name: str) -> int:
        """How many videos of a shard are written; looks and changes nothing."""
        journal = self.folder / SHARDS / f".{name}.jsonl"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    def begun(self, name: str) -> BegunShard | None:
        """What is left of a shard; a torn end of its files is cut off."""
        if not Workspace.is_begun(self, name):
            return None
        writer = self.writer(name)
        writer.close()
        return BegunShard(writer.rows, is_ended=writer.finished, is_in_pool=writer.finished)

    def discard(self, name: str) -> None:
        """Remove a shard's tar and journal, so that it is built from its first video on."""
        folder = self.folder / SHARDS
        for path in (
            folder / f"{name}.tar",
            folder / f".{name}.tar.part",
            folder / f".{name}.jsonl",
        ):
            path.unlink(missing_ok=True)

    def keep(self, shard: ShardRows) -> None:
        """Take a shard that its writer has finished."""

    def clear(self, dataset: str, names: set[str]) -> None:
        """Remove what only an unfinished build needs, and tars of this dataset that are not among
        `names`."""
        ours = re.compile(
            rf"\.?({re.escape(dataset)}-\d{{6,}})\.(tar|tar\.part|jsonl)|\.part-\d+-of-\d+\.lock"
        )
        for path in (self.folder / SHARDS).iterdir():
            match = ours.fullmatch(path.name)
            if match and not (path.name.endswith(".tar") and match[1] in names):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        shutil.rmtree(self.folder / REPAIR, ignore_errors=True)
        (self.folder / BUILD_NOTE).unlink(missing_ok=True)


class ScratchWorkspace(Workspace):
    """The scratch folder of a pool in object storage."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store, folder)
        self._uploader: ThreadPoolExecutor | None = None
        self._uploads: list[Future[None]] = []

    @functools.cached_property
    def _held(self) -> dict[str, int]:
        """What the pool had when this run began: asked for once, under the lock."""
        return self.store.sizes(f"{SHARDS}/")

    @contextlib.contextmanager
    def lock(self, settings: BuildSettings) -> Iterator[None]:
        """As for a folder; nothing that is empty stays behind."""
        address = hashlib.sha256(self.store.uri("").encode()).hexdigest()[:16]
        everywhere = (
            Path(tempfile.gettempdir()) / f"bmpt-{os.getuid()}-{address}.lock"
        )  # whatever --scratch is
        try:
            with _hold_file(
                everywhere, fcntl.LOCK_EX if settings.part is None else fcntl.LOCK_SH
            ) as is_free:
                if not is_free:
                    raise ConfigError(
                        f"{self.store.uri('')}: another build on this machine writes there; wait for it"
                    )
                with super().lock(settings):
                    yield
        finally:
            self._remove_empty(settings)

    def _remove_empty(self, settings: BuildSettings) -> None:
        """Leave no lock and no empty folder behind, unless another part is being built here."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                if _try_lock(descriptor, fcntl.LOCK_EX):
                    for lock in (self.folder / SHARDS).glob(".part-*.lock"):
                        lock.unlink(missing_ok=True)
                    (self.folder / SHARDS).rmdir()
                    self.folder.rmdir()
            finally:
                os.close(descriptor)
            if settings.scratch is None:
                self.folder.parent.rmdir()

    def __enter__(self) -> Workspace:
        self._uploader = ThreadPoolExecutor(max_workers=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the uploads, after an error for the running one alone. Raises: StorageError of
        the first."""
        assert self._uploader is not None
        self._uploader.shutdown(wait=True, cancel_futures=error is not None)
        uploads, self._uploads = self._uploads, []
        if error is None:
            for upload in uploads:
                upload.result()

    def is_begun(self, name: str) -> bool:
        """Whether there is a receipt, or an open shard in scratch."""
        return _receipt(name) in self._held or super().is_begun(name)

    def num_begun(self, name: str) -> int:
        """By its receipt, else what scratch has."""
        found = self._receipt_of(name)
        return super().num_begun(name) if found is None else found.table.num_rows

    def begun(self, name: str) -> BegunShard | None:
        """By its receipt, else what scratch has."""
        found = self._receipt_of(name)
        if found is not None:
            return BegunShard(
                found.table.to_pylist(), is_ended=True, is_in_pool=True, entry=found.entry
            )
        here = super().begun(name)
        return (
            None
            if here is None
            else BegunShard(here.rows, is_ended=here.is_ended, is_in_pool=False)
        )

    def _receipt_of(self, name: str) -> ShardRows | None:
        """What a receipt says, if the tar that it is for is there."""
        receipt = _receipt(name)
        if receipt not in self._held:
            return None
        (shard,) = split_by_shard(
            read_samples(self.store.read(receipt), where=self.store.uri(receipt))
        )
        if shard.entry is None or self._held.get(tar_name(name)) != shard.entry.size:
            return None
        return shard

    def discard(self, name: str) -> None:
        """Remove a shard here and there, its receipt first."""
        for held in (_receipt(name), tar_name(name)):
            if self._held.pop(held, None) is not None:
                self.store.delete(held)
        super().discard(name)

    def keep(self, shard: ShardRows) -> None:
        """Upload a shard while the next one is written. Raises: StorageError of an earlier
        upload."""
        assert self._uploader is not None
        self._uploads.append(self._uploader.submit(self._upload, shard))
        while len(self._uploads) > _UPLOADS_AHEAD or (self._uploads and self._uploads[0].done()):
            self._uploads.pop(0).result()

    def _upload(self, shard: ShardRows) -> None:
        name = shard.plan.name
        self.store.move_in(tar_name(name), self.folder / tar_name(name))
        self.store.put(
            _receipt(name), to_parquet(join_tables([shard], rows_table([]), with_entries=True))
        )
        super().discard(name)

    def clear(self, dataset: str, names: set[str]) -> None:
        """Remove receipts, parts and stale tars from the bucket, and the whole scratch folder."""
        ours = re.compile(rf"{SHARDS}/\.?({re.escape(dataset)}-\d{{6,}})\.(tar|parquet)")
        for held in self.store.names(f"{SHARDS}/"):
            match = ours.fullmatch(held)
            if match and not (match[2] == "tar" and match[1] in names):
                self.store.delete(held)
        for held in (*self.store.names(f"{PARTS}/"), BUILD_NOTE):
            self.store.delete(held)
        super().clear(dataset, set())


def open_workspace(settings: BuildSettings) -> Workspace:
    """Open the pool of `--out`, and for object storage the scratch folder of exactly this pool and
    encoding.

    Raises: ConfigError, StorageError, at once if the bucket cannot be read."""
    store = open_store(settings.out)
    if isinstance(store, LocalStore):
        return Workspace(store, store.root)
    store.exists(POOL_CARD)  # a wrong address or key shows here, before the videos are looked for
    facts = f"{store.uri('')}\n{settings.encoding.model_dump_json()}"
    mark = hashlib.sha256(facts.encode()).hexdigest()[:12]
    base = settings.scratch or Path("scratch")
    return ScratchWorkspace(store, base.absolute() / f"{settings.dataset}-{mark}")


def _try_lock(descriptor: int, mode: int) -> bool:
    """Take a lock without waiting; False if another process has it. Raises: OSError where files
    cannot be locked."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _hold_file(path: Path, mode: int) -> Iterator[bool]:
    """Lock a file that is made for it and removed by the last who held it; gives False if another
    process has it."""
    while True:
        with path.open("ab") as file:
            if not _try_lock(file.fileno(), mode):
                yield False
                return
            if not _is_still(path, file.fileno()):  # its last holder has just removed it
                continue
            try:
                yield True
            finally:
                if _try_lock(file.fileno(), fcntl.LOCK_EX):
                    path.unlink(missing_ok=True)
            return


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to an open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    return False


def _check_free(lock: Path) -> None:
    """Raises: ConfigError if a part of another division is being built."""
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
        if not _try_lock(file.fileno(), fcntl.LOCK_EX):
            name = lock.name.removeprefix(".part-").removesuffix(".lock").replace("-of-", "/")
            raise ConfigError(
                f"{lock.parent.parent}: part {name} is being built there; all parts need the same N"
            )


def _receipt(name: str) -> str:
    return f"{SHARDS}/.{name}.parquet"
