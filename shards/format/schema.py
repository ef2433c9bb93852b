"""What a pool is made of: `pool.json`, `samples.parquet` and the manifests, every field with unit
and meaning.

`shards/README.md` is the same for readers of the data. A change here is a change of the format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from shards.config import Settings
from shards.errors import FormatError

FORMAT_VERSION = 1
POOL_CARD = "pool.json"
SAMPLES = "samples.parquet"
VERDICTS = ("ok", "short", "damaged", "undecodable", "missing")
STORED_VERDICTS = ("ok", "short", "damaged")
FAILED_VERDICTS = ("short", "damaged", "undecodable")  # the file was read and is not ok
MANIFEST_METADATA_KEY = b"bmpt"


def _column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


SAMPLES_SCHEMA = pa.schema(
    [
        _column("key", pa.string(), "stable sample id, see shards/README.md"),
        _column("verdict", pa.string(), "ok | short | damaged | undecodable | missing"),
        _column("reason", pa.string(), "why the verdict is not ok, in words", nullable=True),
        _column(
            "class_name", pa.string(), "the data set's own class, its own spelling", nullable=True
        ),
        _column("source_path", pa.string(), "relative to --videos", nullable=True),
        _column("source_bytes", pa.int64(), "size of the source file, bytes", nullable=True),
        _column("source_sha256", pa.string(), "of the source file, 64 hex digits", nullable=True),
        _column("codec", pa.string(), "of the video stream", nullable=True),
        _column("fps", pa.float64(), "average frame rate, 1/s", nullable=True),
        _column(
            "duration_seconds",
            pa.float64(),
            "of the video stream, else of the container",
            nullable=True,
        ),
        _column("width", pa.int32(), "as stored in the file, px, before rotation", nullable=True),
        _column("height", pa.int32(), "as stored in the file, px, before rotation", nullable=True),
        _column(
            "rotation_degrees",
            pa.int32(),
            "0 | 90 | 180 | 270, counter-clockwise, applied when storing",
        ),
        _column(
            "num_frames_stated", pa.int32(), "what the container says; null in WebM", nullable=True
        ),
        _column("num_frames_decoded", pa.int32(), "frames that decoded without an error"),
        _column("num_decoder_errors", pa.int32(), "errors that the decoder reported"),
        _column("stored_width", pa.int32(), "of the JPEG frames, px", nullable=True),
        _column("stored_height", pa.int32(), "of the JPEG frames, px", nullable=True),
        _column(
            "source_index",
            pa.list_(pa.int32()),
            "decoded index of each stored frame, ascending",
            nullable=True,
        ),
        _column(
            "source_time_seconds",
            pa.list_(pa.float64()),
            "time of each stored frame, s",
            nullable=True,
        ),
        _column("shard", pa.string(), "shards/<name>.tar", nullable=True),
        _column(
            "offset", pa.int64(), "first header byte of the sample in the shard", nullable=True
        ),
        _column(
            "size", pa.int64(), "bytes up to the end of the last member's padding", nullable=True
        ),
        _column(
            "frame_offset",
            pa.list_(pa.int32()),
            "first JPEG byte, relative to `offset`",
            nullable=True,
        ),
        _column("frame_size", pa.list_(pa.int32()), "JPEG bytes", nullable=True),
        _column("frame_crc32", pa.list_(pa.uint32()), "of the JPEG bytes", nullable=True),
        _column(
            "sha256", pa.string(), "of the `size` bytes at `offset`, 64 hex digits", nullable=True
        ),
    ]
)


class SampleRow(TypedDict):
    """A row of `samples.parquet` as a Python dictionary: one key per column of SAMPLES_SCHEMA.

    None stands for null. The columns below "Placement" and the frame columns are None for a video
    without stored frames (verdict `undecodable` or `missing`)."""

    # Stable sample id (shards/README.md, Key).
    key: str
    # One of VERDICTS.
    verdict: str
    # Why the verdict is not `ok`, in words; None for `ok`.
    reason: str | None
    # The class that the data set gives the video, in its own spelling.
    class_name: str | None

    # Source file: path relative to `--videos`, bytes, 64 hex digits.
    source_path: str | None
    source_bytes: int | None
    source_sha256: str | None

    # Video stream: codec name, average frames per second, seconds.
    codec: str | None
    fps: float | None
    duration_seconds: float | None
    # Pixels, before rotation.
    width: int | None
    height: int | None
    # 0, 90, 180 or 270, counter-clockwise; applied to the stored frames.
    rotation_degrees: int
    # Number of frames by the container; None where it states none (WebM).
    num_frames_stated: int | None
    # Frames that were decoded without an error, and errors that the decoder reported.
    num_frames_decoded: int
    num_decoder_errors: int

    # Stored JPEG frames: pixels, then one entry per frame.
    stored_width: int | None
    stored_height: int | None
    # Index among the decoded frames, ascending.
    source_index: list[int] | None
    # Presentation time in seconds.
    source_time_seconds: list[float] | None

    # Placement: `shards/<name>.tar`, then bytes of the sample in that file.
    shard: str | None
    offset: int | None
    size: int | None
    # First byte of each JPEG relative to `offset`, its bytes, and its CRC-32.
    frame_offset: list[int] | None
    frame_size: list[int] | None
    frame_crc32: list[int] | None
    # Of the `size` bytes at `offset`, 64 hex digits.
    sha256: str | None


SAMPLE_FACTS = (  # of `<key>.json` in a shard
    *("key", "verdict", "reason", "class_name", "codec", "fps", "num_frames_decoded"),
    *("stored_width", "stored_height", "source_index", "source_time_seconds"),
)
_PLACEMENT_COLUMNS = (
    "shard",
    "offset",
    "size",
    "frame_offset",
    "frame_size",
    "frame_crc32",
    "sha256",
)

MANIFEST_SCHEMA = pa.schema(
    [
        _column("key", pa.string(), "stable sample id"),
        _column("label", pa.int32(), "index into the manifest's classes"),
        _column("class_name", pa.string(), "the label file's spelling"),
        _column("verdict", pa.string(), "ok | short | damaged"),
        _column("num_frames_decoded", pa.int32(), "n of the clip sampling"),
        _column(
            "source_index", pa.list_(pa.int32()), "decoded index of each stored frame, ascending"
        ),
        *(SAMPLES_SCHEMA.field(name).with_nullable(False) for name in _PLACEMENT_COLUMNS),
    ]
)


class ManifestRow(TypedDict):
    """A row of a manifest as a Python dictionary: one key per column of MANIFEST_SCHEMA.

    A manifest lists stored samples only, so no value is None."""

    # Stable sample id (shards/README.md, Key).
    key: str
    # Index into the classes of the manifest, and the class name at that index.
    label: int
    class_name: str
    # One of STORED_VERDICTS.
    verdict: str
    # Frames that were decoded without an error: the n of the clip sampling.
    num_frames_decoded: int
    # Index of each stored frame among the decoded frames, ascending.
    source_index: list[int]

    # Placement, as in SampleRow.
    shard: str
    offset: int
    size: int
    frame_offset: list[int]
    frame_size: list[int]
    frame_crc32: list[int]
    sha256: str


class Encoding(Settings):
    """How frames were chosen, scaled and coded; equal encodings of equal sources give equal
    bytes."""

    frames_per_clip: int = Field(64, ge=1, le=999)
    frame_rule: str = "floor(j*n/F)"
    short_side_px: int = Field(256, ge=8)
    jpeg_quality: int = Field(90, ge=1, le=100)
    jpeg_subsampling: str = "4:2:0"
    color: str = "full range, BT.601"
    scaler: str = "bicubic+accurate_rnd+full_chroma_int+bitexact"
    videos_per_shard: int = Field(256, ge=1)
    decoder: str = "pyav"


class ShardEntry(Settings):
    """One finished tar."""

    name: str
    size: int
    samples: int
    sha256: str


class PoolCard(Settings):
    """`pool.json`: written last, so that a folder without it is not a pool."""

    format_version: int
    dataset: str
    pool_id: str
    classes: list[str]
    encoding: Encoding
    libraries: dict[str, str]
    counts: dict[str, int]
    shards: list[ShardEntry]

    def to_json(self) -> str:
        """UTF-8, keys sorted, two spaces."""
        return json.dumps(self.model_dump(), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


class ManifestInfo(Settings):
    """The JSON object under the metadata key `bmpt` of a manifest."""

    format_version: int = FORMAT_VERSION
    dataset: str
    protocol: str
    name: str
    part: str
    split: str
    shot: int | None = None
    seed: int | None = None
    classes: list[str]
    labels: str
    source: str
    source_sha256: str
    classes_sha256: str
    expected: int
    found: int
    short: int
    damaged: int
    missing: int
    pool_id: str
    fingerprint: str

    @property
    def path(self) -> str:
        """`<protocol>/<name>`, as `data.train` and `eval.manifests` call it."""
        return f"{self.protocol}/{self.name}"


def parse_card(text: str | bytes, *, where: str) -> PoolCard:
    """Read `pool.json`. Raises: FormatError naming `where`, the version found and the one
    expected."""
    cure = "remove the folder and build the pool again"
    return PoolCard(**_checked_fields(PoolCard, text, where=where, cure=cure))


def manifest_table(info: ManifestInfo, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Make the Arrow table of one manifest, its metadata included."""
    table = pa.Table.from_pylist(list(rows), schema=MANIFEST_SCHEMA)
    text = json.dumps(info.model_dump(), sort_keys=True, ensure_ascii=False)
    return table.replace_schema_metadata({MANIFEST_METADATA_KEY: text.encode()})


