"""The protocol base_to_novel: train on the base classes, test on them and on the novel classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from preprocess.protocols.records import ListRule, ManifestSpec, Selection, own_class_names
from preprocess.protocols.selections import draw_shots, drawn, select_classes
from preprocess.sources import DataSet, OfficialList

_SHOT = 16
_NUMBERS = (1, 2, 3)  # of the three drawn training lists

_TRAIN = ManifestSpec("base_to_novel", "train_base", "train", part="base")
_VAL_BASE = ManifestSpec("base_to_novel", "val_base", "val", part="base")
_VAL_NOVEL = ManifestSpec("base_to_novel", "val_novel", "val", part="novel")


def base_to_novel_rules(dataset: DataSet) -> Iterator[ListRule]:
    """Yield the rules of the published base-to-novel lists."""
    stem = dataset.parts_stem
    if stem is None:
        return
    folder = f"datasets_splits/base2novel_splits/{dataset.splits_folder}"
    # BDC-CLIP's checkout has corrected class files beside the plain ones.
    base = (f"{stem}_base_labels_corrected.csv", f"{stem}_base_labels.csv")
    novel = (f"{stem}_novel_labels_corrected.csv", f"{stem}_novel_labels.csv")
    for number in _NUMBERS:
        list_file = f"{folder}/fs_base_s{number}_train.txt"
        yield ListRule(_train_shots(number, seed=number), list_file, base)
    yield ListRule(_TRAIN, f"{folder}/base_train.txt", base)
    yield ListRule(_VAL_BASE, f"{folder}/base_val.txt", base)
    yield ListRule(_VAL_NOVEL, f"{folder}/novel_val.txt", novel)


def draw_base_to_novel(
    dataset: DataSet,
    classes: list[str],
    train: OfficialList,
    val: OfficialList | None,
    *,
    seed: int,
) -> Iterator[Selection]:
    """Draw the parts and the training lists of the base classes.

    The base classes are the ceil(K/2) classes with the most training videos, ties by name. The
    seeds of train_base_s1 to train_base_s3 are seed + 1 to seed + 3."""
    counts = Counter(train.classes)
    # The same split on every machine, without a seed.
    by_count = sorted(classes, key=lambda name: (-counts[name], name))
    num_base = math.ceil(len(by_count) / 2)
    base, novel = own_class_names(by_count[:num_base]), own_class_names(by_count[num_base:])
    source = drawn(seed)

    for number in _NUMBERS:
        spec = _train_shots(number, seed=seed + number)
        yield draw_shots(dataset, spec, train, base, source=source)
    yield select_classes(_TRAIN, train, base, source=source)
    if val is not None:
        yield select_classes(_VAL_BASE, val, base, source=source)
        yield select_classes(_VAL_NOVEL, val, novel, source=source)


def _train_shots(number: int, *, seed: int) -> ManifestSpec:
    """Return the spec of base_to_novel/train_base_s<number>: 16 videos per base class."""
    name = f"train_base_s{number}"
    return ManifestSpec("base_to_novel", name, "train", part="base", shot=_SHOT, seed=seed)
