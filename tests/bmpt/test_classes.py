"""Class names become texts."""

from __future__ import annotations

import pytest

from bmpt.classes import class_texts, readable
from bmpt.config import TextSettings
from shards.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("shoot_bow", "shoot bow"),
        ("YoYo", "yo yo"),
        ("TaiChi", "tai chi"),
        ("CleanAndJerk", "clean and jerk"),
        ("playing guitar", "playing guitar"),
        ("Pushing something from left to right", "pushing something from left to right"),
        ("TVShow", "tv show"),
        ("HighJump2Feet", "high jump2 feet"),
        ("  spaced__out_ name ", "spaced out name"),
        ("moonwalk", "moonwalk"),
        ("EŽivo", "eživo"),
    ],
)
def test_a_class_name_becomes_readable(name: str, text: str) -> None:
    assert readable(name) == text


def test_making_a_name_readable_twice_changes_nothing_more() -> None:
    for name in ("ApplyEyeMakeup", "shoot_bow", "HandstandPushups", "a b"):
        assert readable(readable(name)) == readable(name)


def test_a_template_is_filled_once_per_class_in_order() -> None:
    texts = class_texts(["YoYo", "shoot_bow"], TextSettings(template="a {} here."))
    assert texts == ["a yo yo here.", "a shoot bow here."]


def test_raw_names_keep_the_label_files_spelling() -> None:
    assert class_texts(["YoYo", "ride_bike"], TextSettings(template="{}", raw_names=True)) == ["YoYo", "ride_bike"]


def test_braces_in_a_class_name_are_text() -> None:
    assert class_texts(["open {box}", "{}"], TextSettings(template="a {}", raw_names=True)) == ["a open {box}", "a {}"]


@pytest.mark.parametrize("template", ["a video.", "{} and {}", ""])
def test_a_template_without_exactly_one_place_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"text\.template=.*expected exactly one \{\}"):
        class_texts(["walk"], TextSettings(template=template))
