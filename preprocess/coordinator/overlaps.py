"""Videos that are in a pool twice, and videos that a protocol both trains on and tests on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from preprocess.protocols import ManifestPlan

_SPLIT_NUMBER = re.compile(
    r"_split\d+$"
)  # fully_supervised/train_split2 goes with val_split2 alone


@dataclass(frozen=True)
class Duplicates:
    """Videos whose files have the same bytes; keys sorted as in `samples.parquet`."""

    keys: list[str]


@dataclass(frozen=True)
class Overlap:
    """Videos of a test manifest that are in a train manifest of its protocol too, by key or by the
    bytes of the file.

    train, val: `<protocol>/<name>`; keys: those of the test manifest, in its order"""

    train: str
    val: str
    keys: list[str]


def find_duplicates(samples: pa.Table) -> list[Duplicates]:
    """Group the rows of `samples.parquet` by the bytes of their files, groups of two and more;
    empty files are none."""
    groups: dict[str, list[str]] = {}
    columns = (samples[name].to_pylist() for name in ("key", "source_sha256", "source_bytes"))
    for key, digest, num_bytes in zip(*columns, strict=True):
        if digest is not None and num_bytes:
            groups.setdefault(digest, []).append(key)
    return [Duplicates(keys) for keys in groups.values() if len(keys) > 1]


def find_overlaps(
    manifests: Sequence[ManifestPlan], duplicates: Sequence[Duplicates] = ()
) -> list[Overlap]:
    """Compare every train manifest with the test manifests that are scored after training on it."""
    first_of = {key: group.keys[0] for group in duplicates for key in group.keys}
    overlaps = []
    for train, val in _pairs(manifests):
        known = set(_names(train, first_of))
        keys = [
            row.key
            for row, name in zip(val.rows, _names(val, first_of), strict=True)
            if name in known
        ]
        if keys:
            overlaps.append(Overlap(train.path, val.path, keys))
    return overlaps


def warn_of(duplicates: Sequence[Duplicates], overlaps: Sequence[Overlap]) -> list[str]:
    """One line for all duplicates, one for each test manifest that is trained on."""
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
        worst = max(group, key=lambda overlap: len(overlap.keys))
        others = f" and {len(group) - 1} other train manifests" if len(group) > 1 else ""
        lines.append(
            f"{len(worst.keys)} videos of {val} are in {worst.train}{others} too (the first: {worst.keys[0]}); "
            "its accuracy counts videos that were trained on"
        )
    return lines


def _pairs(manifests: Sequence[ManifestPlan]) -> Iterator[tuple[ManifestPlan, ManifestPlan]]:
    """(train, test) of one protocol; where there are several splits, of the same one."""
    for train in manifests:
        for val in manifests:
            same_protocol = train.spec.protocol == val.spec.protocol
            same = same_protocol and _split_number(train) == _split_number(val)
            if same and (train.spec.split, val.spec.split) == ("train", "val"):
                yield train, val


def _split_number(manifest: ManifestPlan) -> str:
    match = _SPLIT_NUMBER.search(manifest.spec.name)
    return match[0] if match else ""


def _names(manifest: ManifestPlan, first_of: Mapping[str, str]) -> Iterator[str]:
    return (first_of.get(row.key, row.key) for row in manifest.rows)
