"""Pools read by other libraries: columns for Hugging Face datasets, addresses for stock
webdataset."""

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

SCHEMES = (
    "s3",
    "gs",
    "az",
    "abfs",
    "abfss",
)  # webdataset reads https:// itself, signed addresses too
_PIECE_BYTES = 1 << 20  # tarfile asks for 10 kB at a time


def hf_features(pool: Pool) -> Features:
    """Name the columns of a pool's tars for `datasets.load_dataset("webdataset", features=...)`.

    `000.jpg`, `001.jpg`, ...: as many images as `frames_per_clip`, null behind a sample's last
        frame; `json`: the
    facts of the video; `__key__`, `__url__`. Without it that library takes the columns of the first
    five samples: it refuses them if their numbers of frames differ, and drops every later frame for
        which they have no column.
    With it a sample is still left out whose name begins with `__`, a hidden file to that library:
    compare its count of samples with the card's. Raises: ConfigError if `datasets` is not
    installed."""
    try:
        from datasets import Features, Image, Value
    except ImportError:
        raise ConfigError(
            "Hugging Face datasets is not installed; run `pip install datasets`"
        ) from None
    facts = pa.schema([SAMPLES_SCHEMA.field(name) for name in SAMPLE_FACTS])
    return Features(
        {
            **{
                f"{position:03d}.jpg": Image()
                for position in range(pool.card.encoding.frames_per_clip)
            },
            "json": dict(Features.from_arrow_schema(facts)),
            "__key__": Value("string"),
            "__url__": Value("string"),
        }
    )


def register_openers(worker_id: int = 0) -> None:
    """Let stock webdataset open the addresses of SCHEMES by `shards.storage.open`, in this process
    and its forks.

    Workers of a DataLoader that are spawned inherit nothing: give it this function as
    `worker_init_fn`, which is called with the worker's number. Workers that are forked must not
    follow after this process has opened a pool or a shard, for the object store's threads do not
    survive a fork: then also `multiprocessing_context="spawn"`."""
    from webdataset.gopen import gopen_schemes

    gopen_schemes.update(dict.fromkeys(SCHEMES, _open_object))


def _open_object(url: str, mode: str = "rb", bufsize: int = 0, **options: Any) -> io.BufferedReader:
    """What webdataset calls, with arguments of its choice. Raises: ConfigError if it is to write,
    StorageError."""
    place, mark, query = url.partition("?")
    folder, _, name = place.rpartition("/")
    store = open_store(f"{folder}{mark}{query}")
    if mode != "rb":
        raise ConfigError(
            f"{store.uri(name)}: can only be read by webdataset, not opened with mode {mode}; use `bmpt build --out`"
        )
    return io.BufferedReader(_ObjectReader(store, name), _PIECE_BYTES)


class _ObjectReader(io.RawIOBase):
    """One object from its first byte to its last: a request for its size, one for its bytes."""

    def __init__(self, store: Store, name: str) -> None:
        whole, rest = divmod(store.size(name), _PIECE_BYTES)
        self._pieces: Iterator[memoryview] = store.read_chunks(
            name, [_PIECE_BYTES] * whole + [rest]
        )
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the current piece goes; 0 is the end. Raises: StorageError."""
        if not self._piece:
            self._piece = next(self._pieces, self._piece)
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size
