"""Test the published lists: their sizes, and the sample clips that they name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from preprocess.protocols import plan_protocols
from preprocess.sources import DATASETS, Source, open_source
from tests.preprocess.trees import by_path, no_videos, write_tree
from tests.shared_data import shared_data


def expected_counts(
    dataset: str, splits: list[Path], *, annotations: Path | None = None
) -> dict[str, int]:
    source = no_videos(dataset)
    if annotations is not None:
        official = open_source(dataset, shared_data() / "clips" / dataset, annotations).annotations
        source = Source(DATASETS[dataset], Path("/nowhere"), [], official)
    plan = plan_protocols(source, splits, labels="legacy")
    return {path: manifest.expected for path, manifest in by_path(plan).items()}


@pytest.mark.parametrize(
    ("dataset", "base", "novel", "counts"),
    [
        ("ucf101", 51, 50, {"train_base": 5385, "val_base": 2088, "val_novel": 1695, "shot": 816}),
        ("hmdb51", 26, 25, {"train_base": 1820, "val_base": 780, "val_novel": 750, "shot": 416}),
        (
            "ssv2",
            87,
            87,
            {"train_base": 125937, "val_base": 17562, "val_novel": 7215, "shot": 1392},
        ),
        ("kinetics400", 200, 200, {"val_base": 9944, "val_novel": 9933, "shot": 3200}),
    ],
)
def test_base_to_novel_has_its_published_sizes(
    dataset: str, base: int, novel: int, counts: dict[str, int]
) -> None:
    plan = plan_protocols(no_videos(dataset), [shared_data() / "splits/vificlip"], labels="legacy")
    manifests = {
        path: manifest
        for path, manifest in by_path(plan).items()
        if path.startswith("base_to_novel/")
    }
    shot = counts.pop("shot")
    sizes = counts | {f"train_base_s{seed}": shot for seed in (1, 2, 3)}
    assert {manifest.spec.name: manifest.expected for manifest in manifests.values()} == sizes
    for manifest in manifests.values():
        assert manifest.spec.part == ("novel" if manifest.spec.name == "val_novel" else "base")
        assert len(manifest.classes.names) == (novel if manifest.spec.part == "novel" else base)


@pytest.mark.parametrize(
    ("dataset", "num_classes", "val"),
    [("ucf101", 101, 3783), ("hmdb51", 51, 1530), ("ssv2", 174, 24777)],
)
def test_few_shot_has_its_published_sizes(dataset: str, num_classes: int, val: int) -> None:
    counts = expected_counts(dataset, [shared_data() / "splits/vificlip"])
    found = {
        path.removeprefix("few_shot/"): count
        for path, count in counts.items()
        if path.startswith("few_shot/")
    }
    assert found == {f"train_k{shot}": shot * num_classes for shot in (2, 4, 8, 16)} | {"val": val}


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [
        ("ucf101", [3783, 3734, 3696]),
        ("hmdb51", [1530, 1530, 1530]),
        ("kinetics600", [14084, 13978, 14136]),
        ("ssv2", []),
        ("kinetics400", []),
    ],
)
def test_zero_shot_splits_have_their_published_sizes(dataset: str, sizes: list[int]) -> None:
    counts = expected_counts(dataset, [shared_data() / "splits/vificlip"])
    found = {path: count for path, count in counts.items() if path.startswith("zero_shot/")}
    assert found == {f"zero_shot/split{number}": size for number, size in enumerate(sizes, start=1)}


def test_kinetics_600_splits_have_their_own_class_files() -> None:
    plan = plan_protocols(no_videos("kinetics600"), [shared_data() / "splits/vificlip"])
    manifests = by_path(plan)
    assert [len(manifests[f"zero_shot/split{number}"].classes.names) for number in (1, 2, 3)] == [
        160,
        160,
        160,
    ]
    assert len(plan.classes) == 600


@pytest.mark.parametrize(
    ("dataset", "train", "val", "cross"),
    [("ucf101", 9537, 3783, (1438, 571)), ("hmdb51", 3570, 1530, (840, 360))],
)
def test_official_and_cross_dataset_manifests_have_their_published_sizes(
    dataset: str, train: int, val: int, cross: tuple[int, int]
) -> None:
    splits = shared_data() / "splits"
    counts = expected_counts(
        dataset, [splits / "vificlip", splits / "bmpt"], annotations=splits / "official"
    )
    assert (counts["fully_supervised/train"], counts["fully_supervised/val"]) == (train, val)
    assert (counts["cross_dataset/train"], counts["cross_dataset/val"]) == cross


def test_fully_supervised_without_annotations_are_the_published_validation_lists() -> None:
    vificlip = [shared_data() / "splits/vificlip"]
    assert expected_counts("ssv2", vificlip)["fully_supervised/val"] == 24777
    assert expected_counts("kinetics400", vificlip)["fully_supervised/val"] == 19877


@pytest.mark.parametrize(
    ("dataset", "total", "num_classes"), [("ucf101", 13320, 101), ("hmdb51", 6766, 51)]
)
def test_bike_halves_are_cut_from_all_videos(dataset: str, total: int, num_classes: int) -> None:
    plan = plan_protocols(no_videos(dataset), [shared_data() / "splits/bike"])
    assert plan.num_audited == total
    assert [manifest.spec.name for manifest in plan.manifests] == [
        f"half_{seed}" for seed in range(10)
    ]
    assert {len(manifest.classes.names) for manifest in plan.manifests} == {num_classes // 2}


def test_the_sample_clips_are_found_by_the_published_lists() -> None:
    data = shared_data()
    found = {}
    for dataset in ("ucf101", "hmdb51", "ssv2", "kinetics400"):
        source = open_source(dataset, data / "clips" / dataset, data / "splits/official")
        plan = plan_protocols(source, [data / "splits/vificlip"], labels="legacy")
        found |= {(dataset, manifest.path): len(manifest.rows) for manifest in plan.manifests}
        assert all(
            len(manifest.rows) + len(manifest.missing) == manifest.expected
            for manifest in plan.manifests
        )
        if dataset == "ucf101":
            assert len(plan.missing) == 13320 - 49
    assert found["ucf101", "few_shot/train_k2"] == 12
    assert found["ucf101", "few_shot/val"] == 26
    assert found["ucf101", "base_to_novel/val_novel"] == 12
    assert [found["hmdb51", f"zero_shot/split{number}"] for number in (1, 2, 3)] == [1, 3, 2]
    assert found["ssv2", "base_to_novel/val_novel"] == 1
    assert found["kinetics400", "fully_supervised/val"] == 7


def test_bare_kinetics_ids_of_bike_style_lists_find_the_sample_clips(tmp_path: Path) -> None:
    data = shared_data()
    write_tree(
        tmp_path,
        {
            "datasets_splits/k400_splits/val.txt": (
                data / "splits/bike/lists/k400/kinetics_video_val_se320.txt"
            ).read_bytes(),
            "labels/kinetics_400_labels.csv": (
                data / "splits/bike/lists/k400/kinetics_400_labels.csv"
            ).read_bytes(),
        },
    )
    source = open_source("kinetics400", data / "clips/kinetics400", data / "splits/official")
    assert len(by_path(plan_protocols(source, [tmp_path]))["fully_supervised/val"].rows) == 7


def test_planning_ssv2_takes_seconds_not_minutes() -> None:
    data = shared_data()
    source = open_source("ssv2", data / "clips/ssv2", data / "splits/official")
    start = time.process_time()
    plan_protocols(source, [data / "splits/vificlip"])
    assert time.process_time() - start < 6  # measured 1.0 s; the margin is for a loaded machine
