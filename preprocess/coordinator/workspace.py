"""The place where a build writes: open shards in a local folder, finished shards in the pool.

For a local pool both are the folder of the pool. A pool in object storage has a scratch folder on
this machine: a finished shard is uploaded while the next one is written, followed by a receipt
(its rows and its hash), and is then removed from scratch. A later run, on any machine, resumes from
the receipts. The content of the scratch folder only saves decoding and may be lost.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from preprocess.coordinator.locks import lock_address, lock_folder, remove_unused
from preprocess.records.state import BUILD_NOTE, PARTS, REPAIR, SHARDS, tar_name
from preprocess.records.tables import (
    ShardRows,
    join_tables,
    read_samples,
    rows_table,
    split_by_shard,
)
from preprocess.settings import BuildSettings
from shards.format.parquet import to_parquet
from shards.format.schema import POOL_CARD, SampleRow, ShardEntry
from shards.format.writer import ShardWriter
from shards.storage.base import Store
from shards.storage.local import LocalStore
from shards.storage.open import open_store

# Finished shards that may wait for their upload, so that the size of scratch is bounded.
_MAX_WAITING_UPLOADS = 2


@dataclass(frozen=True)
class BegunShard:
    """A shard that an earlier run has begun, in a build that has not ended."""

    rows: list[SampleRow]
    """The rows of its first videos."""

    is_ended: bool
    """Whether the tar is complete, so that nothing can be appended."""

    is_in_pool: bool
    """Whether the tar is in its final place in the pool."""

    entry: ShardEntry | None = None
    """Its entry in `pool.json`, if its hash is known."""


class Workspace:
    """The folder of a local pool; a context manager while shards are written."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Describe a workspace without touching it.

        Args:
            store: the pool.
            folder: local folder that is locked; its `shards/` has open shards and journals.
        """
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
        """Hold the pool for one build, or one part of it for one build of that part.

        Raises:
            ConfigError: if another build holds it.
            StorageError: if the folder cannot be written.
        """
        with lock_folder(self.folder, settings):
            yield

    def writer(self, name: str) -> ShardWriter:
        """Open or continue a shard.

        Raises:
            StorageError: if its files cannot be written.
        """
        return ShardWriter(self.folder / SHARDS, name)

    def is_begun(self, name: str) -> bool:
        """Return whether a build that has not ended wrote this shard, or began to."""
        return self._journal(name).exists()

    def num_begun(self, name: str) -> int:
        """Return how many videos of a shard are written, without changing its files."""
        journal = self._journal(name)
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    def begun(self, name: str) -> BegunShard | None:
        """Read a begun shard and cut off a torn end of its files; None if it is not begun."""
        if not self._journal(name).exists():
            return None

        # Opening the writer truncates the tar and the journal to their last complete video.
        writer = self.writer(name)
        writer.close()
        return BegunShard(writer.rows, is_ended=writer.finished, is_in_pool=writer.finished)

    def discard(self, name: str) -> None:
        """Remove a shard's tar and journal, so that it is built again from its first video."""
        # The journal last: a tar without a journal could not be continued or checked.
        folder = self.folder / SHARDS
        (folder / f"{name}.tar").unlink(missing_ok=True)
        (folder / f".{name}.tar.part").unlink(missing_ok=True)
        self._journal(name).unlink(missing_ok=True)

    def keep(self, shard: ShardRows) -> None:
        """Move a shard that its writer has finished into the pool; here it is there already."""

    def clear(self, dataset: str, names: set[str]) -> None:
        """Remove the files that only an unfinished build needs, and tars that are not of the pool.

        Args:
            dataset: only tars that are named after it are removed.
            names: shards of the pool.
        """
        removable = re.compile(
            rf"\.?({re.escape(dataset)}-\d{{6,}})\.(tar|tar\.part|jsonl)|\.part-\d+-of-\d+\.lock"
        )
        for path in (self.folder / SHARDS).iterdir():
            match = removable.fullmatch(path.name)
            if match is None:
                continue
            is_shard_of_pool = path.name.endswith(".tar") and match[1] in names
            if not is_shard_of_pool:
                path.unlink(missing_ok=True)

        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        shutil.rmtree(self.folder / REPAIR, ignore_errors=True)
        (self.folder / BUILD_NOTE).unlink(missing_ok=True)

    def _journal(self, name: str) -> Path:
        return self.folder / SHARDS / f".{name}.jsonl"


