"""Compare source files with the sizes and hashes of `--expect-sources`.

Decoding does not notice a flipped byte that leaves the code words valid, nor damage of the audio
track; size and sha256 do."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from preprocess.sources.records import ExpectedSource
from shards.errors import ConfigError
from shards.files import os_error_text
from shards.format.schema import SampleRow

_CSV_HEADER = ["key", "size", "sha256"]
_PARQUET_COLUMNS = ["key", "source_bytes", "source_sha256"]
_SHA256 = re.compile(r"[0-9a-f]{64}")

# Position in the file ("line 3"), key, expected file.
_Entries = Iterator[tuple[str, str, ExpectedSource]]


@dataclass(frozen=True)
class SourceCheck:
    """The result of comparing a pool with the expected sources, in videos."""

    num_compared: int
    num_different: int
    """Compared videos with another size or sha256."""
    num_not_named: int
    """Videos that `--expect-sources` does not name."""


def read_expected(path: Path) -> dict[str, ExpectedSource]:
    """Read key -> size and sha256 from a Parquet file or a CSV file.

    The Parquet file has the columns of `samples.parquet`. The CSV file has the columns key, size,
    sha256, with or without that header; an empty field is not compared.

    Raises:
        ConfigError: the file is unusable; the message names the line and the expected form."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {os_error_text(error)}; give the file with --expect-sources"
        ) from None
    entries = _read_parquet(data, path) if data.startswith(b"PAR1") else _read_csv(data, path)
    expected: dict[str, ExpectedSource] = {}
    for where, key, source in entries:
        if expected.setdefault(key, source) != source:
            raise ConfigError(
                f"{path}: {where}: {key} was stated before with another size or sha256; remove one "
                "of them"
            )
    return expected


def differs(row: SampleRow, expected: ExpectedSource | None) -> str | None:
    """Return how the file of a row differs from the expected file, in words.

    None if it does not differ, or if nothing is expected."""
    if expected is None:
        return None
    if expected.num_bytes is not None and row["source_bytes"] != expected.num_bytes:
        return (
            f"the file has {row['source_bytes']} bytes, --expect-sources states "
            f"{expected.num_bytes}"
        )
    if expected.sha256 is not None and row["source_sha256"] not in (None, expected.sha256):
        return "the file's sha256 is not the one that --expect-sources states"
    return None


def mark(row: SampleRow, expected: ExpectedSource | None) -> SampleRow:
    """Return the row with a difference from the expected file as its reason.

    The verdict `ok` becomes `damaged`; other verdicts keep their reason and get the new one."""
    difference = differs(row, expected)
    if difference is None:
        return row
    verdict = "damaged" if row["verdict"] == "ok" else row["verdict"]
    reason = "; ".join(filter(None, (row["reason"], difference)))
    return {**row, "verdict": verdict, "reason": reason}


def is_settled(row: SampleRow, expected: ExpectedSource | None) -> bool:
    """Return whether a stored row already reflects the expected file.

    It does if its file is the expected one, or if its verdict is not `ok`."""
    return row["verdict"] != "ok" or differs(row, expected) is None


def count_different(samples: pa.Table, expected: Mapping[str, ExpectedSource]) -> SourceCheck:
    """Compare the videos of `samples.parquet` that have a file."""
    num_compared = num_different = num_not_named = 0
    for row in samples.select(_PARQUET_COLUMNS).to_pylist():
        if row["source_bytes"] is None:  # a missing video
            continue
        if row["key"] not in expected:
            num_not_named += 1
            continue
        num_compared += 1
        num_different += differs(row, expected[row["key"]]) is not None
    return SourceCheck(num_compared, num_different, num_not_named)


def _read_parquet(data: bytes, path: Path) -> _Entries:
    # Imported here, because decode workers import this file and read no Parquet.
    from shards.format.parquet import read_parquet

    table = read_parquet(data, where=str(path), columns=_PARQUET_COLUMNS)
    if sorted(table.column_names) != sorted(_PARQUET_COLUMNS):
        raise ConfigError(
            f"{path}: has not all the columns {', '.join(_PARQUET_COLUMNS)}; a pool's "
            "samples.parquet has"
        )
    columns = (table[name].to_pylist() for name in _PARQUET_COLUMNS)
    for number, (key, size, digest) in enumerate(zip(*columns, strict=True), 1):
        if size is not None or digest is not None:  # neither: the video was missing there
            yield f"row {number}", key, ExpectedSource(size, digest)


def _read_csv(data: bytes, path: Path) -> _Entries:
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: is neither Parquet nor CSV in UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line == _CSV_HEADER):
            continue
        key, size, digest = line if len(line) == 3 else ("", "", "")
        digest = digest.lower()
        if not key or (size and not size.isdecimal()) or (digest and not _SHA256.fullmatch(digest)):
            raise ConfigError(
                f"{path}: line {number}: {','.join(line)!r} is not of the form key,size,sha256"
            )
        yield f"line {number}", key, ExpectedSource(int(size) if size else None, digest or None)
