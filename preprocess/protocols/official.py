"""The protocols fully_supervised and cross_dataset, from the data set's own lists."""

from __future__ import annotations

from collections.abc import Mapping

from preprocess.protocols.records import (
    ClassFile,
    ClassNames,
    ManifestSpec,
    Selection,
    own_class_names,
)
from preprocess.protocols.selections import select_classes
from preprocess.sources import Annotations
from shards.format.names import fold_name


def full_spec(split: str, number: int = 1) -> ManifestSpec:
    """Return the spec of fully_supervised/train, /val, /train_split2, ..."""
    name = split if number == 1 else f"{split}_split{number}"
    return ManifestSpec("fully_supervised", name, split)


def official_classes(annotations: Annotations, full: ClassNames | None) -> ClassNames:
    """Return the class names that the labels of official lists index.

    They are those of the class file if it has every official class, else the official ones."""
    # The order of the class file is preferred, so that all manifests share one order.
    if full is not None:
        in_file = {fold_name(name) for name in full.names}
        if in_file >= {fold_name(name) for name in annotations.classes}:
            return full
    return own_class_names(annotations.classes)


def fully_supervised(annotations: Annotations, classes: ClassNames) -> list[Selection]:
    """Return `train`, `val`, `train_split2`, ...: every official list as it is."""
    id_of = {fold_name(name): label for label, name in enumerate(classes.names)}
    ids = {name: id_of[fold_name(name)] for name in annotations.classes}
    ordered = sorted(annotations.lists, key=lambda official: (official.number, official.split))
    return [
        select_classes(full_spec(official.split, official.number), official, classes, ids=ids)
        for official in ordered
    ]


def cross_dataset(
    annotations: Annotations, shared_classes: Mapping[str, str], mapping: ClassFile
) -> list[Selection]:
    """Return `train` and `val` of the shared classes, from the official split 1.

    Args:
        shared_classes: class -> name in the mapping file, where the two differ
        mapping: the file of shared classes; its sorted order gives the labels"""
    label_of = {fold_name(name): label for label, name in enumerate(mapping.names)}
    ids: dict[str, int] = {}
    for name in annotations.classes:
        label = label_of.get(fold_name(shared_classes.get(name, name)))
        if label is not None:
            ids[name] = label
    classes = ClassNames(mapping.names, "csv", mapping.sha256)
    # Only split 1: the published sizes (1438 and 571 videos of UCF-101) are those of split 1.
    first = [official for official in annotations.lists if official.number == 1]
    return [
        select_classes(
            ManifestSpec("cross_dataset", official.split, official.split),
            official,
            classes,
            ids=ids,
        )
        for official in sorted(first, key=lambda official: official.split)
    ]
