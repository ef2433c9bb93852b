"""Which list and which class file make which manifest: the table "Manifest names and sources" of
the format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from preprocess.protocols.records import ManifestSpec

SHOTS = (2, 4, 8, 16)
BASE_SHOT = 16
BASE_SEEDS = (1, 2, 3)
NUM_HALVES = 10

MAPPING_FILE = "mapping/ucf_hmdb_mapping.txt"  # its keys are the 12 classes that the next two share
SHARED_CLASS_DATASETS = ("ucf101", "hmdb51")
OWN_CLASS_FILE = "classes.txt"  # of `folder` and `demo`

_CLASS_FILE = {
    "ucf101": "labels/ucf_101_labels.csv",
    "hmdb51": "labels/hmdb_51_labels.csv",
    "ssv2": "labels/ssv2_labels.csv",
    "kinetics400": "labels/kinetics_400_labels.csv",
    "kinetics600": "labels/kinetics_600_labels.csv",
}
_SPLITS_FOLDER = {
    "ucf101": "ucf_splits",
    "hmdb51": "hmdb_splits",
    "ssv2": "ssv2_splits",
    "kinetics400": "k400_splits",
    "kinetics600": "k600_splits",
}
_PARTS_STEM = {
    "ucf101": "labels/ucf_101",
    "hmdb51": "labels/hmdb_51",
    "ssv2": "labels/ssv2_174",
    "kinetics400": "labels/kinetics_400",
}
_FULL_LISTS = {
    "ssv2": {"val": "validation.txt"},
    "kinetics400": {"train": "train.txt", "val": "val.txt"},
    "kinetics600": {"train": "train.txt", "val": "val.txt"},
}
_FEW_SHOT_VAL = {"ucf101": "val1.txt", "hmdb51": "val1.txt", "ssv2": "validation.txt"}
_HALF_LISTS = {
    "ucf101": ("lists/ucf101/ucf_full_for_zeroshot.txt", "lists/ucf101/ucf_labels.csv"),
    "hmdb51": ("lists/hmdb51/hmdb_full_for_zeroshot.txt", "lists/hmdb51/hmdb51_labels.csv"),
}


@dataclass(frozen=True)
class ListRule:
    """Where the list of a manifest lies in a checkout.

    class_files: in order of preference; the first that is there counts
    num_columns: 3 for BIKE's `path frames label`
    in_halves: cut into `half_0` ... `half_9` instead of making one manifest"""

    spec: ManifestSpec
    list_file: str
    class_files: tuple[str, ...]
    num_columns: int = 2
    in_halves: bool = False


def class_files(dataset: str) -> tuple[str, ...]:
    """The file of all classes of a data set, in order of preference."""
    return (_CLASS_FILE.get(dataset, OWN_CLASS_FILE),)


def list_rules(dataset: str) -> list[ListRule]:
    """All lists that checkouts may hold for a data set, in the order of the format's table."""
    if dataset not in _SPLITS_FOLDER:
        return [
            ListRule(full_spec(split), f"{split}.txt", (OWN_CLASS_FILE,))
            for split in ("train", "val")
        ]
    folder = f"datasets_splits/{_SPLITS_FOLDER[dataset]}"
    classes = class_files(dataset)
    rules = [
        ListRule(full_spec(split), f"{folder}/{name}", classes)
        for split, name in _FULL_LISTS.get(dataset, {}).items()
    ]
    if dataset in _FEW_SHOT_VAL:
        rules += [
            ListRule(few_shot_spec(shot), f"{folder}/train1_few_shot_{shot}.txt", classes)
            for shot in SHOTS
        ]
        rules.append(ListRule(FEW_SHOT_VAL, f"{folder}/{_FEW_SHOT_VAL[dataset]}", classes))
    if dataset in _PARTS_STEM:
        rules += _base_to_novel_rules(dataset)
    return rules + _zero_shot_rules(dataset, folder)


def _base_to_novel_rules(dataset: str) -> Iterable[ListRule]:
    folder = f"datasets_splits/base2novel_splits/{_SPLITS_FOLDER[dataset]}"
    stem = _PARTS_STEM[dataset]
    base = (f"{stem}_base_labels_corrected.csv", f"{stem}_base_labels.csv")
    novel = (f"{stem}_novel_labels_corrected.csv", f"{stem}_novel_labels.csv")
    for seed in BASE_SEEDS:
        yield ListRule(train_base_spec(seed), f"{folder}/fs_base_s{seed}_train.txt", base)
    yield ListRule(TRAIN_BASE, f"{folder}/base_train.txt", base)
    yield ListRule(VAL_BASE, f"{folder}/base_val.txt", base)
    yield ListRule(VAL_NOVEL, f"{folder}/novel_val.txt", novel)


def _zero_shot_rules(dataset: str, folder: str) -> list[ListRule]:
    rules = []
    for number in (1, 2, 3):
        spec = ManifestSpec("zero_shot", f"split{number}", "val")
        if dataset in ("ucf101", "hmdb51"):
            rules.append(ListRule(spec, f"{folder}/val{number}.txt", class_files(dataset)))
        if dataset == "kinetics600":
            classes = (f"labels/ZS_split{number}_K600.csv",)
            rules.append(ListRule(spec, f"{folder}/ZS_split{number}_K600_eval.txt", classes))
    if dataset in _HALF_LISTS:
        list_file, classes_file = _HALF_LISTS[dataset]
        rules.append(
            ListRule(half_spec(None), list_file, (classes_file,), num_columns=3, in_halves=True)
        )
    return rules


def full_spec(split: str, number: int = 1) -> ManifestSpec:
    """fully_supervised/train, val, train_split2, ..."""
    return ManifestSpec(
        "fully_supervised", split if number == 1 else f"{split}_split{number}", split
    )


def few_shot_spec(shot: int, *, seed: int | None = None) -> ManifestSpec:
    """few_shot/train_k<shot>; `seed` only if we drew it."""
    return ManifestSpec("few_shot", f"train_k{shot}", "train", shot=shot, seed=seed)


def train_base_spec(number: int, *, seed: int | None = None) -> ManifestSpec:
    """base_to_novel/train_base_s<number>: 16 shots of the base classes."""
    seed = number if seed is None else seed
    return ManifestSpec(
        "base_to_novel", f"train_base_s{number}", "train", part="base", shot=BASE_SHOT, seed=seed
    )


def half_spec(seed: int | None) -> ManifestSpec:
    """zero_shot/half_<seed>; None stands for the list that they are cut from."""
    return ManifestSpec("zero_shot", "half" if seed is None else f"half_{seed}", "val", seed=seed)


FEW_SHOT_VAL = ManifestSpec("few_shot", "val", "val")
TRAIN_BASE = ManifestSpec("base_to_novel", "train_base", "train", part="base")
VAL_BASE = ManifestSpec("base_to_novel", "val_base", "val", part="base")
VAL_NOVEL = ManifestSpec("base_to_novel", "val_novel", "val", part="novel")
