"""Spellings of classes, and the names of videos."""

from __future__ import annotations

import pytest

from shards.format.names import fold_name, is_utf8, video_stem


def test_spellings_of_a_class_fold_to_one_and_other_signs_stay() -> None:
    assert {
        fold_name(name) for name in ("HandStandPushups", "Handstand Pushups", "handstand_push-ups")
    } == {"handstandpushups"}
    assert fold_name("C++") != fold_name("C#")


@pytest.mark.parametrize(
    ("key", "stem"),
    [
        ("v_Archery_g01_c01", "v_Archery_g01_c01"),
        ("jump/clip 7", "clip 7"),
        ("50%2Efirst%25dates", "50.first%dates"),
        ("caf%E9", "caf\udce9"),  # Latin-1, as Python lists the file
        ("café", "café"),
    ],
)
def test_the_stem_of_a_video_is_the_last_part_of_its_key_decoded(key: str, stem: str) -> None:
    assert video_stem(key) == stem


def test_a_name_of_another_encoding_is_told_from_text() -> None:
    assert [is_utf8(name) for name in ("café", "what?", "", "caf\udce9")] == [
        True,
        True,
        True,
        False,
    ]
