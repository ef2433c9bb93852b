"""Find videos that are in a pool twice, and videos that a protocol both trains on and tests on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from preprocess.protocols import ManifestPlan

# fully_supervised/train_split2 belongs to val_split2 only.
_SPLIT_NUMBER = re.compile(r"_split\d+$")


@dataclass(frozen=True)
class Duplicates:
    """Videos whose files have the same bytes."""

    keys: list[str]
    """Sorted as in `samples.parquet`."""


@dataclass(frozen=True)
class Overlap:
    """Videos of a test manifest that are in a train manifest of the same protocol too.

    They have the same key, or their files have the same bytes.
    """

    train: str
    """`<protocol>/<name>` of the train manifest."""

    val: str
    """`<protocol>/<name>` of the test manifest."""

    keys: list[str]
    """Keys of the test manifest, in its order."""


def find_duplicates(samples: pa.Table) -> list[Duplicates]:
    """Group the rows of `samples.parquet` by the bytes of their files.

    Returns:
        The groups of two and more; empty files and files that were not read are left out.
    """
    groups: dict[str, list[str]] = {}
    columns = (samples[name].to_pylist() for name in ("key", "source_sha256", "source_bytes"))
    # Empty files are all the same, and say nothing about the videos.
    for key, digest, num_bytes in zip(*columns, strict=True):
        if digest is not None and num_bytes:
            groups.setdefault(digest, []).append(key)
    return [Duplicates(keys) for keys in groups.values() if len(keys) > 1]


def find_overlaps(
    manifests: Sequence[ManifestPlan], duplicates: Sequence[Duplicates] = ()
) -> list[Overlap]:
    """Compare every train manifest with the test manifests that are scored after training on it.

    Args:
        manifests: of all protocols.
        duplicates: videos that count as the same video.
    """
    # Compare by the first key with the same bytes, so that copies are found under any key.
    first_of = {key: group.keys[0] for group in duplicates for key in group.keys}

    overlaps = []
    for train, val in _pairs(manifests):
        trained = set(_unique_keys(train, first_of))
        keys = [
            row.key
            for row, unique_key in zip(val.rows, _unique_keys(val, first_of), strict=True)
            if unique_key in trained
        ]
        if keys:
            overlaps.append(Overlap(train.path, val.path, keys))
    return overlaps


def overlap_warnings(duplicates: Sequence[Duplicates], overlaps: Sequence[Overlap]) -> list[str]:
    """Return one line for all duplicates, and one for each test manifest that is trained on."""
    lines = []
    if duplicates:
        num_videos = sum(len(group.keys) for group in duplicates)
        lines.append(
            f"{num_videos} videos are in the pool under two or more keys with the same bytes "
            f"({len(duplicates)} different files; the first: {' = '.join(duplicates[0].keys)})"
        )

    by_val: dict[str, list[Overlap]] = {}
    for overlap in overlaps:
        by_val.setdefault(overlap.val, []).append(overlap)

    for val, group in by_val.items():
        # One line per test manifest: several train manifests of a protocol would repeat it.
        largest = max(group, key=lambda overlap: len(overlap.keys))
        others = f" and {len(group) - 1} other train manifests" if len(group) > 1 else ""
        lines.append(
            f"{len(largest.keys)} videos of {val} are in {largest.train}{others} too (the first: "
            f"{largest.keys[0]}); its accuracy counts videos that were trained on"
        )
    return lines


def _pairs(manifests: Sequence[ManifestPlan]) -> Iterator[tuple[ManifestPlan, ManifestPlan]]:
    """Yield (train, test) of one protocol and, where there are several splits, of one split."""
    for train in manifests:
        for val in manifests:
            if (train.spec.split, val.spec.split) != ("train", "val"):
                continue
            is_same_protocol = train.spec.protocol == val.spec.protocol
            if is_same_protocol and _split_number(train) == _split_number(val):
                yield train, val


def _split_number(manifest: ManifestPlan) -> str:
    match = _SPLIT_NUMBER.search(manifest.spec.name)
    return match[0] if match else ""


def _unique_keys(manifest: ManifestPlan, first_of: Mapping[str, str]) -> Iterator[str]:
    """Yield the keys of a manifest, for a duplicate the first key with its bytes."""
    return (first_of.get(row.key, row.key) for row in manifest.rows)
