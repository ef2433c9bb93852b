"""Test class texts: of templates, of sentence and mapping files, and of negatives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bmpt.settings import TextSettings
from bmpt.texts.class_texts import (
    class_sentences,
    file_sentences,
    mapped_names,
    negative_sentences,
    read_mapping,
    read_sentences,
    readable,
    template_sentences,
    truncation_warning,
)
from preprocess.protocols.lists import read_class_file
from shards.errors import ConfigError
from tests.bmpt.tiny import load_tiny
from tests.shared_data import shared_data


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
def test_readable_makes_text_of_a_class_name(name: str, text: str) -> None:
    assert readable(name) == text


def test_readable_of_readable_text_changes_nothing() -> None:
    for name in ("ApplyEyeMakeup", "shoot_bow", "HandstandPushups", "a b"):
        assert readable(readable(name)) == readable(name)


def test_class_sentences_fill_a_template_once_per_class_in_order() -> None:
    texts = class_sentences(["YoYo", "shoot_bow"], TextSettings(template="a {} here.")).at(0)
    assert texts == ["a yo yo here.", "a shoot bow here."]


def test_class_sentences_with_raw_names_keep_the_spelling() -> None:
    names = ["YoYo", "ride_bike"]
    assert class_sentences(names, TextSettings(template="{}", raw_names=True)).at(0) == names


def test_class_sentences_keep_braces_in_a_class_name() -> None:
    texts = class_sentences(["open {box}", "{}"], TextSettings(template="a {}", raw_names=True))
    assert texts.at(0) == ["a open {box}", "a {}"]


@pytest.mark.parametrize("template", ["a video.", "{} and {}", ""])
def test_class_sentences_refuse_a_template_without_exactly_one_slot(template: str) -> None:
    with pytest.raises(ConfigError, match=r"text\.template=.*expected exactly one \{\}"):
        class_sentences(["walk"], TextSettings(template=template)).at(0)


def write_json(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_template_sentences_of_several_templates_are_one_per_template() -> None:
    found = template_sentences(["YoYo", "shoot_bow"], ["a {}.", "{} seen from afar"])
    assert found.sentences == (
        ("a yo yo.", "yo yo seen from afar"),
        ("a shoot bow.", "shoot bow seen from afar"),
    )
    assert found.num_sentences == 2
    assert found.at(1) == ["yo yo seen from afar", "shoot bow seen from afar"]


def test_template_sentences_refuse_an_empty_list() -> None:
    with pytest.raises(ConfigError, match="no template is given"):
        template_sentences(["walk"], [])


def test_file_sentences_match_classes_ignoring_case_spaces_underscores_and_hyphens(
    tmp_path: Path,
) -> None:
    file = write_json(
        tmp_path / "texts.json",
        {"Apply Eye Makeup": ["one"], "pull-ups": ["two"], "walk": ["three"]},
    )
    found = file_sentences(["walk", "ApplyEyeMakeup", "Pull_Ups"], file)
    assert found.sentences == (("three",), ("one",), ("two",))
    assert found.notes == (
        f"{file}: has all 3 classes, 2 in another spelling (case, spaces, _ and -), "
        "for example 'ApplyEyeMakeup' and 'Apply Eye Makeup'",
    )


def test_file_sentences_prefer_an_exact_spelling_and_refuse_an_ambiguous_one(
    tmp_path: Path,
) -> None:
    file = write_json(tmp_path / "texts.json", {"yo yo": ["one"], "YoYo": ["two"]})
    assert file_sentences(["YoYo"], file).sentences == (("two",),)
    with pytest.raises(ConfigError, match="'yo_yo' may be 'yo yo' or 'YoYo'; keep one of them"):
        file_sentences(["yo_yo"], file)


def test_file_sentences_note_unused_classes(tmp_path: Path) -> None:
    file = write_json(tmp_path / "texts.json", {"walk": ["one"], "run": ["two"], "sit": ["three"]})
    assert file_sentences(["run"], file).notes == (
        f"{file}: 2 of its 3 classes are not used here: walk, sit",
    )


def test_file_sentences_list_the_classes_without_text(tmp_path: Path) -> None:
    file = write_json(tmp_path / "texts.json", {"walk": ["one"], "run": ["two"], "sit": ["three"]})
    with pytest.raises(
        ConfigError, match=r"texts\.json: no text for 2 of 5 classes: jump, ride; add them$"
    ):
        file_sentences(["walk", "jump", "run", "ride", "sit"], file)
    many = [f"class {index}" for index in range(30)]
    with pytest.raises(
        ConfigError,
        match=r"no text for 30 of 31 .*class 19, .*, class 29; add them, unless the file bel",
    ):
        file_sentences(["walk", *many], file)


def test_file_sentences_refuse_a_file_of_another_data_set(tmp_path: Path) -> None:
    file = write_json(tmp_path / "hmdb.json", {"walk": ["one"], "run": ["two"]})
    expected = (
        r"none of its 2 classes \(walk, run\) is one of the 2 here \(YoYo, Rowing\); "
        r"the file belongs to another data set"
    )
    with pytest.raises(ConfigError, match=expected):
        file_sentences(["YoYo", "Rowing"], file)


def test_file_sentences_refuse_unequal_numbers_of_sentences(tmp_path: Path) -> None:
    file = write_json(tmp_path / "texts.json", {"walk": ["one", "two"], "run": ["three"]})
    with pytest.raises(
        ConfigError, match="'walk' has 2 sentences, 'run' 1; give every class the same number"
    ):
        file_sentences(["walk", "run"], file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not JSON"),
        (b"[]", "holds no classes"),
        (b"{}", "holds no classes"),
        (b'{"walk": "one"}', r"'walk' has 'one', expected a list of sentences"),
        (b'{"walk": []}', r"'walk' has '\[\]', expected"),
        (b'{"walk": ["one", ""]}', "expected a list of sentences"),
        (b'{"walk": [1]}', "expected a list of sentences"),
        (b'{"walk": ["one"], "walk": ["two"]}', "'walk' appears twice"),
        (b'{"walk": ["\xff"]}', "is not UTF-8 at byte 11"),
    ],
)
def test_read_sentences_refuses_a_file_of_another_form(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "texts.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"texts\.json: .*{expected}"):
        read_sentences(file)


def test_read_sentences_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json: cannot be read: No such file"):
        read_sentences(tmp_path / "gone.json")


def test_read_mapping_accepts_either_line_end_and_trailing_spaces(tmp_path: Path) -> None:
    file = write_text(tmp_path / "map.txt", "﻿golf -> Bunker Shot  \r\n\r\nride_bike->driving\n")
    assert read_mapping(file) == {"golf": "Bunker Shot", "ride_bike": "driving"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("golf - Bunker Shot\n", "line 1 is 'golf - Bunker Shot', expected `class -> name`"),
        ("a -> b\ngolf ->\n", "line 2 is 'golf ->'"),
        ("a -> b -> c\n", "line 1 is"),
        ("a b -> c\nA_B -> d\n", "line 2 names 'A_B' a second time"),
        ("\n", "holds no line"),
    ],
)
def test_read_mapping_refuses_a_file_of_another_form(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=rf"map\.txt: {expected}"):
        read_mapping(write_text(tmp_path / "map.txt", text))


def test_negative_sentences_come_from_the_file_or_a_template_p_per_class(
    tmp_path: Path,
) -> None:
    mapping = write_text(
        tmp_path / "map.txt", "Golf -> Run\nride bike -> Driving_aCar\nsit -> stand\n"
    )
    texts = write_json(tmp_path / "texts.json", {"run": ["r1", "r2", "r3"], "stand": ["s1"]})
    found = negative_sentences(["golf", "ride_bike", "sit"], mapping, 2, texts=texts)
    driving = "a video of a person driving a car"
    assert found.sentences == (("r1", "r2"), (driving, driving), ("s1", "s1"))
    raw = negative_sentences(["ride_bike"], mapping, 1, texts=texts, raw_names=True)
    assert raw.sentences == (("a video of a person Driving aCar",),)


def test_negative_sentences_without_a_file_are_the_template(tmp_path: Path) -> None:
    mapping = write_text(tmp_path / "map.txt", "golf -> run\n")
    assert negative_sentences(["golf"], mapping, 1).sentences == (("a video of a person run",),)


def test_negative_sentences_refuse_a_mapping_that_lacks_classes(tmp_path: Path) -> None:
    mapping = write_text(tmp_path / "map.txt", "golf -> run\nsit -> stand\nwalk -> run\n")
    with pytest.raises(
        ConfigError, match=r"map\.txt: no negative for 1 of 2 classes: ride_bike; add them$"
    ):
        negative_sentences(["golf", "ride_bike"], mapping, 1)
    with pytest.raises(
        ConfigError,
        match=r"map\.txt: none of its 3 classes .* the file belongs to another data set",
    ):
        negative_sentences(["Rowing", "YoYo"], mapping, 1)


def test_negative_sentences_refuse_a_class_as_its_own_negative(tmp_path: Path) -> None:
    mapping = write_text(tmp_path / "map.txt", "shoot_bow -> Shoot Bow\n")
    with pytest.raises(
        ConfigError, match=r"map\.txt: 'shoot bow' is its own negative; name another action"
    ):
        negative_sentences(["shoot bow"], mapping, 1)


def test_mapped_names_are_paraphrases_for_templates(tmp_path: Path) -> None:
    mapping = write_text(tmp_path / "map.txt", "golf -> Hitting a ball\nsit -> Taking a seat\n")
    names, notes = mapped_names(["Sit", "golf"], mapping, what="paraphrase")
    assert names == ["Taking a seat", "Hitting a ball"]
    spelling = (
        f"{mapping}: has all 2 classes, 1 in another spelling (case, spaces, _ and -), "
        "for example 'Sit' and 'sit'"
    )
    assert notes == (spelling,)
    assert template_sentences(names, ["a {}."]).at(0) == ["a taking a seat.", "a hitting a ball."]


def test_truncation_warning_counts_texts_over_the_context(clip: Path) -> None:
    backbone = load_tiny(clip)
    fits, too_long = "walk " * 75, "walk " * 76
    assert truncation_warning(backbone, [fits, "walk"]) is None
    expected = (
        "1 of 2 class texts are over 77 tokens and are truncated at the end, for example "
        f"{too_long[:60]!r}"
    )
    assert truncation_warning(backbone, [fits, too_long]) == expected
    assert backbone.tokenize([too_long]).argmax() == 76, "the truncated text keeps its EOT"
    slots = truncation_warning(backbone, [fits, "walk"], num_slots=8)
    assert slots is not None
    assert slots.startswith(
        "1 of 2 class texts are over 77 tokens, 8 of them prompt tokens, and are truncated"
    )


# published files: labels, sentences, number of classes, sentences per class, number of classes in
# another spelling
PUBLISHED = [
    ("bdcclip/labels/ucf_101_labels.csv", "UCF101/ucf101.json", 101, 2, 0),
    ("vificlip/labels/ucf_101_labels.csv", "UCF101/ucf101.json", 101, 2, 77),
    ("vificlip/labels/ucf_101_base_labels.csv", "UCF101/ucf101.json", 51, 2, 35),
    ("vificlip/labels/hmdb_51_labels.csv", "HMDB51/hmdb51.json", 51, 2, 0),
    (
        "bdcclip/labels/hmdb_51_labels.csv",
        "HMDB51/HMDB51-GPT-4.1_5prompts_Temp1.5_25words.json",
        51,
        5,
        0,
    ),
    ("vificlip/labels/ssv2_labels.csv", "SSv2/ssv2.json", 174, 2, 0),
    ("vificlip/labels/ZS_split2_K600.csv", "K600/k600.json", 160, 2, 160),
]


@pytest.mark.parametrize(("labels", "texts", "classes", "sentences", "loose"), PUBLISHED)
def test_published_labels_find_their_published_sentences(
    labels: str, texts: str, classes: int, sentences: int, loose: int
) -> None:
    names = read_class_file(shared_data() / "splits" / labels).names
    found = file_sentences(names, shared_data() / "splits" / "bdcclip" / "prompts" / texts)
    assert (len(found.sentences), found.num_sentences) == (classes, sentences)
    matched = [note for note in found.notes if "in another spelling" in note]
    assert len(matched) == (loose > 0)
    assert all(f": has all {classes} classes, {loose} in another" in note for note in matched)


@pytest.mark.parametrize(
    ("labels", "mapping", "negative"),
    [
        (
            "bdcclip/labels/ucf_101_labels.csv",
            "sample_mapping_ucf101.txt",
            ("Archery", "ShootingBow"),
        ),
        ("vificlip/labels/ucf_101_novel_labels.csv", "sample_mapping_ucf101.txt", None),
        ("vificlip/labels/hmdb_51_labels.csv", "sample_mapping_hmdb51.txt", ("drink", "planning")),
        (
            "vificlip/labels/ssv2_labels.csv",
            "sample_mapping_ssv2.txt",
            ("Approaching something with your camera", "Moving closer to an object"),
        ),
        ("bmpt/mapping/ucf_hmdb_mapping.txt", "ucf_hmdb_mapping.txt", ("golf", "Bunker Shot")),
    ],
)
def test_published_mappings_give_every_class_a_negative(
    labels: str, mapping: str, negative: tuple[str, str] | None
) -> None:
    names = read_class_file(shared_data() / "splits" / labels).names
    file = shared_data() / "splits" / "bmpt" / "mapping" / mapping
    assert negative_sentences(names, file, 2).num_sentences == 2
    named, _ = mapped_names(names, file, what="paraphrase")
    assert negative is None or named[names.index(negative[0])] == negative[1]


def test_file_sentences_refuse_a_published_file_of_another_data_set() -> None:
    names = read_class_file(
        shared_data() / "splits" / "vificlip/labels/kinetics_400_labels.csv"
    ).names
    texts = shared_data() / "splits" / "bdcclip" / "prompts" / "UCF101" / "ucf101.json"
    with pytest.raises(
        ConfigError,
        match=r"no text for 378 of 400 classes: .*unless the file belongs to another data set",
    ):
        file_sentences(names, texts)


@pytest.mark.parametrize(
    ("texts", "shortest", "median", "longest"),
    [
        ("HMDB51/hmdb51.json", 16, 26, 39),
        ("UCF101/ucf101.json", 19, 31, 43),
        ("SSv2/ssv2.json", 29, 47, 63),
    ],
)
def test_published_sentences_have_the_lengths_that_were_counted_in_the_original(
    clip: Path, texts: str, shortest: int, median: int, longest: int
) -> None:
    sentences = read_sentences(shared_data() / "splits" / "bdcclip" / "prompts" / texts)
    eot = (
        load_tiny(clip)
        .tokenize([text for each in sentences.values() for text in each])
        .argmax(dim=1)
    )
    assert (eot.min(), eot.median(), eot.max()) == (shortest, median, longest)


def test_class_sentences_use_paraphrases_and_keep_the_class_names(
    tmp_path: Path,
) -> None:
    mapping = tmp_path / "paraphrases.txt"
    mapping.write_text(
        "Apply Eye Makeup -> painting one's lids\nWalk -> strolling\n", encoding="utf-8"
    )
    settings = TextSettings(template="a person {}", paraphrases=mapping)
    found = class_sentences(["ApplyEyeMakeup", "Walk"], settings)
    assert found.classes == ("ApplyEyeMakeup", "Walk")
    assert found.at(0) == ["a person painting one's lids", "a person strolling"]
    assert len(found.notes) == 1


@pytest.mark.parametrize("key", ["templates", "paraphrases"])
def test_class_sentences_refuse_templates_and_paraphrases_with_whole_sentences(
    tmp_path: Path, key: str
) -> None:
    value = {"templates": ("a {}", "b {}"), "paraphrases": tmp_path / "p.txt"}[key]
    settings = TextSettings(sentences=tmp_path / "s.json", **{key: value})
    with pytest.raises(
        ConfigError,
        match=rf"text\.{key}: cannot be used with text\.sentences=.*leave one of them out",
    ):
        class_sentences(["walk"], settings)
