"""Rows of `samples.parquet` and the `<key>.json` of a sample, as plain values."""

from __future__ import annotations

from collections.abc import Mapping

from preprocess.decode.video import ReadVideo
from preprocess.sources import SourceVideo
from shards.format.schema import SAMPLE_FACTS, SampleRow


def read_row(video: SourceVideo, read: ReadVideo, source_sha256: str) -> SampleRow:
    """Return the row of a video that was read, without its placement in a shard."""
    has_frames = bool(read.frames)  # an undecodable video has none
    width, height = read.stored_size or (None, None)
    return {
        **_source_row(video, read.verdict.name, read.verdict.reason),
        "source_sha256": source_sha256,
        "codec": read.stream.codec,
        "fps": read.stream.fps,
        "duration_seconds": read.stream.duration_seconds,
        "width": read.stream.width,
        "height": read.stream.height,
        "rotation_degrees": read.stream.rotation_degrees,
        "num_frames_stated": read.stream.num_frames_stated,
        "num_frames_decoded": read.num_frames_decoded,
        "num_decoder_errors": read.num_decoder_errors,
        "stored_width": width,
        "stored_height": height,
        "source_index": read.source_index if has_frames else None,
        "source_time_seconds": read.source_time_seconds if has_frames else None,
    }


def undecodable_row(video: SourceVideo, reason: str, source_sha256: str | None = None) -> SampleRow:
    """Return the row of a video that could not be read, or whose worker hung or died."""
    return {**_source_row(video, "undecodable", reason), "source_sha256": source_sha256}


def missing_row(key: str, class_name: str | None) -> SampleRow:
    """Return the row of a video that a list names and that has no file below `--videos`."""
    reason = "named by a list or an annotation file, no such video below --videos"
    return _empty_row(key, class_name, "missing", reason)


def sample_facts(row: Mapping[str, object]) -> dict[str, object]:
    """Return the content of `<key>.json`: facts of the video and its frames.

    It holds nothing of this machine or this run, so that equal videos give equal bytes."""
    return {name: row[name] for name in SAMPLE_FACTS}


def _source_row(video: SourceVideo, verdict: str, reason: str | None) -> SampleRow:
    """Return the row of a source file before anything is known about its content."""
    return {
        **_empty_row(video.key, video.class_name, verdict, reason),
        "source_path": video.relative_path,
        "source_bytes": video.num_bytes,
    }


def _empty_row(key: str, class_name: str | None, verdict: str, reason: str | None) -> SampleRow:
    # Spelled out instead of filled from the schema, so that mypy checks the keys and types.
    return {
        "key": key,
        "verdict": verdict,
        "reason": reason,
        "class_name": class_name,
        "source_path": None,
        "source_bytes": None,
        "source_sha256": None,
        "codec": None,
        "fps": None,
        "duration_seconds": None,
        "width": None,
        "height": None,
        "rotation_degrees": 0,
        "num_frames_stated": None,
        "num_frames_decoded": 0,
        "num_decoder_errors": 0,
        "stored_width": None,
        "stored_height": None,
        "source_index": None,
        "source_time_seconds": None,
        "shard": None,
        "offset": None,
        "size": None,
        "frame_offset": None,
        "frame_size": None,
        "frame_crc32": None,
        "sha256": None,
    }
