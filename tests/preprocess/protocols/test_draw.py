"""Test drawn splits: equal on every machine, nested, with warnings about small classes."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.protocols import ManifestPlan, plan_protocols
from preprocess.protocols.draw import keyed_order
from preprocess.sources import Source, open_source
from shards.errors import ConfigError
from tests.preprocess.trees import write_tree, write_videos
from tests.shared_data import shared_data

# training videos a class: base is the first ceil(5/2) by count, ties by name
TRAIN_COUNTS = {"Archery": 20, "Biking": 3, "Diving": 18, "Punch": 18, "Surfing": 17}


def official_source(root: Path, present: list[str]) -> Source:
    train = [
        f"{name}/v_{name}_g08_c{i:02d}.avi {n}"
        for n, name in enumerate(TRAIN_COUNTS, 1)
        for i in range(TRAIN_COUNTS[name])
    ]
    val = [f"{name}/v_{name}_g01_c01.avi" for name in TRAIN_COUNTS]
    write_tree(
        root / "official",
        {
            "classInd.txt": "".join(f"{n} {name}\n" for n, name in enumerate(TRAIN_COUNTS, 1)),
            "trainlist01.txt": "\n".join(train) + "\n",
            "testlist01.txt": "\n".join(val) + "\n",
        },
    )
    return open_source("ucf101", write_videos(root / "videos", present), root / "official")


def drawn_manifests(source: Source, seed: int = 0) -> dict[str, ManifestPlan]:
    return {manifest.path: manifest for manifest in plan_protocols(source, [], seed=seed).manifests}


@given(st.sets(st.text(max_size=4), max_size=8), st.integers(0, 5), st.randoms())
def test_the_keyed_order_does_not_depend_on_the_order_of_the_keys(
    keys: set[str], seed: int, rng: object
) -> None:
    listed = sorted(keys)
    rng.shuffle(listed)
    ordered = keyed_order(listed, seed)
    assert ordered == keyed_order(keys, seed)
    assert ordered == sorted(keys, key=lambda key: sha256(f"{seed}\t{key}".encode()).hexdigest())


def test_few_shot_draws_k_of_each_class_and_smaller_draws_lie_in_larger_ones(
    tmp_path: Path,
) -> None:
    manifests = drawn_manifests(official_source(tmp_path, ["x.avi"]))
    names = {shot: set(manifests[f"few_shot/train_k{shot}"].missing) for shot in (2, 4, 8, 16)}
    assert names[2] < names[4] < names[8] < names[16]
    for shot, drawn in names.items():
        for class_name, count in TRAIN_COUNTS.items():
            assert sum(name.startswith(class_name) for name in drawn) == min(shot, count)
    assert manifests["few_shot/val"].expected == 5


def test_a_draw_takes_the_official_list_not_the_files_that_are_there(tmp_path: Path) -> None:
    few = drawn_manifests(official_source(tmp_path / "a", ["Diving/v_Diving_g08_c00.avi"]))
    none = drawn_manifests(official_source(tmp_path / "b", ["x.avi"]))
    for path, manifest in few.items():
        assert manifest.expected == none[path].expected
        assert manifest.source.sha256 == none[path].source.sha256
    assert len(few["fully_supervised/train"].rows) == 1


def test_another_seed_draws_other_videos(tmp_path: Path) -> None:
    source = official_source(tmp_path, ["x.avi"])
    zero, one = drawn_manifests(source), drawn_manifests(source, seed=1)
    assert zero["few_shot/train_k2"].missing != one["few_shot/train_k2"].missing
    assert zero == drawn_manifests(source)


def test_base_classes_are_those_with_most_training_videos_ties_by_name(tmp_path: Path) -> None:
    manifests = drawn_manifests(official_source(tmp_path, ["x.avi"]))
    assert manifests["base_to_novel/val_base"].classes.names == ["Archery", "Diving", "Punch"]
    assert manifests["base_to_novel/val_novel"].classes.names == ["Surfing", "Biking"]
    assert manifests["base_to_novel/train_base"].expected == 20 + 18 + 18
    assert [manifests[f"base_to_novel/train_base_s{seed}"].expected for seed in (1, 2, 3)] == [
        48,
        48,
        48,
    ]
    assert manifests["base_to_novel/val_base"].missing == [
        f"{name}/v_{name}_g01_c01.avi" for name in ("Archery", "Diving", "Punch")
    ]
    drawn = {tuple(manifests[f"base_to_novel/train_base_s{seed}"].missing) for seed in (1, 2, 3)}
    assert len(drawn) == 3


def test_drawn_manifests_state_their_seed(tmp_path: Path) -> None:
    manifests = drawn_manifests(official_source(tmp_path, ["x.avi"]))
    drawn = [
        manifest for path, manifest in manifests.items() if not path.startswith("fully_supervised/")
    ]
    assert {manifest.source.name for manifest in drawn} == {"drawn, seed 0"}
    assert manifests["fully_supervised/train"].source.name == "official trainlist01.txt"
    assert manifests["few_shot/train_k2"].spec.seed == 0
    assert manifests["few_shot/val"].spec.seed is None
    assert [manifests[f"base_to_novel/train_base_s{seed}"].spec.seed for seed in (1, 2, 3)] == [
        1,
        2,
        3,
    ]


def test_a_class_with_too_few_videos_gives_them_all_and_a_warning(tmp_path: Path) -> None:
    plan = plan_protocols(official_source(tmp_path, ["x.avi"]), [])
    assert plan.warnings == [
        f"few_shot/train_k{shot}: 1 of 5 classes have fewer than {shot} training videos, "
        "for example Biking (3); all their videos are used"
        for shot in (4, 8, 16)
    ]


def test_nothing_is_drawn_without_an_official_training_list(tmp_path: Path) -> None:
    write_tree(tmp_path, {"lists/mine.json": '[{"id": "1", "template": "Closing [something]"}]'})
    source = open_source("ssv2", write_videos(tmp_path / "videos", ["1.webm"]), tmp_path / "lists")
    plan = plan_protocols(source, [])
    assert [manifest.path for manifest in plan.manifests] == ["fully_supervised/val"]
    assert plan.warnings == [
        "ssv2: no official training list, so few_shot and base_to_novel are not drawn"
    ]
    assert plan.classes == ["Closing something"]


def test_a_build_without_lists_and_annotations_plans_no_manifests(tmp_path: Path) -> None:
    source = open_source(
        "ucf101", write_videos(tmp_path, ["Punch/v_Punch_g01_c01.avi", "Biking/b.avi"]), None
    )
    plan = plan_protocols(source, [])
    assert (plan.manifests, plan.missing, plan.classes) == ([], [], ["Biking", "Punch"])
    assert plan.warnings == [
        "ucf101: neither --splits nor --annotations is given, so there are no manifests"
    ]


@pytest.mark.parametrize("dataset", ["folder", "demo"])
def test_a_folder_data_set_is_split_80_to_20_in_each_class(tmp_path: Path, dataset: str) -> None:
    counts = {"jump": 10, "run": 4, "sit": 1, "wave": 2}
    names = [f"{name}/{i}.mp4" for name, count in counts.items() for i in range(count)]
    source = open_source(dataset, write_videos(tmp_path, [*names, "outside.mp4"]), None)
    manifests = drawn_manifests(source)
    train, val = manifests["fully_supervised/train"], manifests["fully_supervised/val"]
    assert train.classes.names == val.classes.names == sorted(counts)
    assert [sum(row.label == label for row in train.rows) for label in range(4)] == [8, 3, 1, 1]
    assert [sum(row.label == label for row in val.rows) for label in range(4)] == [2, 1, 0, 1]
    assert {row.key for row in train.rows}.isdisjoint(row.key for row in val.rows)
    assert {manifest.source.name for manifest in manifests.values()} == {"drawn, seed 0"}
    assert {row.key for row in manifests["few_shot/train_k16"].rows} == {
        row.key for row in train.rows
    }
    assert manifests["base_to_novel/val_novel"].classes.names == ["sit", "wave"]


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    source = open_source("folder", write_videos(tmp_path, ["a.mp4"]), None)
    with pytest.raises(
        ConfigError,
        match="has no class folders, so no video has a class; give the folder that holds",
    ):
        plan_protocols(source, [])


def test_a_data_set_with_a_part_of_a_single_class_gives_a_warning(tmp_path: Path) -> None:
    names = [f"{name}/{i}.mp4" for name in ("jump", "run") for i in range(40)]
    plan = plan_protocols(open_source("folder", write_videos(tmp_path, names), None), [])
    assert plan.warnings[0] == (
        "folder: with 2 classes the base or the novel part has a single class, so its accuracy is "
        "always 100 %"
    )


def test_a_new_class_changes_no_other_draw(tmp_path: Path) -> None:
    names = [f"{name}/{i}.mp4" for name in ("jump", "run") for i in range(10)]
    before = drawn_manifests(open_source("folder", write_videos(tmp_path, names), None))
    after = drawn_manifests(
        open_source("folder", write_videos(tmp_path, [f"aim/{i}.mp4" for i in range(5)]), None)
    )
    for path in ("fully_supervised/train", "few_shot/train_k4"):
        assert [row.key for row in before[path].rows] == [
            row.key for row in after[path].rows if row.key[:3] != "aim"
        ]


def test_real_official_lists_give_whole_draws() -> None:
    data = shared_data()
    manifests = drawn_manifests(
        open_source("hmdb51", data / "clips/hmdb51", data / "splits/official")
    )
    assert manifests["few_shot/train_k16"].expected == 816
    assert manifests["base_to_novel/train_base_s3"].expected == 416
    assert (
        manifests["base_to_novel/val_base"].classes.names
        == sorted(manifests["few_shot/val"].classes.names)[:26]
    )
