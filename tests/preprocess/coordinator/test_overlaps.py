"""Duplicates, and videos that a protocol trains on and tests on, are found and reported."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.coordinator.overlaps import (
    Duplicates,
    Overlap,
    find_duplicates,
    find_overlaps,
    overlap_warnings,
)
from preprocess.protocols import ManifestPlan, PlannedRow
from preprocess.protocols.records import ClassNames, ListSource, ManifestSpec
from preprocess.records.rows import missing_row
from preprocess.records.tables import rows_table
from tests.preprocess.builds import build
from tests.preprocess.tiny_videos import make_video


def samples(sources: Sequence[tuple[str, str | None, int]]) -> object:
    facts = (
        {"key": key, "source_sha256": digest, "source_bytes": size} for key, digest, size in sources
    )
    return rows_table({**missing_row(str(row["key"]), None), **row} for row in facts)


def manifest(path: str, split: str, keys: Sequence[str]) -> ManifestPlan:
    protocol, name = path.split("/")
    rows = [PlannedRow(key, 0) for key in keys]
    spec = ManifestSpec(protocol, name, split)
    return ManifestPlan(spec, ClassNames(["a"], "csv", ""), ListSource("list", ""), rows, [])


def test_videos_with_the_same_bytes_are_duplicates_and_empty_or_unread_files_are_not() -> None:
    rows = [
        ("a", "1", 9),
        ("b", "2", 9),
        ("c", "1", 9),
        ("d", None, 9),
        ("e", None, 9),
        ("f", "3", 0),
        ("g", "3", 0),
    ]
    assert find_duplicates(samples(rows)) == [Duplicates(["a", "c"])]


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3), st.sampled_from("123456"), max_size=12
    )
)
def test_every_duplicate_video_is_in_exactly_one_group(digests: dict[str, str]) -> None:
    groups = find_duplicates(samples([(key, digest, 1) for key, digest in digests.items()]))
    found = [key for group in groups for key in group.keys]
    twins = [key for key, digest in digests.items() if list(digests.values()).count(digest) > 1]
    assert sorted(found) == sorted(twins)


@pytest.mark.parametrize(
    ("train", "val", "is_pair"),
    [
        ("few_shot/train_k2", "few_shot/val", True),
        ("base_to_novel/train_base_s3", "base_to_novel/val_novel", True),
        ("base_to_novel/train_base", "base_to_novel/val_base", True),
        ("fully_supervised/train", "fully_supervised/val", True),
        ("fully_supervised/train_split2", "fully_supervised/val_split2", True),
        ("fully_supervised/train_split2", "fully_supervised/val", False),
        ("fully_supervised/train", "fully_supervised/val_split3", False),
        ("few_shot/train_k2", "fully_supervised/val", False),
        ("cross_dataset/train", "zero_shot/split2", False),
    ],
)
def test_a_train_manifest_is_compared_with_the_test_manifests_of_its_split(
    train: str, val: str, is_pair: bool
) -> None:
    plans = [manifest(val, "val", ["x", "y", "z"]), manifest(train, "train", ["z", "q", "x"])]
    assert find_overlaps(plans) == ([Overlap(train, val, ["x", "z"])] if is_pair else [])


def test_a_copy_of_a_trained_video_under_another_key_is_an_overlap() -> None:
    plans = [
        manifest("few_shot/train_k2", "train", ["a"]),
        manifest("few_shot/val", "val", ["b", "c"]),
    ]
    assert find_overlaps(plans) == []
    assert find_overlaps(plans, [Duplicates(["a", "c"])]) == [
        Overlap("few_shot/train_k2", "few_shot/val", ["c"])
    ]


def test_overlap_warnings_name_the_first_of_each_group() -> None:
    overlaps = [
        Overlap("few_shot/train_k2", "few_shot/val", ["c", "d"]),
        Overlap("few_shot/x", "few_shot/val", ["c"]),
    ]
    lines = overlap_warnings([Duplicates(["a", "c"])], overlaps)
    assert len(lines) == 2
    assert "2 videos are in the pool under two or more keys" in lines[0]
    assert "the first: a = c" in lines[0]
    assert (
        "2 videos of few_shot/val are in few_shot/train_k2 and 1 other train manifests too "
        "(the first: c)" in lines[1]
    )


def test_a_build_reports_duplicates_and_overlaps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from preprocess.console import print_report

    videos = tmp_path / "videos"
    for number in range(3):
        make_video(videos / "run" / f"{number}.avi", frames=3, seed=number)
    shutil.copy(videos / "run" / "1.avi", videos / "run" / "twin.avi")
    (lists := tmp_path / "lists").mkdir()
    (lists / "train.txt").write_text("run/0.avi\nrun/1.avi\nrun/2.avi\n")
    (lists / "val.txt").write_text("run/twin.avi\nrun/2.avi\n")
    report = build(videos, tmp_path / "pool", annotations=lists)
    assert report.duplicates == [Duplicates(["run/1", "run/twin"])]
    overlap = Overlap("fully_supervised/train", "fully_supervised/val", ["run/twin", "run/2"])
    assert overlap in report.overlaps
    assert report.has_findings
    print_report(report)
    shown = capsys.readouterr().out
    assert "duplicates: 2 videos have only 1 different files" in shown
    assert "fully_supervised/val: 2 of its videos are in fully_supervised/train too" in shown
