"""Test the planning of manifests from lists, class files and official annotations."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from preprocess.protocols import MissingVideo, PlannedRow, plan_protocols
from preprocess.sources import Source, open_source
from shards.errors import ConfigError
from tests.preprocess.trees import by_path, no_videos, write_tree, write_videos

UCF_ARCHERY = "v_Archery_g01_c01.avi 0\nv_Archery_g01_c02.avi 0\nv_Punch_g01_c01.avi 1\n"
UCF_CSV = "id,name\r\n0,Archery\r\n1,Punch\r\n"


def ucf_checkout(root: Path, lists: Mapping[str, str], csv: str = UCF_CSV) -> Path:
    return write_tree(
        root,
        {f"datasets_splits/{name}": text for name, text in lists.items()}
        | {"labels/ucf_101_labels.csv": csv},
    )


def test_rows_keep_the_order_of_the_list_and_missing_videos_are_named(tmp_path: Path) -> None:
    videos = write_videos(
        tmp_path / "videos", ["Punch/v_Punch_g01_c01.avi", "Archery/v_Archery_g01_c02.avi"]
    )
    checkout = ucf_checkout(tmp_path / "splits", {"ucf_splits/val1.txt": UCF_ARCHERY})
    plan = plan_protocols(open_source("ucf101", videos, None), [checkout])
    manifest = by_path(plan)["few_shot/val"]
    assert manifest.rows == [PlannedRow("v_Archery_g01_c02", 0), PlannedRow("v_Punch_g01_c01", 1)]
    assert manifest.missing == ["v_Archery_g01_c01.avi"]
    assert (manifest.expected, manifest.classes.names, manifest.classes.labels) == (
        3,
        ["Archery", "Punch"],
        "csv",
    )
    assert plan.missing == [MissingVideo("v_Archery_g01_c01", "Archery")]


def test_a_list_without_any_video_plans_a_manifest_without_rows(tmp_path: Path) -> None:
    plan = plan_protocols(
        no_videos("ucf101"), [ucf_checkout(tmp_path, {"ucf_splits/val1.txt": UCF_ARCHERY})]
    )
    assert by_path(plan)["zero_shot/split1"].rows == []
    assert len(plan.missing) == 3


def test_only_lists_that_are_there_give_manifests(tmp_path: Path) -> None:
    checkout = ucf_checkout(
        tmp_path,
        {"ucf_splits/val1.txt": UCF_ARCHERY, "ucf_splits/train1_few_shot_4.txt": UCF_ARCHERY},
    )
    plan = plan_protocols(no_videos("ucf101"), [checkout])
    assert list(by_path(plan)) == ["few_shot/train_k4", "few_shot/val", "zero_shot/split1"]
    manifest = by_path(plan)["few_shot/train_k4"]
    assert (manifest.spec.shot, manifest.spec.seed, manifest.spec.part, manifest.spec.split) == (
        4,
        None,
        "all",
        "train",
    )


def test_the_source_of_a_manifest_names_the_method_not_the_path_of_its_checkout(
    tmp_path: Path,
) -> None:
    checkout = ucf_checkout(tmp_path, {"ucf_splits/val1.txt": UCF_ARCHERY})
    manifest = by_path(plan_protocols(no_videos("ucf101"), [checkout]))["few_shot/val"]
    assert manifest.source.name == "ViFi-CLIP datasets_splits/ucf_splits/val1.txt"
    assert manifest.source.sha256 == sha256(UCF_ARCHERY.encode()).hexdigest()
    assert manifest.classes.sha256 == sha256(UCF_CSV.encode()).hexdigest()


@pytest.mark.parametrize(
    ("extra", "origin"),
    [
        ("labels/ucf_101_base_labels_corrected.csv", "BDC-CLIP"),
        ("mapping/ucf_hmdb_mapping.txt", "BMPT"),
        ("lists/ucf101/ucf_labels.csv", "BIKE"),
    ],
)
def test_the_origin_of_a_checkout_is_read_from_its_content(
    tmp_path: Path, extra: str, origin: str
) -> None:
    checkout = write_tree(
        ucf_checkout(tmp_path, {"ucf_splits/val1.txt": UCF_ARCHERY}), {extra: "0,golf"}
    )
    manifest = by_path(plan_protocols(no_videos("ucf101"), [checkout]))["few_shot/val"]
    assert manifest.source.name == f"{origin} datasets_splits/ucf_splits/val1.txt"


def test_the_folder_datasets_splits_itself_may_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = ucf_checkout(tmp_path, {"ucf_splits/val1.txt": UCF_ARCHERY})
    whole = plan_protocols(no_videos("ucf101"), [checkout])
    assert plan_protocols(no_videos("ucf101"), [checkout / "datasets_splits"]) == whole
    monkeypatch.chdir(checkout / "datasets_splits")
    assert plan_protocols(no_videos("ucf101"), [Path()]) == whole


def test_the_first_checkout_that_has_a_file_wins(tmp_path: Path) -> None:
    first = ucf_checkout(
        tmp_path / "a",
        {"ucf_splits/val1.txt": "v_Archery_g01_c01.avi 0\n"},
        "0,Archery A\n1,Punch A",
    )
    second = ucf_checkout(
        tmp_path / "b",
        {"ucf_splits/val1.txt": UCF_ARCHERY, "ucf_splits/val2.txt": "v_Archery_g08_c01.avi 0\n"},
        "0,Archery B\n1,Punch B",
    )
    manifests = by_path(plan_protocols(no_videos("ucf101"), [first, second]))
    assert manifests["zero_shot/split1"].expected == 1
    assert manifests["zero_shot/split2"].expected == 1
    assert manifests["zero_shot/split2"].classes.names == ["Archery A", "Punch A"]


def test_a_corrected_class_file_comes_before_the_plain_one(tmp_path: Path) -> None:
    folder = "base2novel_splits/ucf_splits"
    checkout = ucf_checkout(
        tmp_path, {f"{folder}/base_val.txt": "a.avi 0\n", f"{folder}/novel_val.txt": "b.avi 0\n"}
    )
    write_tree(
        checkout,
        {
            "labels/ucf_101_base_labels.csv": "0,PlayingViolin",
            "labels/ucf_101_base_labels_corrected.csv": "0,Playing Violin",
            "labels/ucf_101_novel_labels.csv": "0,Typing",
        },
    )
    manifests = by_path(plan_protocols(no_videos("ucf101"), [checkout]))
    assert manifests["base_to_novel/val_base"].classes.names == ["Playing Violin"]
    assert (
        manifests["base_to_novel/val_novel"].classes.names,
        manifests["base_to_novel/val_novel"].spec.part,
    ) == (
        ["Typing"],
        "novel",
    )


def test_malformed_lines_are_a_warning(tmp_path: Path) -> None:
    checkout = ucf_checkout(
        tmp_path, {"ucf_splits/val1.txt": UCF_ARCHERY + "v_Punch_g01_c02.avi\n"}
    )
    plan = plan_protocols(no_videos("ucf101"), [checkout])
    assert plan.warnings == [
        f"{checkout}/datasets_splits/ucf_splits/val1.txt: 1 lines are not `path label` "
        "and are left out, the first is line 4"
    ]
    assert by_path(plan)["few_shot/val"].expected == 3


def test_a_checkout_that_is_missing_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"nowhere: no such folder; give --splits a checkout that holds datasets_splits",
    ):
        plan_protocols(no_videos("ucf101"), [tmp_path / "nowhere"])
    with pytest.raises(
        ConfigError,
        match=r"--splits .*: no list of ssv2 there; expected files such as .*validation\.txt",
    ):
        plan_protocols(no_videos("ssv2"), [tmp_path])


def test_an_ambiguous_line_names_list_and_line(tmp_path: Path) -> None:
    videos = write_videos(
        tmp_path / "v", ["a/0wR5jVB-WPk_000001_000011.mp4", "a/0wR5jVB-WPk_000020_000030.mp4"]
    )
    checkout = write_tree(
        tmp_path / "s",
        {"datasets_splits/k400_splits/val.txt": "c1O_FxuKCI0.mp4 0\n0wR5jVB-WPk.mp4 1\n"},
    )
    write_tree(checkout, {"labels/kinetics_400_labels.csv": "0,yoga\n1,golf"})
    with pytest.raises(
        ConfigError, match=r"k400_splits/val\.txt: line 2: 0wR5jVB-WPk\.mp4 means both"
    ):
        plan_protocols(open_source("kinetics400", videos, None), [checkout])


def test_a_missing_kinetics_video_counts_once_under_its_full_name(tmp_path: Path) -> None:
    checkout = write_tree(
        tmp_path,
        {
            "datasets_splits/k400_splits/train.txt": "c1O_FxuKCI0.mp4 0\nzzzzzzzzzzz.mp4 0\n",
            "datasets_splits/k400_splits/val.txt": "val/c1O_FxuKCI0_000110_000120.mp4 0\n",
            "labels/kinetics_400_labels.csv": "0,yoga",
        },
    )
    plan = plan_protocols(no_videos("kinetics400"), [checkout])
    assert [video.key for video in plan.missing] == ["c1O_FxuKCI0_000110_000120", "zzzzzzzzzzz"]


def test_a_folder_data_set_reads_its_own_lists(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", ["jump/clip 7.mp4", "run/clip 7.mp4", "run/b.mp4"])
    write_tree(
        tmp_path / "splits",
        {
            "train.txt": "jump/clip 7.mp4 1\nrun/clip 7.mp4 0\n",
            "val.txt": "run/b.mp4 0\n",
            "classes.txt": "run\njump\n",
        },
    )
    plan = plan_protocols(open_source("folder", videos, None), [tmp_path / "splits"])
    manifests = by_path(plan)
    assert list(manifests) == ["fully_supervised/train", "fully_supervised/val"]
    assert manifests["fully_supervised/train"].rows == [
        PlannedRow("jump/clip 7", 1),
        PlannedRow("run/clip 7", 0),
    ]
    assert manifests["fully_supervised/train"].source.name == "train.txt"
    assert plan.classes == ["run", "jump"]
    assert (plan.num_audited, plan.num_not_audited) == (3, 0)


def test_the_names_in_a_list_that_is_not_utf8_are_found_and_storable(tmp_path: Path) -> None:
    write_tree(
        tmp_path / "splits", {"val.txt": b"a/\xe9.mp4 0\nb/\xe9.mp4 0\n", "classes.txt": "a"}
    )
    (tmp_path / "videos/a").mkdir(parents=True)
    Path(str(tmp_path / "videos/a/\udce9.mp4")).write_bytes(b"x")
    plan = plan_protocols(open_source("folder", tmp_path / "videos", None), [tmp_path / "splits"])
    manifest = by_path(plan)["fully_supervised/val"]
    assert (manifest.rows, manifest.missing) == ([PlannedRow("a/%E9", 0)], ["b/%E9.mp4"])
    assert plan.missing == [MissingVideo("b/%E9", None)]


def test_a_folder_data_set_without_a_class_file_is_named_by_its_folders(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos", ["jump/a.mp4", "run/b.mp4"])
    write_tree(tmp_path / "splits", {"val.txt": "run/b.mp4 0\njump/a.mp4 1\n"})
    plan = plan_protocols(open_source("folder", videos, None), [tmp_path / "splits"])
    assert (by_path(plan)["fully_supervised/val"].classes.names, plan.classes) == (
        ["run", "jump"],
        ["jump", "run"],
    )


def test_each_kinetics_600_split_has_its_own_class_file(tmp_path: Path) -> None:
    lists = {
        f"datasets_splits/k600_splits/ZS_split{i}_K600_eval.txt": f"test/c1O_FxuKCI{i}.mp4 0"
        for i in (1, 2, 3)
    }
    classes = {f"labels/ZS_split{i}_K600.csv": f"0,class {i}" for i in (1, 2, 3)}
    plan = plan_protocols(no_videos("kinetics600"), [write_tree(tmp_path, lists | classes)])
    assert {path: manifest.classes.names for path, manifest in by_path(plan).items()} == {
        f"zero_shot/split{i}": [f"class {i}"] for i in (1, 2, 3)
    }


def test_the_official_json_of_ssv2_comes_before_the_validation_list(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "a/mine.json": '[{"id": "7", "template": "Closing [something]"}]',
            "s/datasets_splits/ssv2_splits/validation.txt": "7.webm 1\n8.webm 0\n",
            "s/labels/ssv2_labels.csv": 'id,name\n0,"Opening something"\n1,"Closing something"\n',
        },
    )
    source = open_source("ssv2", write_videos(tmp_path / "v", ["7.webm"]), tmp_path / "a")
    plan = plan_protocols(source, [tmp_path / "s"])
    manifests = by_path(plan)
    assert manifests["fully_supervised/val"].source.name == "official mine.json"
    assert manifests["fully_supervised/val"].rows == [PlannedRow("7", 1)]
    assert manifests["few_shot/val"].expected == 2
    assert plan.classes == ["Opening something", "Closing something"]


BIKE = {
    "lists/ucf101/ucf_full_for_zeroshot.txt": "\n".join(
        f"C{k}/v_C{k}_g01_c0{i} 99 {k}" for k in range(5) for i in (1, 2)
    ),
    "lists/ucf101/ucf_labels.csv": "id,name\r\n" + "\r\n".join(f"{k},C{k}" for k in range(5)),
}


def test_bike_halves_are_numpys_permutation_with_labels_by_ascending_id(tmp_path: Path) -> None:
    manifests = by_path(plan_protocols(no_videos("ucf101"), [write_tree(tmp_path, BIKE)]))
    assert list(manifests) == [f"zero_shot/half_{seed}" for seed in range(10)]
    for seed in range(10):
        np.random.seed(seed)
        chosen = sorted(np.random.permutation(5)[: 5 // 2].tolist())
        manifest = manifests[f"zero_shot/half_{seed}"]
        assert manifest.classes.names == [f"C{k}" for k in chosen]
        assert manifest.missing == [f"C{k}/v_C{k}_g01_c0{i}" for k in chosen for i in (1, 2)]
        assert (manifest.spec.seed, manifest.expected, manifest.spec.split) == (seed, 4, "val")


def test_bike_halves_renumber_the_labels_of_their_rows(tmp_path: Path) -> None:
    videos = write_videos(
        tmp_path / "v", [f"C{k}/v_C{k}_g01_c0{i}.avi" for k in range(5) for i in (1, 2)]
    )
    plan = plan_protocols(open_source("ucf101", videos, None), [write_tree(tmp_path / "s", BIKE)])
    for manifest in plan.manifests:
        assert [(row.key[2:4], row.label) for row in manifest.rows] == [
            (name, label) for label, name in enumerate(manifest.classes.names) for _ in (1, 2)
        ]


UCF_OFFICIAL = {
    "classInd.txt": "1 Archery\n2 Diving\n3 Punch\n4 RopeClimbing\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\nPunch/v_Punch_g08_c01.avi 3\n"
    "Diving/v_Diving_g08_c01.avi 2\n",
    "testlist01.txt": "RopeClimbing/v_RopeClimbing_g01_c01.avi\nDiving/v_Diving_g01_c01.avi\n",
    "trainlist02.txt": "Punch/v_Punch_g01_c01.avi 3\n",
}


def official_ucf(tmp_path: Path) -> Source:
    write_videos(tmp_path / "videos", ["x.avi"])
    return open_source(
        "ucf101", tmp_path / "videos", write_tree(tmp_path / "official", UCF_OFFICIAL)
    )


def test_fully_supervised_is_the_official_split_in_the_order_of_the_class_file(
    tmp_path: Path,
) -> None:
    csv = "0,Punch\n1,Rope Climbing\n2,diving\n3,Archery"
    checkout = ucf_checkout(
        tmp_path / "splits", {"ucf_splits/val1.txt": "v_Archery_g01_c01.avi 3\n"}, csv
    )
    write_videos(tmp_path / "videos", ["v_Archery_g08_c01.avi", "v_Diving_g08_c01.avi"])
    manifests = by_path(plan_protocols(official_ucf(tmp_path), [checkout]))
    train = manifests["fully_supervised/train"]
    assert train.rows == [PlannedRow("v_Archery_g08_c01", 3), PlannedRow("v_Diving_g08_c01", 2)]
    assert train.classes.names == ["Punch", "Rope Climbing", "diving", "Archery"]
    assert train.source.name == "official trainlist01.txt"
    assert "fully_supervised/train_split2" in manifests


def test_without_a_class_file_official_lists_have_the_official_order(tmp_path: Path) -> None:
    manifest = by_path(plan_protocols(official_ucf(tmp_path), []))["fully_supervised/train"]
    assert (manifest.classes.names, manifest.classes.labels) == (
        ["Archery", "Diving", "Punch", "RopeClimbing"],
        "official",
    )


def test_a_class_file_that_lacks_an_official_class_is_not_used_for_official_lists(
    tmp_path: Path,
) -> None:
    checkout = ucf_checkout(
        tmp_path / "splits", {"ucf_splits/val1.txt": "v_Archery_g01_c01.avi 0\n"}
    )
    manifest = by_path(plan_protocols(official_ucf(tmp_path), [checkout]))["fully_supervised/val"]
    assert manifest.classes.names == ["Archery", "Diving", "Punch", "RopeClimbing"]


def test_missing_videos_include_those_of_annotation_files_alone(tmp_path: Path) -> None:
    checkout = ucf_checkout(
        tmp_path / "splits", {"ucf_splits/val1.txt": "v_Archery_g01_c01.avi 0\n"}
    )
    write_videos(tmp_path / "videos", ["v_diving_g01_c01.avi"])
    missing = plan_protocols(official_ucf(tmp_path), [checkout]).missing
    assert [video.key for video in missing] == [
        "v_Archery_g01_c01",
        "v_Archery_g08_c01",
        "v_Diving_g08_c01",
        "v_Punch_g01_c01",
        "v_Punch_g08_c01",
        "v_RopeClimbing_g01_c01",
    ]


def test_cross_dataset_maps_ucf_classes_to_the_shared_ones(tmp_path: Path) -> None:
    mapping = {"mapping/ucf_hmdb_mapping.txt": "shoot_bow -> x\npunch -> y\nclimb -> z"}
    manifests = by_path(
        plan_protocols(official_ucf(tmp_path), [write_tree(tmp_path / "splits", mapping)])
    )
    train, val = manifests["cross_dataset/train"], manifests["cross_dataset/val"]
    assert train.classes.names == val.classes.names == ["climb", "punch", "shoot_bow"]
    assert train.missing == ["Archery/v_Archery_g08_c01.avi", "Punch/v_Punch_g08_c01.avi"]
    assert val.missing == ["RopeClimbing/v_RopeClimbing_g01_c01.avi"]


def test_a_list_of_kinetics_comes_before_the_official_csv(tmp_path: Path) -> None:
    csv = "label,youtube_id,time_start,time_end\nyoga,c1O_FxuKCI0,0,10\nyoga,c1O_FxuKCI1,0,10\n"
    write_tree(
        tmp_path,
        {
            "a/val.csv": csv,
            "a/train.csv": csv,
            "s/datasets_splits/k600_splits/val.txt": "val/c1O_FxuKCI0.mp4 0\n",
            "s/labels/kinetics_600_labels.csv": "0,yoga",
        },
    )
    write_videos(tmp_path / "v", ["x.mp4"])
    manifests = by_path(
        plan_protocols(open_source("kinetics600", tmp_path / "v", tmp_path / "a"), [tmp_path / "s"])
    )
    assert {path: manifest.source.name for path, manifest in manifests.items()} == {
        "fully_supervised/val": "ViFi-CLIP datasets_splits/k600_splits/val.txt",
        "fully_supervised/train": "official train.csv",
    }
