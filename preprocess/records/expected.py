"""What the source files should be, from a pool or a list that was made while they were good.

Decoding cannot see a flipped byte that leaves the code words whole, nor damage of the sound; size
and sha256 can."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from preprocess.sources.records import ExpectedSource
from shards.errors import ConfigError

_CSV_HEADER = ["key", "size", "sha256"]
_PARQUET_COLUMNS = ["key", "source_bytes", "source_sha256"]
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SourceCheck:
    """What the comparison showed: videos with another size or sha256, and videos that nothing is
    stated of."""

    num_compared: int
    num_different: int
    num_not_named: int


def read_expected(path: Path) -> dict[str, ExpectedSource]:
    """Read key -> size and sha256 from a Parquet file with the columns of `samples.parquet`, or a
    CSV.

    The CSV has the columns key, size, sha256, with or without that header; an empty field is not
    compared.
    Raises: ConfigError naming the file, the line and what was expected."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror or error}; give the file with --expect-sources"
        ) from None
    rows = _read_parquet(data, path) if data.startswith(b"PAR1") else _read_csv(data, path)
    expected: dict[str, ExpectedSource] = {}
    for where, key, size, digest in rows:
        if expected.setdefault(key, ExpectedSource(size, digest)) != ExpectedSource(size, digest):
            raise ConfigError(
                f"{path}: {where}: {key} was stated before with another size or sha256; remove one of them"
            )
    return expected


def differs(row: Mapping[str, Any], expected: ExpectedSource | None) -> str | None:
    """Say how the file of a row of `samples.parquet` is not the expected one; None if it is, or
    nothing is expected."""
    if expected is None:
        return None
    if expected.num_bytes is not None and row["source_bytes"] != expected.num_bytes:
        return f"the file has {row['source_bytes']} bytes, --expect-sources states {expected.num_bytes}"
    if expected.sha256 is not None and row["source_sha256"] not in (None, expected.sha256):
        return "the file's sha256 is not the one that --expect-sources states"
    return None


def mark(row: Mapping[str, Any], expected: ExpectedSource | None) -> dict[str, Any]:
    """The row with what `differs` says as a reason: `ok` becomes `damaged`, other verdicts stay and
    get it added."""
    difference = differs(row, expected)
    if difference is None:
        return dict(row)
    verdict = "damaged" if row["verdict"] == "ok" else row["verdict"]
    reason = "; ".join(filter(None, (row["reason"], difference)))
    return {**row, "verdict": verdict, "reason": reason}


def is_settled(row: Mapping[str, Any], expected: ExpectedSource | None) -> bool:
    """Whether a stored row needs no mark any more: its file is the expected one, or its verdict
    says that it is not."""
    return row["verdict"] != "ok" or differs(row, expected) is None


def count_different(samples: pa.Table, expected: Mapping[str, ExpectedSource]) -> SourceCheck:
    """Count over `samples.parquet`, without the videos that are missing."""
    rows = samples.select(["key", "source_bytes", "source_sha256"]).to_pylist()
    rows = [row for row in rows if row["source_bytes"] is not None]
    named = [row for row in rows if row["key"] in expected]
    num_different = sum(differs(row, expected[row["key"]]) is not None for row in named)
    return SourceCheck(len(named), num_different, len(rows) - len(named))


def _read_parquet(data: bytes, path: Path) -> Iterable[tuple[str, str, int | None, str | None]]:
    from shards.format.parquet import (
        read_parquet,
    )  # here: decode workers import this file and read no Parquet

    table = read_parquet(data, where=str(path), columns=_PARQUET_COLUMNS)
    if sorted(table.column_names) != sorted(_PARQUET_COLUMNS):
        raise ConfigError(
            f"{path}: has not all the columns {', '.join(_PARQUET_COLUMNS)}; a pool's samples.parquet has"
        )
    columns = (table[name].to_pylist() for name in _PARQUET_COLUMNS)
    for number, (key, size, digest) in enumerate(zip(*columns, strict=True), 1):
        if size is not None or digest is not None:  # neither: a video that was missing there
            yield f"row {number}", key, size, digest


def _read_csv(data: bytes, path: Path) -> Iterable[tuple[str, str, int | None, str | None]]:
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
        yield f"line {number}", key, int(size) if size else None, digest or None
