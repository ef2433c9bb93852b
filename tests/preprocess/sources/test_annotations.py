"""Test reading the official annotation files of each data set, in their published forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.sources import Annotations, open_source
from preprocess.sources.hmdb51 import read_annotations as read_hmdb51
from preprocess.sources.kinetics import read_annotations as read_kinetics
from preprocess.sources.ssv2 import read_annotations as read_ssv2
from preprocess.sources.ucf101 import read_annotations as read_ucf101
from shards.errors import ConfigError
from tests.preprocess.trees import write_tree, write_videos
from tests.shared_data import shared_data

UCF = {
    "classInd.txt": "1 Archery\r\n2 HandstandPushups\r\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n",
    "testlist01.txt": "Archery/v_Archery_g01_c01.avi\r\n"
    "HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n",
}
HMDB = {
    "kick_test_split1.txt": "a_kick_f_cm_np1_le_med_0.avi 1 \nb_kick_f_cm_np1_le_med_1.avi 2 \n"
    "c_kick_f_cm_np1_le_med_2.avi 0 \n",
    "kick_ball_test_split1.txt": "a_kick_ball_f_cm_np1_le_med_0.avi 2 \n"
    "b_kick_ball_f_cm_np1_le_med_1.avi 1 \n",
    "kick_test_split2.txt": "a_kick_f_cm_np1_le_med_0.avi 2 \n",
    "class_list.txt": "kick\nkick_ball\n",
}
SSV2_VALIDATION = [
    {
        "id": "74225",
        "label": "spinning cube",
        "template": "Spinning [something] so it stops",
        "placeholders": ["cube"],
    },
    {
        "id": "2",
        "label": "closing drawer",
        "template": "Closing [something]",
        "placeholders": ["drawer"],
    },
]
SSV2 = {
    "something-something-v2-labels.json": json.dumps(
        {"Spinning something so it stops": "1", "Closing something": "0", "Opening something": "10"}
    ),
    "something-something-v2-validation.json": json.dumps(SSV2_VALIDATION),
}
KINETICS_HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def lists_of(annotations: Annotations) -> dict[tuple[int, str], list[tuple[str, str]]]:
    return {
        (rows.number, rows.split): list(zip(rows.names, rows.classes, strict=True))
        for rows in annotations.lists
    }


def test_ucf_classes_come_from_the_folder_of_a_line_since_file_names_differ_in_case(
    tmp_path: Path,
) -> None:
    annotations = read_ucf101(write_tree(tmp_path, UCF))
    assert annotations.classes == ["Archery", "HandstandPushups"]
    assert annotations.official_class("v_HandStandPushups_g01_c01") == "HandstandPushups"
    assert lists_of(annotations)[1, "val"] == [
        ("Archery/v_Archery_g01_c01.avi", "Archery"),
        ("HandstandPushups/v_HandStandPushups_g01_c01.avi", "HandstandPushups"),
    ]
    assert [rows.source for rows in annotations.lists] == [
        "official testlist01.txt",
        "official trainlist01.txt",
    ]


def test_a_ucf_line_without_a_known_class_folder_names_file_and_line(tmp_path: Path) -> None:
    write_tree(tmp_path, UCF | {"trainlist02.txt": "Archery/a.avi 1\nv_Archery_g01_c01.avi 1\n"})
    with pytest.raises(
        ConfigError, match=r"trainlist02\.txt: line 2: 'v_Archery_g01_c01\.avi' is not `Class/file"
    ):
        read_ucf101(tmp_path)


def test_an_empty_ucf_class_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classInd\.txt: holds no line"):
        read_ucf101(write_tree(tmp_path, {"classInd.txt": ""}))


def test_hmdb_flags_give_the_splits_and_zero_belongs_to_none(tmp_path: Path) -> None:
    annotations = read_hmdb51(write_tree(tmp_path, HMDB))
    assert annotations.classes == ["kick", "kick_ball"]
    lists = lists_of(annotations)
    assert lists[1, "train"] == [
        ("a_kick_f_cm_np1_le_med_0.avi", "kick"),
        ("b_kick_ball_f_cm_np1_le_med_1.avi", "kick_ball"),
    ]
    assert [name for name, _ in lists[1, "val"]] == [
        "b_kick_f_cm_np1_le_med_1.avi",
        "a_kick_ball_f_cm_np1_le_med_0.avi",
    ]
    assert lists[2, "val"] == [("a_kick_f_cm_np1_le_med_0.avi", "kick")]
    assert annotations.official_class("c_kick_f_cm_np1_le_med_2") == "kick"


def test_an_unknown_hmdb_flag_names_file_and_line(tmp_path: Path) -> None:
    write_tree(tmp_path, {"kick_test_split1.txt": "a.avi 1 \nb.avi 3 \n"})
    with pytest.raises(
        ConfigError, match=r"kick_test_split1\.txt: line 2: 'b\.avi 3 ' is not `file\.avi flag`"
    ):
        read_hmdb51(tmp_path)


def test_ssv2_templates_lose_their_brackets_and_ids_give_the_order(tmp_path: Path) -> None:
    annotations = read_ssv2(write_tree(tmp_path, SSV2))
    assert annotations.classes == [
        "Closing something",
        "Spinning something so it stops",
        "Opening something",
    ]
    assert lists_of(annotations) == {
        (1, "val"): [("74225", "Spinning something so it stops"), ("2", "Closing something")]
    }


def test_a_single_ssv2_json_of_any_name_is_a_validation_list(tmp_path: Path) -> None:
    write_tree(tmp_path, {"mine.json": json.dumps(SSV2_VALIDATION), "other.json": "{}"})
    annotations = read_ssv2(tmp_path)
    assert annotations.classes == ["Closing something", "Spinning something so it stops"]
    assert [(rows.split, rows.source) for rows in annotations.lists] == [
        ("val", "official mine.json")
    ]


def test_two_ssv2_lists_without_official_names_are_refused(tmp_path: Path) -> None:
    write_tree(
        tmp_path, {"a.json": json.dumps(SSV2_VALIDATION), "b.json": json.dumps(SSV2_VALIDATION)}
    )
    with pytest.raises(
        ConfigError, match=r"holds a\.json and b\.json, both lists of videos; name them"
    ):
        read_ssv2(tmp_path)


def test_an_ssv2_template_outside_the_labels_is_refused(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        SSV2
        | {"something-something-v2-train.json": '[{"id": "1", "template": "Eating [something]"}]'},
    )
    with pytest.raises(
        ConfigError,
        match=r"v2-train\.json: the template 'Eating something' is not in .*labels\.json",
    ):
        read_ssv2(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels.json": "{"}, r"labels\.json: is not JSON"),
        ({"labels.json": '{"a": "x"}'}, r"labels\.json: is not an object"),
        ({"validation.json": '[{"id": "1"}]'}, r"validation\.json: is not a list of"),
    ],
)
def test_a_damaged_ssv2_file_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_ssv2(write_tree(tmp_path, files))


def test_kinetics_rows_get_the_six_digit_file_name(tmp_path: Path) -> None:
    text = (
        KINETICS_HEADER
        + '"playing ""x"", loudly",-a_b-c_d-e_,417,427,val,0\nyoga,c1O_FxuKCI0,0.0,10.0,val,0\n'
    )
    annotations = read_kinetics(write_tree(tmp_path, {"kinetics-400_val.csv": text}), release="400")
    assert annotations.lists[0].names == ["-a_b-c_d-e__000417_000427", "c1O_FxuKCI0_000000_000010"]
    assert annotations.classes == ['playing "x", loudly', "yoga"]
    assert annotations.official_class("c1O_FxuKCI0") == "yoga"
    assert annotations.official_class("c1O_FxuKCI0_000300_000310") == "yoga"
    assert annotations.official_class("abseiling_k400") is None


def test_a_youtube_id_with_two_classes_needs_its_times(tmp_path: Path) -> None:
    text = KINETICS_HEADER + "yoga,c1O_FxuKCI0,0,10,val,0\nskiing,c1O_FxuKCI0,50,60,val,0\n"
    annotations = read_kinetics(write_tree(tmp_path, {"val.csv": text}), release="400")
    assert annotations.official_class("c1O_FxuKCI0_000050_000060") == "skiing"
    assert annotations.official_class("c1O_FxuKCI0") is None


def test_the_csv_of_another_kinetics_release_is_left_out(tmp_path: Path) -> None:
    files = {
        f"kinetics-{n}_val.csv": KINETICS_HEADER + f"class {n},c1O_FxuKCI0,0,10,val,0\n"
        for n in (400, 600)
    }
    write_tree(tmp_path, files)
    assert read_kinetics(tmp_path, release="600").classes == ["class 600"]
    assert read_kinetics(tmp_path, release="400").classes == ["class 400"]


def test_a_row_without_times_keeps_the_bare_id(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.csv": KINETICS_HEADER + "yoga,c1O_FxuKCI0,,,train,0\n"})
    assert read_kinetics(tmp_path, release="400").lists[0].names == ["c1O_FxuKCI0"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"val.csv": "label,id\n"},
            r"val\.csv: has no column youtube_id; expected label,youtube_id,time_start",
        ),
        ({"val.csv": KINETICS_HEADER}, r"val\.csv: holds no row with a label"),
        (
            {
                "val.csv": KINETICS_HEADER + "a,c1O_FxuKCI0,0,10,val,0\n",
                "validate.csv": KINETICS_HEADER + "a,c1O_FxuKCI0,0,10,val,0\n",
            },
            r"holds val\.csv and validate\.csv, both val lists",
        ),
        (
            {
                "train.csv": KINETICS_HEADER + "tai chi,c1O_FxuKCI0,0,10,val,0\n",
                "val.csv": KINETICS_HEADER + "Tai_Chi,c1O_FxuKCI1,0,10,val,0\n",
            },
            r"spell one class 'tai chi' and 'Tai_Chi'; take both",
        ),
    ],
)
def test_an_unusable_kinetics_csv_is_named(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_kinetics(write_tree(tmp_path, files), release="400")


@pytest.mark.parametrize("below", ["", "ucfTrainTestlist", "annotations/ucfTrainTestlist"])
def test_annotations_are_found_up_to_two_levels_below(tmp_path: Path, below: str) -> None:
    write_tree(tmp_path / below, UCF)
    assert len(read_ucf101(tmp_path).classes) == 2


def test_annotations_three_levels_below_are_not_found(tmp_path: Path) -> None:
    write_tree(tmp_path / "a/b/c", UCF)
    with pytest.raises(
        ConfigError,
        match=r"no annotation file there or up to two levels below; expected classInd\.txt",
    ):
        read_ucf101(tmp_path)


def test_the_shallowest_annotation_files_win(tmp_path: Path) -> None:
    write_tree(tmp_path, UCF)
    write_tree(tmp_path / "older", {"classInd.txt": "1 Other\n"})
    assert read_ucf101(tmp_path).classes == ["Archery", "HandstandPushups"]


def test_one_annotation_file_in_two_folders_is_refused(tmp_path: Path) -> None:
    write_tree(
        tmp_path, {f"{folder}/{name}": text for folder in "ab" for name, text in HMDB.items()}
    )
    with pytest.raises(
        ConfigError, match=r"holds both .*/a/.* and .*/b/.*; give --annotations the folder of one"
    ):
        read_hmdb51(tmp_path)


@pytest.mark.parametrize("dataset", ["ucf101", "hmdb51", "ssv2", "kinetics400", "kinetics600"])
def test_a_folder_without_annotations_says_what_it_should_hold(
    tmp_path: Path, dataset: str
) -> None:
    write_videos(tmp_path / "videos", ["a.avi"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ConfigError,
        match=r"empty: no annotation file there .*expected .*; give .*--annotations DIR",
    ):
        open_source(dataset, tmp_path / "videos", tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; give --annotations"):
        open_source(dataset, tmp_path / "videos", tmp_path / "nowhere")


def test_the_official_class_comes_before_the_folder_and_its_spelling_is_kept(
    tmp_path: Path,
) -> None:
    write_tree(tmp_path / "lists", UCF)
    write_videos(
        tmp_path / "videos",
        ["Misc/v_Archery_g01_c01.avi", "handstand_pushups/extra.avi", "Misc/unknown.avi"],
    )
    source = open_source("ucf101", tmp_path / "videos", tmp_path / "lists")
    assert {video.key: video.class_name for video in source.videos} == {
        "v_Archery_g01_c01": "Archery",
        "extra": "HandstandPushups",
        "unknown": None,
    }


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {"val.csv": ("\ufeff" + KINETICS_HEADER + "yoga,c1O_FxuKCI0,0,10,val,0\n").encode()},
    )
    assert read_kinetics(tmp_path, release="400").classes == ["yoga"]


def test_the_real_official_files_have_their_published_sizes() -> None:
    official = shared_data() / "splits/official"
    ucf, hmdb = read_ucf101(official), read_hmdb51(official / "hmdb51")
    assert (len(ucf.classes), len(ucf.class_of)) == (101, 13320)
    assert {key: len(rows) for key, rows in lists_of(ucf).items()} == {
        (1, "train"): 9537,
        (2, "train"): 9586,
        (3, "train"): 9624,
        (1, "val"): 3783,
        (2, "val"): 3734,
        (3, "val"): 3696,
    }
    assert (len(hmdb.classes), len(hmdb.class_of)) == (51, 6766)
    assert {len(rows) for key, rows in lists_of(hmdb).items() if key[1] == "train"} == {51 * 70}
    assert {len(rows) for key, rows in lists_of(hmdb).items() if key[1] == "val"} == {51 * 30}


def test_the_real_ssv2_and_kinetics_files_are_read() -> None:
    data = shared_data()
    ssv2 = read_ssv2(data / "splits/official/ssv2")
    assert (len(ssv2.classes), len(ssv2.class_of)) == (174, 24777)
    assert ssv2.classes[57] == ssv2.official_class("166766")
    clips = read_ssv2(data / "clips/ssv2")
    assert clips.official_class("900411") == "Moving something away from the camera"
    kinetics = read_kinetics(data / "splits/official/kinetics", release="400")
    assert (len(kinetics.classes), len(kinetics.class_of)) == (400, 19906)
    assert kinetics.official_class("zkXOcxGnUhs_000025_000035") == "bungee jumping"
