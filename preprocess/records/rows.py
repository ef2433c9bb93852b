"""Rows of `samples.parquet` and the `<key>.json` of a sample, as plain values; no file is touched
here."""

from __future__ import annotations

from typing import Any

from preprocess.decode.video import ReadVideo
from preprocess.sources import SourceVideo
from shards.format.schema import SAMPLE_FACTS, SAMPLES_SCHEMA

_NOTHING: dict[str, Any] = dict.fromkeys(SAMPLES_SCHEMA.names)
_COUNTS: dict[str, Any] = {"rotation_degrees": 0, "num_frames_decoded": 0, "num_decoder_errors": 0}


def read_row(video: SourceVideo, read: ReadVideo, source_sha256: str) -> dict[str, Any]:
    """The row of a video that was read, still without a place in a shard."""
    stored = bool(read.frames)
    return {
        **_source(video),
        **_COUNTS,
        "verdict": read.verdict.name,
        "reason": read.verdict.reason,
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
        "stored_width": read.stored_size[0] if read.stored_size else None,
        "stored_height": read.stored_size[1] if read.stored_size else None,
        "source_index": read.source_index if stored else None,
        "source_time_seconds": read.source_time_seconds if stored else None,
    }


def undecodable_row(
    video: SourceVideo, reason: str, source_sha256: str | None = None
) -> dict[str, Any]:
    """The row of a video that could not be read at all, or whose worker hung or died."""
    facts = {"verdict": "undecodable", "reason": reason, "source_sha256": source_sha256}
    return {**_source(video), **_COUNTS, **facts}


def missing_row(key: str, class_name: str | None) -> dict[str, Any]:
    """The row of a video that a list names and no file answers."""
    reason = "named by a list or an annotation file, no such video below --videos"
    return {
        **_NOTHING,
        **_COUNTS,
        "key": key,
        "class_name": class_name,
        "verdict": "missing",
        "reason": reason,
    }


def sample_facts(row: dict[str, Any]) -> dict[str, Any]:
    """What `<key>.json` in the tar says: facts of the video and its frames, nothing of this machine
    or this run."""
    return {name: row[name] for name in SAMPLE_FACTS}


def _source(video: SourceVideo) -> dict[str, Any]:
    return {
        **_NOTHING,
        "key": video.key,
        "class_name": video.class_name,
        "source_path": video.relative_path,
        "source_bytes": video.num_bytes,
    }
