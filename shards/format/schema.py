"""The format of a pool: every field of `pool.json`, `samples.parquet` and the manifests.

`shards/README.md` describes the same for readers of the data. A change here is a change of the
format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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
# The file was read and is not ok.
FAILED_VERDICTS = ("short", "damaged", "undecodable")
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


# Keys of `<key>.json` in a shard.
SAMPLE_FACTS = (
    *("key", "verdict", "reason", "class_name", "codec", "fps", "num_frames_decoded"),
    *("stored_width", "stored_height", "source_index", "source_time_seconds"),
)
# Where the bytes of a sample are.
PLACEMENT_COLUMNS = (
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
        *(SAMPLES_SCHEMA.field(name).with_nullable(False) for name in PLACEMENT_COLUMNS),
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
    """How frames are chosen, scaled and encoded.

    Equal encodings of equal sources give equal bytes.
    """

    frames_per_clip: int = Field(64, ge=1, le=999, description="stored frames per video, at most")
    frame_rule: str = Field(
        "floor(j*n/F)", description="decoded index of stored frame j of F, for n decoded frames"
    )
    short_side_px: int = Field(
        256, ge=8, description="short side of stored frames; smaller videos are not enlarged"
    )
    jpeg_quality: int = Field(90, ge=1, le=100, description="quality of the stored frames")
    jpeg_subsampling: str = Field("4:2:0", description="chroma subsampling of the stored frames")
    color: str = Field("full range, BT.601", description="colour space of the stored frames")
    scaler: str = Field(
        "bicubic+accurate_rnd+full_chroma_int+bitexact", description="flags of FFmpeg's scaler"
    )
    videos_per_shard: int = Field(256, ge=1, description="videos per tar")
    decoder: str = Field("pyav", description="pyav or ffmpeg")


class ShardEntry(Settings):
    """One finished tar."""

    name: str
    """`shards/<name>.tar`."""
    size: int
    """Bytes."""
    samples: int
    """Number of samples."""
    sha256: str
    """Of the whole file, 64 hex digits."""


class PoolCard(Settings):
    """The content of `pool.json`, which is written last: a folder without it is not a pool."""

    format_version: int
    dataset: str
    pool_id: str
    """See the function `pool_id`."""
    classes: list[str]
    """The data set's own classes."""
    encoding: Encoding
    libraries: dict[str, str]
    """Versions of the libraries that decide the bytes."""
    counts: dict[str, int]
    """See `count_samples`."""
    shards: list[ShardEntry]

    def to_json(self) -> str:
        """Return the card as JSON with sorted keys and an indent of two spaces."""
        return json.dumps(self.model_dump(), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


class ManifestInfo(Settings):
    """The JSON object under the metadata key `bmpt` of a manifest."""

    format_version: int = FORMAT_VERSION
    dataset: str
    protocol: str
    """`few_shot`, `base_to_novel`, `zero_shot`, `cross_dataset` or `fully_supervised`."""
    name: str
    part: str
    """`base`, `novel` or `all`."""
    split: str
    """`train` or `val`."""
    shot: int | None = None
    """Labelled videos per class."""
    seed: int | None = None
    """Of the draw."""
    classes: list[str]
    """Class names by label."""
    labels: str
    """Where the labels come from."""
    source: str
    """The list."""
    source_sha256: str
    classes_sha256: str
    expected: int
    """Lines of the list."""
    found: int
    """Stored samples, short and damaged ones included."""
    short: int
    damaged: int
    missing: int
    """Lines of the list without a stored sample."""
    pool_id: str
    fingerprint: str
    """See the function `fingerprint`."""

    @property
    def path(self) -> str:
        """Return `<protocol>/<name>`, the value of `data.train` and `eval.manifests`."""
        return f"{self.protocol}/{self.name}"


def parse_card(text: str | bytes, *, where: str) -> PoolCard:
    """Parse `pool.json`.

    Raises:
        FormatError: naming `where`, and for another version of the format both versions.
    """
    hint = "remove the folder and build the pool again"
    return PoolCard(**_checked_fields(PoolCard, text, where=where, hint=hint))


def manifest_table(info: ManifestInfo, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the Arrow table of a manifest, with its metadata."""
    table = pa.Table.from_pylist(list(rows), schema=MANIFEST_SCHEMA)
    text = json.dumps(info.model_dump(), sort_keys=True, ensure_ascii=False)
    return table.replace_schema_metadata({MANIFEST_METADATA_KEY: text.encode()})


def manifest_info(table: pa.Table, *, where: str) -> ManifestInfo:
    """Return the metadata of a manifest.

    Raises:
        FormatError: naming `where`.
    """
    metadata = table.schema.metadata or {}
    if MANIFEST_METADATA_KEY not in metadata:
        raise FormatError(
            f"{where}: is not a manifest (no `bmpt` metadata); `bmpt build` writes manifests"
        )

    text = metadata[MANIFEST_METADATA_KEY]
    hint = "build the pool again"
    return ManifestInfo(**_checked_fields(ManifestInfo, text, where=where, hint=hint))


def pool_id(samples: Iterable[tuple[str, str]]) -> str:
    """Return the identity of a pool from (key, sha256) of all stored samples.

    It is the sha256 of the sorted lines `key TAB sha256 LF`.
    """
    lines = sorted(f"{key}\t{sha256}\n".encode() for key, sha256 in samples)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def count_samples(samples: pa.Table) -> dict[str, int]:
    """Return the counts of `pool.json`: videos, samples, frames, bytes, and one per verdict."""
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
    """Return the identity of a manifest's selection, independent of where the bytes are.

    Args:
        path: `<protocol>/<name>`.
        classes: class names by label.
        rows: (key, label, sha256) of every row in order.
    """
    head = json.dumps([path, list(classes)], ensure_ascii=False)
    lines = [head, *(f"{key}\t{label}\t{sha256}" for key, label, sha256 in rows)]
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def _checked_fields(
    model: type[Settings], text: str | bytes, *, where: str, hint: str
) -> dict[str, Any]:
    """Parse JSON and check the version before the fields, which another version may not have."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{where}: is not JSON ({error}); {hint}") from None

    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{where}: has format_version {version}, this code reads {FORMAT_VERSION}; "
            f"{hint} or check out the release that wrote it"
        )

    try:
        model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{where}: field {field}: {first['msg']}; {hint}") from None
    return values
