"""Test the label audit: class files against the data set's own classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.protocols import ProtocolPlan, plan_protocols
from preprocess.sources import DATASETS, Source, open_source
from shards.errors import ConfigError
from tests.preprocess.trees import (
    by_path,
    hmdb_checkout,
    hmdb_name,
    no_videos,
    write_tree,
    write_videos,
)
from tests.shared_data import shared_data

CLASSES = ["golf", "kick", "kick_ball"]
SWAPPED = ["golf", "kick ball", "kick"]


def annotated(annotations: Path, videos: Path) -> Source:
    """A source without files that has annotations."""
    official = open_source("hmdb51", write_videos(videos, ["nothing.avi"]), annotations).annotations
    return Source(DATASETS["hmdb51"], videos, [], official)


def classes_of(plan: ProtocolPlan, path: str) -> tuple[list[str], str]:
    manifest = by_path(plan)[path]
    return manifest.classes.names, manifest.classes.labels


def test_class_names_that_differ_only_in_spelling_agree(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path, CLASSES, ["Golf", "Kick", "KICK-ball"])
    plan = plan_protocols(no_videos("hmdb51"), [checkout])
    assert classes_of(plan, "few_shot/val") == (["Golf", "Kick", "KICK-ball"], "csv")
    assert (plan.num_audited, plan.num_not_audited) == (6, 0)


def test_swapped_class_names_are_an_error_with_both_cures(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path, CLASSES, SWAPPED)
    with pytest.raises(ConfigError) as caught:
        plan_protocols(no_videos("hmdb51"), [checkout])
    message = str(caught.value)
    assert message == (
        f"{checkout}/labels/hmdb_51_labels.csv: the names of 2 classes disagree with the data set: "
        "kick, kick ball (id 1 is 'kick ball' there, its videos are 'kick'); take the data set's "
        "names with `--set labels=official`, or keep these to repeat published numbers with "
        "`--set labels=legacy`"
    )


def test_official_labels_take_the_name_of_the_lines(tmp_path: Path) -> None:
    plan = plan_protocols(
        no_videos("hmdb51"), [hmdb_checkout(tmp_path, CLASSES, SWAPPED)], labels="official"
    )
    assert classes_of(plan, "few_shot/val") == (CLASSES, "official")
    assert plan.classes == CLASSES


def test_legacy_labels_keep_the_class_file_and_are_stated(tmp_path: Path) -> None:
    plan = plan_protocols(
        no_videos("hmdb51"), [hmdb_checkout(tmp_path, CLASSES, SWAPPED)], labels="legacy"
    )
    assert classes_of(plan, "zero_shot/split1") == (SWAPPED, "legacy")
    assert plan.classes == SWAPPED


def test_an_unknown_way_to_read_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"labels=mine: unknown value; choose one of csv, official, legacy"
    ):
        plan_protocols(no_videos("hmdb51"), [tmp_path], labels="mine")


def test_an_id_with_two_official_classes_is_refused(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path, CLASSES, SWAPPED)
    path = checkout / "datasets_splits/hmdb_splits/val1.txt"
    path.write_text(path.read_text() + f"{hmdb_name('kick_ball', 9)} 1\n")
    with pytest.raises(
        ConfigError,
        match=r"label 1 has videos of two classes of the data set, 'kick' and 'kick_ball'",
    ):
        plan_protocols(no_videos("hmdb51"), [checkout], labels="official")


def test_official_names_that_would_occur_twice_are_refused(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path, ["golf", "kick"], ["golf", "kick ball", "kick"])
    with pytest.raises(
        ConfigError, match=r"two ids have the name 'kick', because the given lists do not name"
    ):
        plan_protocols(no_videos("hmdb51"), [checkout], labels="official")


def test_a_label_outside_the_class_file_names_list_line_label_and_count(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path, CLASSES, ["golf", "kick"])
    with pytest.raises(
        ConfigError,
        match=r"val1\.txt: line 5 has label 2, outside the 2 classes of .*hmdb_51_labels\.csv "
        r"\(0 to 1\); give the class file",
    ):
        plan_protocols(no_videos("hmdb51"), [checkout])


def test_a_negative_label_is_refused(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path, CLASSES, CLASSES)
    write_tree(checkout, {"datasets_splits/hmdb_splits/val2.txt": "a.avi 0\nb.avi -1\n"})
    with pytest.raises(ConfigError, match=r"val2\.txt: line 2 has label -1, outside the 3 classes"):
        plan_protocols(no_videos("hmdb51"), [checkout])


def test_list_lines_of_unknown_class_are_counted(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path, CLASSES, CLASSES)
    write_tree(checkout, {"datasets_splits/hmdb_splits/val2.txt": "a.avi 0\nb.avi 1\n"})
    plan = plan_protocols(no_videos("hmdb51"), [checkout])
    assert (plan.num_audited, plan.num_not_audited) == (6, 2)


def test_the_audit_uses_the_folder_of_a_video(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", ["yoga/0wR5jVB-WPk.mp4", "abseiling/c1O_FxuKCI0.mp4"])
    write_tree(
        tmp_path / "splits",
        {
            "datasets_splits/k400_splits/val.txt": (
                "val/0wR5jVB-WPk_000417_000427.mp4 0\nval/c1O_FxuKCI0.mp4 1\n"
            ),
            "labels/kinetics_400_labels.csv": "id,name\n0,abseiling\n1,yoga\n",
        },
    )
    source = open_source("kinetics400", tmp_path / "videos", None)
    with pytest.raises(
        ConfigError, match=r"the names of 2 classes disagree with the data set: abseiling, yoga \("
    ):
        plan_protocols(source, [tmp_path / "splits"])


def test_the_audit_prefers_annotation_files_to_the_folder(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", ["yoga/0wR5jVB-WPk.mp4"])
    header = "label,youtube_id,time_start,time_end\n"
    write_tree(
        tmp_path,
        {
            "lists/val.csv": header + "abseiling,0wR5jVB-WPk,417,427\nyoga,c1O_FxuKCI0,0,10\n",
            "splits/datasets_splits/k400_splits/val.txt": "val/0wR5jVB-WPk_000417_000427.mp4 0\n",
            "splits/labels/kinetics_400_labels.csv": "id,name\n0,abseiling\n1,yoga\n",
        },
    )
    plan = plan_protocols(
        open_source("kinetics400", tmp_path / "videos", tmp_path / "lists"), [tmp_path / "splits"]
    )
    assert (plan.num_audited, plan.num_not_audited) == (1, 0)


def test_a_list_without_a_class_file_gets_the_official_class_names(tmp_path: Path) -> None:
    checkout = hmdb_checkout(tmp_path / "splits", CLASSES, CLASSES)
    (checkout / "labels/hmdb_51_labels.csv").unlink()
    files = {
        f"{name}_test_split1.txt": f"{hmdb_name(name, 1)} 1 \n{hmdb_name(name, 2)} 2 \n"
        for name in CLASSES
    }
    source = annotated(write_tree(tmp_path / "official", files), tmp_path / "videos")
    plan = plan_protocols(source, [checkout])
    assert classes_of(plan, "few_shot/val") == (CLASSES, "official")
    with pytest.raises(
        ConfigError,
        match=r"val1\.txt: --splits holds no class file for it, and the class of a label is "
        "not known",
    ):
        plan_protocols(no_videos("hmdb51"), [checkout])


def test_the_published_hmdb_class_files_are_refused_for_exactly_four_classes() -> None:
    splits = shared_data() / "splits"
    for folder in (None, splits / "official"):
        source = open_source("hmdb51", shared_data() / "clips/hmdb51", folder)
        with pytest.raises(ConfigError) as caught:
            plan_protocols(source, [splits / "vificlip"])
        message = str(caught.value)
        assert (
            "4 classes disagree with the data set: kick, kick ball, sword, sword exercise ("
            in message
        )
        assert "\n" not in message
        for file in ("hmdb_51_labels.csv", "hmdb_51_base_labels.csv", "hmdb_51_novel_labels.csv"):
            assert file in message
        assert "`--set labels=official`" in message
        assert "`--set labels=legacy`" in message


def test_official_labels_repair_the_published_hmdb_class_files() -> None:
    splits = shared_data() / "splits"
    source = open_source("hmdb51", shared_data() / "clips/hmdb51", splits / "official")
    plan = plan_protocols(source, [splits / "vificlip"], labels="official")
    full, _ = classes_of(plan, "few_shot/val")
    assert [full[label] for label in (20, 21, 44, 45)] == [
        "kick",
        "kick_ball",
        "sword",
        "sword_exercise",
    ]
    assert [classes_of(plan, "base_to_novel/val_base")[0][label] for label in (19, 20)] == [
        "sword",
        "sword_exercise",
    ]
    assert [classes_of(plan, "base_to_novel/val_novel")[0][label] for label in (20, 21)] == [
        "kick",
        "kick_ball",
    ]
    assert plan.num_not_audited == 0
    legacy = plan_protocols(source, [splits / "vificlip"], labels="legacy")
    assert classes_of(legacy, "few_shot/val")[0][20] == "kick ball"


def test_the_correct_hmdb_class_file_is_used_before_the_wrong_one(
    tmp_path: Path,
) -> None:
    splits = shared_data() / "splits"
    name = "datasets_splits/hmdb_splits/val1.txt"
    write_tree(tmp_path, {name: (splits / "vificlip" / name).read_bytes()})
    source = open_source("hmdb51", shared_data() / "clips/hmdb51", None)
    plan = plan_protocols(source, [splits / "bdcclip", tmp_path])
    assert classes_of(plan, "few_shot/val")[0][20] == "kick"
    assert plan.num_audited == 1530


@pytest.mark.parametrize(
    ("dataset", "num_audited"), [("ucf101", 25859), ("ssv2", 49554), ("kinetics400", 39754)]
)
def test_the_other_published_class_files_agree(dataset: str, num_audited: int) -> None:
    data = shared_data()
    source = open_source(dataset, data / "clips" / dataset, data / "splits/official")
    assert plan_protocols(source, [data / "splits/vificlip"]).num_audited == num_audited


def test_class_names_of_bdc_clip_with_spaces_agree() -> None:
    data = shared_data()
    source = open_source("ucf101", data / "clips/ucf101", data / "splits/official")
    plan = plan_protocols(source, [data / "splits/bdcclip", data / "splits/vificlip"])
    assert classes_of(plan, "base_to_novel/val_novel")[0][0] == "Playing Violin"
    assert plan.classes[0] == "Apply Eye Makeup"
