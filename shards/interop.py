"""Pools for other libraries: columns for Hugging Face datasets, addresses for stock webdataset."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shards.errors import ConfigError
from shards.format.schema import SAMPLE_FACTS, SAMPLES_SCHEMA
from shards.reader import Pool
from shards.storage.base import Store
from shards.storage.open import open_store

if TYPE_CHECKING:
    from datasets import Features

# webdataset itself reads https://, signed addresses included.
SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
_BUFFER_BYTES = 1 << 20  # tarfile reads 10 kB at a time


def hf_features(pool: Pool) -> Features:
    """Return the columns of a pool's tars for `load_dataset("webdataset", features=...)`.

    - `000.jpg`, `001.jpg`, ...: `frames_per_clip` images, null after a sample's last frame
    - `json`: the facts of the video
    - `__key__`, `__url__`

    Without them, `datasets` takes the columns of the first five samples: it refuses the pool if
    their numbers of frames differ, and drops later frames that have no column. With them it still
    leaves out a sample whose name begins with `__`, which is a hidden file to that library: compare
    its number of samples with the card's.

    Raises:
        ConfigError: if `datasets` is not installed.
    """
    try:
        from datasets import Features, Image, Value
    except ImportError:
        raise ConfigError(
            "Hugging Face datasets is not installed; run `pip install datasets`"
        ) from None

    facts = pa.schema([SAMPLES_SCHEMA.field(name) for name in SAMPLE_FACTS])
    positions = range(pool.card.encoding.frames_per_clip)
    return Features(
        {
            **{f"{position:03d}.jpg": Image() for position in positions},
            "json": dict(Features.from_arrow_schema(facts)),
            "__key__": Value("string"),
            "__url__": Value("string"),
        }
    )


def register_openers(worker_id: int = 0) -> None:
    """Let stock webdataset open the addresses of SCHEMES, in this process and its forks.

    Spawned workers of a DataLoader inherit nothing: pass this function as their `worker_init_fn`.
    Forked workers must be started before this process opens a pool or a shard, since the threads of
    the object store do not survive a fork; otherwise also pass `multiprocessing_context="spawn"`.

    Args:
        worker_id: the number of the worker, which DataLoader passes; not used.
    """
    from webdataset.gopen import gopen_schemes

    gopen_schemes.update(dict.fromkeys(SCHEMES, _open_object))


def _open_object(url: str, mode: str = "rb", bufsize: int = 0, **options: Any) -> io.BufferedReader:
    """Open an object for reading; webdataset chooses the arguments.

    Raises:
        ConfigError: for a mode that writes.
        StorageError: if the object cannot be opened.
    """
    # Options such as ?endpoint= belong to the pool's address, not to the name of the object.
    path, mark, query = url.partition("?")
    folder, _, name = path.rpartition("/")
    store = open_store(f"{folder}{mark}{query}")
    if mode != "rb":
        raise ConfigError(
            f"{store.uri(name)}: can only be read by webdataset, not opened with mode {mode}; "
            "use `bmpt build --out`"
        )
    return io.BufferedReader(_ObjectReader(store, name), _BUFFER_BYTES)


class _ObjectReader(io.RawIOBase):
    """Read one object from beginning to end: a request for its size, and one for its bytes."""

    def __init__(self, store: Store, name: str) -> None:
        num_full, rest = divmod(store.size(name), _BUFFER_BYTES)
        self._chunks: Iterator[memoryview] = store.read_chunks(
            name, [_BUFFER_BYTES] * num_full + [rest]
        )
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the current chunk goes; return 0 at the end.

        Raises:
            StorageError: if the object cannot be read.
        """
        if not self._chunk:
            self._chunk = next(self._chunks, self._chunk)
        size = min(len(buffer), len(self._chunk))
        buffer[:size] = self._chunk[:size]
        self._chunk = self._chunk[size:]
        return size