def manifest_info(table: pa.Table, *, where: str) -> ManifestInfo:
    """Read the metadata of a manifest. Raises: FormatError naming `where`."""
    metadata = table.schema.metadata or {}
    if MANIFEST_METADATA_KEY not in metadata:
        raise FormatError(
            f"{where}: is not a manifest (no `bmpt` metadata); `bmpt build` writes manifests"
        )
    cure = "build the pool again"
    return ManifestInfo(
        **_checked_fields(ManifestInfo, metadata[MANIFEST_METADATA_KEY], where=where, cure=cure)
    )


def pool_id(samples: Iterable[tuple[str, str]]) -> str:
    """Hash (key, sha256) of all stored samples: sha256 over sorted lines `key TAB sha256 LF`."""
    lines = sorted(f"{key}\t{sha256}\n".encode() for key, sha256 in samples)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def count_samples(samples: pa.Table) -> dict[str, int]:
    """The counts of `pool.json`."""
    verdicts = samples["verdict"].to_pylist()
    counts = {name: verdicts.count(name) for name in VERDICTS}
    return {
        "videos": len(verdicts) - counts["missing"],
        "samples": sum(counts[name] for name in STORED_VERDICTS),
        "frames": pc.sum(pc.list_value_length(samples["source_index"])).as_py() or 0,
        "bytes": pc.sum(samples["size"]).as_py() or 0,
        **counts,
    }


def fingerprint(path: str, classes: Sequence[str], rows: Iterable[tuple[str, int, str]]) -> str:
    """Hash what a manifest selects: its path, classes and (key, label, sha256) rows, not where the
    bytes lie."""
    head = json.dumps([path, list(classes)], ensure_ascii=False)
    lines = [head, *(f"{key}\t{label}\t{sha256}" for key, label, sha256 in rows)]
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def _checked_fields(
    model: type[Settings], text: str | bytes, *, where: str, cure: str
) -> dict[str, Any]:
    """Parse JSON, check the version before anything else, then the fields."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{where}: is not JSON ({error}); {cure}") from None
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != FORMAT_VERSION:
        raise FormatError(
            f"{where}: has format_version {found}, this code reads {FORMAT_VERSION}; "
            f"{cure} or check out the release that wrote it"
        )
    try:
        model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{where}: field {field}: {first['msg']}; {cure}") from None
    return values
