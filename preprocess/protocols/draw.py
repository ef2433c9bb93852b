"""Own splits, when no lists are given: seeded, the same on every machine, whatever files are there.

The rule: a video's place is sha256 of "<seed> TAB <key>", UTF-8; a draw of K takes the first K of
    each class in
that order. Hence the 2-shot videos are among the 4-shot ones, and a new class changes no other
draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256

from preprocess.protocols.catalogue import (
    BASE_SEEDS,
    FEW_SHOT_VAL,
    SHOTS,
    TRAIN_BASE,
    VAL_BASE,
    VAL_NOVEL,
    few_shot_spec,
    train_base_spec,
)
from preprocess.protocols.official import select
from preprocess.protocols.records import ClassNames, ManifestSpec, Selection, own_class_names
from preprocess.sources import Annotations, OfficialList, Source
from preprocess.sources.naming import video_key

_TRAIN_OF_FIVE = 4  # 80/20


def keyed_order(keys: Iterable[str], seed: int) -> list[str]:
    """Sort keys by sha256 of "<seed> TAB <key>"."""
    return sorted(keys, key=lambda key: sha256(f"{seed}\t{key}".encode()).digest())


def folder_annotations(source: Source, seed: int) -> Annotations:
    """Split a data set without official lists 80/20 in each class: floor(4n/5), at least one, to
    train.

    Classes are the folders, sorted; videos outside a folder are in neither list."""
    by_class: dict[str, list[str]] = {}
    for video in source.videos:
        if video.class_name is not None:
            by_class.setdefault(video.class_name, []).append(video.key)
    path_of = {video.key: video.relative_path for video in source.videos}
    lines: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    for class_name in sorted(by_class):
        keys = keyed_order(by_class[class_name], seed)
        num_train = max(1, len(keys) * _TRAIN_OF_FIVE // 5)
        lines["train"] += [(path_of[key], class_name) for key in keys[:num_train]]
        lines["val"] += [(path_of[key], class_name) for key in keys[num_train:]]
    digest = sha256(
        "".join(f"{v.key}\t{v.class_name}\n" for v in source.videos if v.class_name).encode()
    ).hexdigest()
    lists = [
        OfficialList(
            1, split, [name for name, _ in rows], [name for _, name in rows], drawn(seed), digest
        )
        for split, rows in lines.items()
    ]
    class_of = {key: class_name for class_name, keys in by_class.items() for key in keys}
    return Annotations(sorted(by_class), class_of, lists)


def drawn(seed: int) -> str:
    """What the manifests of own draws state as their source."""
    return f"drawn, seed {seed}"


def draw(dataset: str, annotations: Annotations, seed: int) -> tuple[list[Selection], list[str]]:
    """few_shot and base_to_novel from the official split 1, and warnings.

    base_to_novel: classes by number of training videos, descending, ties by name; the first
        ceil(K/2) are base.
    Seeds of train_base_s1 to s3 are seed + 1 to seed + 3. Without a training list nothing is
    drawn."""
    first = {official.split: official for official in annotations.lists if official.number == 1}
    if "train" not in first:
        return [], [
            f"{dataset}: no official training list, so few_shot and base_to_novel are not drawn"
        ]
    train, val = first["train"], first.get("val")
    full = own_class_names(annotations.classes)
    counts = Counter(train.classes)
    by_count = sorted(annotations.classes, key=lambda name: (-counts[name], name))
    num_base = math.ceil(len(by_count) / 2)
    warnings = []
    if len(by_count) < 4:
        warnings.append(
            f"{dataset}: {len(by_count)} classes leave base or novel with one class, whose answer is given"
        )
    base, novel = own_class_names(by_count[:num_base]), own_class_names(by_count[num_base:])
    selections = [
        _shots(dataset, few_shot_spec(shot, seed=seed), train, full, seed) for shot in SHOTS
    ]
    if val is not None:
        selections.append(_all(FEW_SHOT_VAL, val, full, seed))
    selections += [
        _shots(dataset, train_base_spec(number, seed=seed + number), train, base, seed)
        for number in BASE_SEEDS
    ]
    selections.append(_all(TRAIN_BASE, train, base, seed))
    if val is not None:
        selections += [_all(VAL_BASE, val, base, seed), _all(VAL_NOVEL, val, novel, seed)]
    return selections, warnings + _too_few(selections, counts)


def _all(spec: ManifestSpec, official: OfficialList, classes: ClassNames, seed: int) -> Selection:
    """All lines of a list that are of these classes."""
    return select(spec, official, classes, _ids(classes), source=drawn(seed))


def _shots(
    dataset: str, spec: ManifestSpec, train: OfficialList, classes: ClassNames, seed: int
) -> Selection:
    """The first `spec.shot` videos of each class in the order of `spec.seed`, class by class."""
    ids = _ids(classes)
    by_class: dict[str, dict[str, str]] = {name: {} for name in classes.names}
    for name, class_name in zip(train.names, train.classes, strict=True):
        if class_name in ids:
            by_class[class_name][video_key(dataset, name)] = name
    assert spec.seed is not None
    lines = [
        (names[key], ids[class_name])
        for class_name, names in by_class.items()
        for key in keyed_order(names, spec.seed)[: spec.shot]
    ]
    names, labels = [name for name, _ in lines], [label for _, label in lines]
    return Selection(spec, classes, drawn(seed), train.sha256, names, labels)


def _ids(classes: ClassNames) -> dict[str, int]:
    return {name: label for label, name in enumerate(classes.names)}


def _too_few(selections: Iterable[Selection], counts: Mapping[str, int]) -> list[str]:
    """One warning for each manifest with a class of fewer training videos than its shots."""
    warnings = []
    for selection in selections:
        shot = selection.spec.shot
        few = [
            name
            for name in selection.classes.names
            if shot is not None and counts.get(name, 0) < shot
        ]
        if few:
            warnings.append(
                f"{selection.spec.path}: {len(few)} of {len(selection.classes.names)} classes have fewer than {shot} "
                f"training videos, for example {few[0]} ({counts.get(few[0], 0)}); it takes what they have"
            )
    return warnings
