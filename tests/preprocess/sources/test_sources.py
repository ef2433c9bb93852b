"""Test which files are videos, and which keys and classes they have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.protocols import plan_protocols
from preprocess.sources import DATASETS, open_source
from preprocess.sources.naming import storable, strip_extension, video_key, youtube_id
from shards.errors import ConfigError
from shards.format.names import fold_name
from tests.preprocess.trees import by_path, write_tree, write_videos
from tests.shared_data import shared_data


def test_all_video_extensions_are_found_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    names = ["a/1.avi", "a/2.MP4", "b/c/3.webm", "4.mkv", "5.mov", "6.m4v", "d/7.mpg"]
    write_videos(tmp_path, [*names, "a/notes.txt", "a/8.avi.part", "9", "a/.mp4"])
    assert sorted(
        video.relative_path for video in open_source("ucf101", tmp_path, None).videos
    ) == sorted(names)


def test_videos_are_sorted_by_the_bytes_of_their_keys(tmp_path: Path) -> None:
    write_videos(tmp_path, ["z/-a.avi", "a/é.avi", "m/Z.avi", "m/a.avi", "m/(.avi"])
    assert [video.key for video in open_source("hmdb51", tmp_path, None).videos] == [
        "(",
        "-a",
        "Z",
        "a",
        "é",
    ]


def test_a_video_knows_its_absolute_path_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path / "videos", {"Archery/v_Archery_g01_c01.avi": b"12345"})
    monkeypatch.chdir(tmp_path)
    video = open_source("ucf101", Path("videos"), None).videos[0]
    assert video.path == tmp_path / "videos/Archery/v_Archery_g01_c01.avi"
    assert video.path.is_absolute()
    assert video.num_bytes == 5


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    write_videos(tmp_path / "elsewhere", ["one.avi", "more/two.avi"])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/one.avi").symlink_to(tmp_path / "elsewhere/one.avi")
    (tmp_path / "videos/more").symlink_to(tmp_path / "elsewhere/more")
    assert [video.key for video in open_source("ssv2", tmp_path / "videos", None).videos] == [
        "one",
        "two",
    ]


def test_a_link_to_a_folder_above_itself_ends_the_walk(tmp_path: Path) -> None:
    write_videos(tmp_path, ["a/one.avi"])
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert [video.key for video in open_source("ssv2", tmp_path, None).videos] == ["one"]


def test_broken_and_circular_links_are_unreadable_videos(tmp_path: Path) -> None:
    write_videos(tmp_path, ["one.avi"])
    (tmp_path / "two.avi").symlink_to(tmp_path / "gone.avi")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    videos = open_source("ssv2", tmp_path, None).videos
    assert [(video.key, video.num_bytes) for video in videos] == [
        ("loop", 0),
        ("one", 10),
        ("two", 0),
    ]


def test_class_folders_that_lists_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    write_videos(tmp_path, ["C/a.avi", "C++/b.avi", "C#/c.avi"])
    assert {video.class_name for video in open_source("folder", tmp_path, None).videos} == {
        "C",
        "C++",
        "C#",
    }
    write_videos(tmp_path, ["up_down/d.avi", "up-down/e.avi"])
    with pytest.raises(ConfigError, match=r"'up-down' and 'up_down' differ only in case, spaces"):
        open_source("folder", tmp_path, None)


def test_two_files_of_one_key_are_refused_and_both_named(tmp_path: Path) -> None:
    write_videos(tmp_path, ["a/clip.avi", "b/clip.mp4"])
    with pytest.raises(
        ConfigError, match=r"a/clip\.avi and b/clip\.mp4 have the same key, clip; remove"
    ):
        open_source("ucf101", tmp_path, None)


def test_in_a_folder_data_set_the_same_file_name_may_repeat(tmp_path: Path) -> None:
    write_videos(tmp_path, ["jump/clip 7.mp4", "run/clip 7.mp4"])
    source = open_source("folder", tmp_path, None)
    assert [(video.key, video.class_name) for video in source.videos] == [
        ("jump/clip 7", "jump"),
        ("run/clip 7", "run"),
    ]


def test_a_missing_folder_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"nowhere: no such folder; put the ssv2 videos there or give --videos DIR",
    ):
        open_source("ssv2", tmp_path / "nowhere", None)


def test_a_folder_without_videos_is_named_with_the_extensions(tmp_path: Path) -> None:
    write_tree(tmp_path, {"read.me": ""})
    with pytest.raises(ConfigError, match=r"holds no video file \(\.avi \.mp4 .*--videos DIR"):
        open_source("ssv2", tmp_path, None)


def test_a_file_given_as_folder_is_refused(tmp_path: Path) -> None:
    write_videos(tmp_path, ["one.avi"])
    with pytest.raises(ConfigError, match=r"one\.avi: is not a folder"):
        open_source("ssv2", tmp_path / "one.avi", None)


def test_an_unknown_data_set_names_its_nearest_neighbour(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--dataset ucf-101: unknown data set; did you mean ucf101\?"
    ):
        open_source("ucf-101", tmp_path, None)


def test_a_folder_data_set_may_bring_its_own_split(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", ["run/a 1.mp4", "run/b.mp4", "jump/c.webm"])
    write_tree(
        tmp_path / "lists", {"train.txt": "run/a 1.mp4\r\njump/c.webm\n", "val.txt": "run/b.mp4"}
    )
    annotations = open_source("folder", tmp_path / "videos", tmp_path / "lists").annotations
    assert annotations is not None
    assert annotations.classes == ["jump", "run"]
    assert {split.split: split.names for split in annotations.lists} == {
        "train": ["run/a 1.mp4", "jump/c.webm"],
        "val": ["run/b.mp4"],
    }
    plan = by_path(
        plan_protocols(open_source("folder", tmp_path / "videos", tmp_path / "lists"), [])
    )
    assert [row.key for row in plan["few_shot/val"].rows] == ["run/b"]


def test_a_line_of_an_own_split_without_a_class_folder_is_named(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", ["run/a.mp4"])
    write_tree(tmp_path / "lists", {"train.txt": "run/a.mp4\na.mp4\n"})
    with pytest.raises(
        ConfigError, match=r"train\.txt: line 2: 'a\.mp4' is not `class/video\.mp4`"
    ):
        open_source("folder", tmp_path / "videos", tmp_path / "lists")


def test_an_annotation_folder_without_a_split_names_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no annotation file there .* expected train\.txt and val\.txt"
    ):
        open_source("demo", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("dataset", "name", "key"),
    [
        ("ucf101", "HandstandPushups/v_HandStandPushups_g01_c01.avi", "v_HandStandPushups_g01_c01"),
        ("hmdb51", "golf/(HQ)_#1_&_[x]!_f_cm_np1_le_med_2.avi", "(HQ)_#1_&_[x]!_f_cm_np1_le_med_2"),
        ("ssv2", "166766.webm", "166766"),
        ("kinetics400", "val/-0wR5_VB-WP_000417_000427.mp4", "-0wR5_VB-WP_000417_000427"),
        ("folder", "jump/clip 7.mp4", "jump/clip 7"),
        ("hmdb51", "a/Mr._Smith_100%.x.avi", "Mr%2E_Smith_100%25%2Ex"),
        ("hmdb51", "BIKE/Mr._Smith", "Mr%2E_Smith"),
        ("ssv2", "tab\there\x7f.mp4", "tab%09here%7F"),
        ("folder", "caf\udce9/ü.mp4", "caf%E9/ü"),
    ],
)
def test_a_key_is_the_name_with_only_four_things_encoded(dataset: str, name: str, key: str) -> None:
    assert DATASETS[dataset].key_of(name) == key


@given(
    st.lists(
        st.text(st.characters(exclude_characters="/"), min_size=1),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_different_names_have_different_keys(names: list[str]) -> None:
    first, second = (video_key(f"{name}.avi") for name in names)
    assert first != second
    assert not set(first) & set(".\n\t\r\0")


def test_a_name_that_is_not_utf8_is_storable_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/cl\xffip.avi")).write_bytes(b"x")
    video = open_source("folder", tmp_path, None).videos[0]
    assert (video.key, video.relative_path, video.class_name) == (
        "caf%E9/cl%FFip",
        "caf%E9/cl%FFip.avi",
        "caf%E9",
    )
    assert video.path.read_bytes() == b"x"


def test_storable_text_keeps_everything_that_is_utf8() -> None:
    assert storable("100% é.avi") == "100% é.avi"


def test_only_a_video_extension_is_cut() -> None:
    assert [strip_extension(name) for name in ("a.avi", "a.AVI", "a.b", "a.avi.avi", "a")] == [
        "a",
        "a",
        "a.b",
        "a.avi",
        "a",
    ]


@pytest.mark.parametrize(
    ("key", "video_id"),
    [
        ("zkXOcxGnUhs_000025_000035", "zkXOcxGnUhs"),
        ("-_-_-_-_-_-_000001_000011", "-_-_-_-_-_-"),
        ("__12_34_56__12_34", "__12_34_56_"),
        ("c1O_FxuKCI0", "c1O_FxuKCI0"),
        ("making_a_cake", None),
        ("c1O_FxuKCI0_000001", None),
    ],
)
def test_a_youtube_id_is_read_from_the_right(key: str, video_id: str | None) -> None:
    assert youtube_id(key) == video_id


def test_class_names_are_compared_without_case_spaces_underscores_and_hyphens() -> None:
    assert fold_name("Putting something on a_surface") == fold_name(
        "putting something on-a surface"
    )
    assert fold_name("C++") != fold_name("C#")
    assert fold_name("HandStandPushups") == fold_name("Handstand Pushups")
    assert fold_name("passing American football (in game)") != fold_name(
        "passing american football (not in game)"
    )


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("abseiling/ID.mp4", "abseiling"),
        ("by_class/arm wrestling/ID.mp4", "arm wrestling"),
        ("train/abseiling/ID.mp4", "abseiling"),
        ("val/ID.mp4", None),
        ("kinetics/val_256/ID.mp4", None),
        ("Test/ID.mp4", None),
        ("ID.mp4", None),
    ],
)
def test_the_class_folder_of_kinetics_is_never_a_split_folder(
    tmp_path: Path, name: str, class_name: str
) -> None:
    write_videos(tmp_path, [name])
    assert open_source("kinetics400", tmp_path, None).videos[0].class_name == class_name


def test_in_a_folder_data_set_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_videos(tmp_path, ["train/a.mp4", "b.mp4"])
    assert [video.class_name for video in open_source("folder", tmp_path, None).videos] == [
        None,
        "train",
    ]


def test_ssv2_has_no_class_folders(tmp_path: Path) -> None:
    write_videos(tmp_path, ["unlabelled/1.webm"])
    assert open_source("ssv2", tmp_path, None).videos[0].class_name is None


def test_the_sample_clips_are_found_in_their_own_layouts() -> None:
    clips = shared_data() / "clips"
    sizes = {
        name: len(open_source(name, clips / name, None).videos)
        for name in DATASETS
        if (clips / name).is_dir()
    }
    assert sizes == {"ucf101": 49, "hmdb51": 7, "kinetics400": 10, "ssv2": 5}
    hmdb = {video.class_name for video in open_source("hmdb51", clips / "hmdb51", None).videos}
    assert hmdb == {"shoot_bow", "golf", "swing_baseball", "wave", "cartwheel", "climb"}
    odd = open_source("folder", clips / "odd", None)
    assert all(video.class_name is None for video in odd.videos)