class ScratchWorkspace(Workspace):
    """The scratch folder of a pool in object storage."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Describe a workspace without touching it; the arguments are those of `Workspace`."""
        super().__init__(store, folder)
        self._uploader: ThreadPoolExecutor | None = None
        self._uploads: list[Future[None]] = []

    @functools.cached_property
    def _objects(self) -> dict[str, int]:
        """Size of each object below `shards/` when this run began, listed once under the lock."""
        return self.store.sizes(f"{SHARDS}/")

    @contextlib.contextmanager
    def lock(self, settings: BuildSettings) -> Iterator[None]:
        """Hold the address on this machine, and the scratch folder, which is removed if empty."""
        is_part = settings.part is not None
        try:
            with (
                lock_address(self.store.uri(""), shared=is_part),
                lock_folder(self.folder, settings),
            ):
                yield
        finally:
            remove_unused(self.folder)
            if settings.scratch is None:
                # The default folder `scratch` has the scratch folders of other pools too.
                with contextlib.suppress(OSError):
                    self.folder.parent.rmdir()

    def __enter__(self) -> Workspace:
        # One thread: a second upload would only share the bandwidth of the first.
        self._uploader = ThreadPoolExecutor(max_workers=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all uploads, or after an error for the running one only.

        Raises:
            StorageError: of the first upload that failed.
        """
        assert self._uploader is not None
        self._uploader.shutdown(wait=True, cancel_futures=error is not None)

        uploads, self._uploads = self._uploads, []
        if error is None:
            for upload in uploads:
                upload.result()

    def is_begun(self, name: str) -> bool:
        """Return whether there is a receipt, or an open shard in scratch."""
        return _receipt_name(name) in self._objects or super().is_begun(name)

    def num_begun(self, name: str) -> int:
        """Return how many videos of a shard its receipt has, or else its journal in scratch."""
        receipt = self._read_receipt(name)
        return super().num_begun(name) if receipt is None else receipt.table.num_rows

    def begun(self, name: str) -> BegunShard | None:
        """Read a begun shard from its receipt, or else from scratch."""
        receipt = self._read_receipt(name)
        if receipt is not None:
            return BegunShard(
                receipt.table.to_pylist(), is_ended=True, is_in_pool=True, entry=receipt.entry
            )

        begun = super().begun(name)
        if begun is None:
            return None
        return BegunShard(begun.rows, is_ended=begun.is_ended, is_in_pool=False)

    def discard(self, name: str) -> None:
        """Remove a shard from the pool and from scratch, its receipt first."""
        # A receipt without its tar is ignored, but a tar under a wrong receipt would be trusted.
        for object_name in (_receipt_name(name), tar_name(name)):
            if self._objects.pop(object_name, None) is not None:
                self.store.delete(object_name)
        super().discard(name)

    def keep(self, shard: ShardRows) -> None:
        """Upload a shard while the next one is written.

        Raises:
            StorageError: of an earlier upload.
        """
        assert self._uploader is not None
        self._uploads.append(self._uploader.submit(self._upload, shard))

        while len(self._uploads) > _MAX_WAITING_UPLOADS:
            self._uploads.pop(0).result()
        # So that a failure is raised now and not at the end of the build.
        while self._uploads and self._uploads[0].done():
            self._uploads.pop(0).result()

    def clear(self, dataset: str, names: set[str]) -> None:
        """Remove receipts, parts and stale tars from the pool, and everything from scratch."""
        removable = re.compile(rf"{SHARDS}/\.?({re.escape(dataset)}-\d{{6,}})\.(tar|parquet)")
        for object_name in self.store.names(f"{SHARDS}/"):
            match = removable.fullmatch(object_name)
            if match is None:
                continue
            is_shard_of_pool = match[2] == "tar" and match[1] in names
            if not is_shard_of_pool:
                self.store.delete(object_name)

        for object_name in (*self.store.names(f"{PARTS}/"), BUILD_NOTE):
            self.store.delete(object_name)
        # No shard of the pool is in scratch.
        super().clear(dataset, set())

    def _read_receipt(self, name: str) -> ShardRows | None:
        """Read the receipt of a shard; None unless its tar is in the pool with the stated size."""
        receipt = _receipt_name(name)
        if receipt not in self._objects:
            return None

        table = read_samples(self.store.read(receipt), where=self.store.uri(receipt))
        (shard,) = split_by_shard(table)
        if shard.entry is None or self._objects.get(tar_name(name)) != shard.entry.size:
            return None
        return shard

    def _upload(self, shard: ShardRows) -> None:
        """Move a tar into the pool and then write its receipt, so that a receipt implies a tar."""
        name = shard.plan.name
        self.store.move_in(tar_name(name), self.folder / tar_name(name))

        table = join_tables([shard], rows_table([]), with_entries=True)
        self.store.put(_receipt_name(name), to_parquet(table))
        super().discard(name)


def open_workspace(settings: BuildSettings) -> Workspace:
    """Open the pool of `--out`, and for object storage the scratch folder of this pool.

    The name of the scratch folder depends on the address and the encoding, so that a build never
    continues the open shards of another one.

    Raises:
        ConfigError: if the address is wrong.
        StorageError: if the bucket cannot be read.
    """
    store = open_store(settings.out)
    if isinstance(store, LocalStore):
        return Workspace(store, store.root)

    # A wrong address or key is reported here, before the videos are searched.
    store.exists(POOL_CARD)

    identity = f"{store.uri('')}\n{settings.encoding.model_dump_json()}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    base = settings.scratch or Path("scratch")
    return ScratchWorkspace(store, base.absolute() / f"{settings.dataset}-{digest}")


def _receipt_name(name: str) -> str:
    return f"{SHARDS}/.{name}.parquet"
