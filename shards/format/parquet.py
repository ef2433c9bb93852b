"""Arrow tables to Parquet bytes and back, the same way everywhere."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import FormatError


def to_parquet(table: pa.Table, *, page_checksums: bool = True) -> bytes:
    """Return the table as zstd-compressed Parquet; equal tables give equal bytes.

    Args:
        table: with its metadata.
        page_checksums: whether `read_parquet` can detect damaged pages.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=page_checksums)
    return buffer.getvalue()


def read_parquet(data: bytes, *, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table and verify the checksums of its pages.

    Arrow's threads stay off: a process that used them sometimes aborts at its end (`terminate
    called without an active exception`, 4 of 60 processes that read one table twenty times; 0 of
    180 without threads).

    Args:
        data: a Parquet file.
        where: its name in error messages.
        columns: the columns to read; all of them without it.

    Raises:
        FormatError: naming `where`.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        # Arrow raises OSError for bytes that cannot be decompressed.
        reason = str(error).splitlines()[0]
        raise FormatError(f"{where}: is not Parquet: {reason}; make it again") from None
