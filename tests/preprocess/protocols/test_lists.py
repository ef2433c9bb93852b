"""Test reading lists and class files, and finding the video and the class of a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.protocols.lists import read_class_file, read_split_list
from preprocess.protocols.lookup import ClassFinder, VideoIndex
from preprocess.sources import DATASETS, Source, SourceVideo, open_source
from shards.errors import ConfigError
from tests.preprocess.trees import hmdb_name, write_tree, write_videos
from tests.shared_data import shared_data


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    return write_tree(tmp_path, {name: content}) / name


def index_of(root: Path, dataset: str, names: list[str]) -> VideoIndex:
    return VideoIndex(open_source(dataset, write_videos(root, names), None))


def test_a_line_is_split_at_its_last_space(tmp_path: Path) -> None:
    split_list = read_split_list(written(tmp_path, "a.txt", "jump/clip 7.mp4 0\nb.mp4 12 \n"))
    assert (split_list.names, split_list.labels) == (["jump/clip 7.mp4", "b.mp4"], [0, 12])


def test_line_ends_marks_and_a_missing_last_newline_do_not_matter(tmp_path: Path) -> None:
    split_list = read_split_list(
        written(tmp_path, "a.txt", "\ufeffa.avi 0\r\n\r\nb.avi 1".encode())
    )
    assert (split_list.names, split_list.labels, split_list.line_numbers) == (
        ["a.avi", "b.avi"],
        [0, 1],
        [1, 3],
    )


def test_a_bike_line_has_a_frame_count_between(tmp_path: Path) -> None:
    split_list = read_split_list(
        written(tmp_path, "a.txt", "Archery/v_Archery_g01_c01 164 2"), num_columns=3
    )
    assert (split_list.names, split_list.labels) == (["Archery/v_Archery_g01_c01"], [2])


def test_lines_of_another_form_are_counted_and_the_first_is_known(tmp_path: Path) -> None:
    split_list = read_split_list(
        written(tmp_path, "a.txt", "a.avi 0\n# note\nb.avi one\nc.avi 1\n")
    )
    assert (split_list.names, split_list.num_malformed, split_list.first_malformed) == (
        ["a.avi", "c.avi"],
        2,
        2,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "",
            r"a\.txt: no line has the form `path label` \(the file is empty\); get the list again",
        ),
        ("\r\n\n", r"the file is empty"),
        ("\na.avi\nb.avi\n", r"no line has the form `path label` \(line 2 is 'a\.avi'\)"),
    ],
)
def test_a_list_without_a_usable_line_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_split_list(written(tmp_path, "a.txt", content))


def test_a_missing_split_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.txt: cannot be read: No such file"):
        read_split_list(tmp_path / "a.txt")


def test_class_names_may_be_quoted_and_hold_commas_and_apostrophes(tmp_path: Path) -> None:
    text = (
        'id,name\r\n0,"Lifting something up, then letting it drop"\r\n'
        "1,Poking so it doesn't move\r\n2,no, quotes\r\n"
    )
    assert read_class_file(written(tmp_path, "a.csv", text)).names == [
        "Lifting something up, then letting it drop",
        "Poking so it doesn't move",
        "no, quotes",
    ]


def test_the_id_of_a_class_counts_not_its_line(tmp_path: Path) -> None:
    assert read_class_file(written(tmp_path, "a.csv", "id,label\n1,b\n0,a\n")).names == ["a", "b"]
    assert read_class_file(written(tmp_path, "b.csv", "0,a\n1,b")).names == ["a", "b"]


def test_a_text_class_file_has_one_name_a_line_and_a_mapping_its_sorted_keys(
    tmp_path: Path,
) -> None:
    assert read_class_file(written(tmp_path, "classes.txt", "run fast\njump\n")).names == [
        "run fast",
        "jump",
    ]
    assert read_class_file(
        written(tmp_path, "x_mapping.txt", "walk -> Run  \ngolf -> Bunker Shot")
    ).names == [
        "golf",
        "walk",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\n", r"a\.csv: holds no class name"),
        ("id,name\n0,a\n2,b\n", r"a\.csv: 2 names, but no id 1; ids must be 0 to 1"),
        ("id,name\n0,a\n0,b\n", r"a\.csv: id 0 occurs twice"),
        ("id,name\n0,a\nx,b\n", r"a\.csv: 'x,b' is not `id,name`"),
        ("id,name\n0\n", r"a\.csv: '0' is not `id,name`"),
    ],
)
def test_a_damaged_class_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_class_file(written(tmp_path, "a.csv", text))


@pytest.mark.parametrize(
    ("dataset", "file", "line"),
    [
        ("ucf101", "Archery/v_Archery_g01_c01.avi", "v_Archery_g01_c01.avi"),
        ("ucf101", "Archery/v_Archery_g01_c01.avi", "Archery/v_Archery_g01_c01"),
        (
            "ucf101",
            "X/v_HandstandPushups_g01_c01.avi",
            "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        ),
        ("ssv2", "20bn/74225.mp4", "74225.webm"),
        ("kinetics400", "abseiling/0wR5jVB-WPk.mkv", "val/0wR5jVB-WPk_000417_000427.mp4"),
        ("kinetics400", "val/-_R5jVB-_Pk_000417_000427.mp4", "-_R5jVB-_Pk.mp4"),
        ("kinetics600", "val/0wR5jVB-WPk_000417_000427.mp4", "train/0wR5jVB-WPk_000417_000427.mp4"),
        ("folder", "jump/clip 7.mp4", "jump/clip 7.mp4"),
        ("folder", "jump/clip 7.mp4", "jump/clip 7.avi"),
        ("hmdb51", "a/Mr._X!.avi", "Mr._X!.avi"),
    ],
)
def test_a_line_finds_its_video_in_another_layout(
    tmp_path: Path, dataset: str, file: str, line: str
) -> None:
    video = index_of(tmp_path, dataset, [file]).find(line, where="list")
    assert video is not None
    assert video.relative_path == file


@pytest.mark.parametrize(
    ("dataset", "line"), [("ssv2", "7422.webm"), ("folder", "clip 7.mp4"), ("kinetics400", "x.mp4")]
)
def test_an_absent_video_is_no_error(tmp_path: Path, dataset: str, line: str) -> None:
    assert index_of(tmp_path, dataset, ["jump/74225.mp4"]).find(line, where="list") is None


def test_a_path_comes_before_every_other_look_up(tmp_path: Path) -> None:
    index = index_of(
        tmp_path,
        "kinetics400",
        ["a/0wR5jVB-WPk_000001_000011.mp4", "a/0wR5jVB-WPk_000020_000030.mp4"],
    )
    video = index.find("a/0wR5jVB-WPk_000020_000030.mp4", where="list")
    assert video is not None
    assert video.key == "0wR5jVB-WPk_000020_000030"


def test_a_list_line_that_matches_two_videos_is_refused(tmp_path: Path) -> None:
    index = index_of(
        tmp_path,
        "kinetics400",
        ["a/0wR5jVB-WPk_000001_000011.mp4", "b/0wR5jVB-WPk_000020_000030.mp4"],
    )
    with pytest.raises(
        ConfigError,
        match=r"val\.txt: line 3: 0wR5jVB-WPk\.mp4 means both "
        r"a/0wR5jVB-WPk_000001_000011\.mp4 and b/0wR5",
    ):
        index.find("0wR5jVB-WPk.mp4", where="val.txt: line 3")


def test_two_keys_that_differ_in_case_are_not_mixed_up(tmp_path: Path) -> None:
    index = index_of(tmp_path, "ssv2", ["Clip.avi", "clip.avi"])
    video = index.find("clip.avi", where="list")
    assert video is not None
    assert video.key == "clip"
    with pytest.raises(ConfigError, match=r"CLIP\.avi means both Clip\.avi and clip\.avi"):
        index.find("CLIP.avi", where="list")


HMDB_CLASSES = [
    "kick ball",
    "kick",
    "sword",
    "draw sword",
    "sword exercise",
    "climb",
    "climb stairs",
]


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        (hmdb_name("kick_ball", 1), "kick_ball"),
        (hmdb_name("kick", 1), "kick"),
        (hmdb_name("draw_sword", 1), "draw_sword"),
        (hmdb_name("sword_exercise", 1), "sword_exercise"),
        ("kick_f_cm_np1_fr_med_0_climb_stairs_u_nm_np2_le_goo_1.avi", "climb_stairs"),
        ("How_to_kick_kick_f_cm_np1_x_sword_h_nm_np10_fr_bad_0.avi", "sword"),
        ("a_kickball_f_cm_np1_le_med_2.avi", None),
        ("kick_is_not_last.avi", None),
    ],
)
def test_the_class_of_an_hmdb_name_is_its_last_whole_token(
    name: str, class_name: str | None
) -> None:
    finder = ClassFinder(Source(DATASETS["hmdb51"], Path("/nowhere"), [], None), HMDB_CLASSES)
    assert finder.class_of(name.removesuffix(".avi"), None) == class_name


def test_the_class_of_a_ucf_name_needs_a_known_class() -> None:
    finder = ClassFinder(
        Source(DATASETS["ucf101"], Path("/nowhere"), [], None), ["Handstand Pushups"]
    )
    assert finder.class_of("v_HandStandPushups_g01_c01", None) == "HandStandPushups"
    assert finder.class_of("v_Archery_g01_c01", None) is None


def test_a_folder_that_is_not_a_class_is_ignored() -> None:
    finder = ClassFinder(Source(DATASETS["ssv2"], Path("/nowhere"), [], None), ["jump"])
    video = SourceVideo("a", Path("/nowhere/part_1/a.avi"), "part_1/a.avi", 1, "part_1")
    assert finder.class_of("a", video) is None


def test_all_official_hmdb_names_give_their_class() -> None:
    data = shared_data()
    source = open_source("hmdb51", data / "clips/hmdb51", data / "splits/official/hmdb51")
    assert source.annotations is not None
    finder = ClassFinder(
        Source(DATASETS["hmdb51"], source.root, [], None), source.annotations.classes
    )
    told = {key: finder.class_of(key, None) for key in source.annotations.class_of}
    assert told == source.annotations.class_of
    assert len(told) == 6766
