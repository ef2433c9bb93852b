"""Manifests from the data set's own lists: fully supervised, and the classes that UCF-101 and
HMDB-51 share."""

from __future__ import annotations

from collections.abc import Mapping

from preprocess.protocols.catalogue import full_spec
from preprocess.protocols.records import (
    ClassFile,
    ClassNames,
    ManifestSpec,
    Selection,
    own_class_names,
)
from preprocess.sources import Annotations, OfficialList
from preprocess.sources.naming import fold_name

# UCF-101's names of the 12 shared classes, as UCF-HMDB-full has them (TA3N, Chen et al. 2019): with
# the official
# split 1 they give its published 1438 training and 571 test videos of UCF-101 (840 and 360 of
# HMDB-51).
UCF_TO_SHARED = {
    "RockClimbingIndoor": "climb",
    "RopeClimbing": "climb",
    "Fencing": "fencing",
    "GolfSwing": "golf",
    "SoccerPenalty": "kick_ball",
    "PullUps": "pullup",
    "BoxingPunchingBag": "punch",
    "BoxingSpeedBag": "punch",
    "Punch": "punch",
    "PushUps": "pushup",
    "Biking": "ride_bike",
    "HorseRiding": "ride_horse",
    "Basketball": "shoot_ball",
    "Archery": "shoot_bow",
    "WalkingWithDog": "walk",
}


def official_classes(annotations: Annotations, full: ClassNames | None) -> ClassNames:
    """The class names of official lists: those of the class file if it has every official class,
    else their own."""
    if full is not None and {fold_name(name) for name in annotations.classes} <= set(
        map(fold_name, full.names)
    ):
        return full
    return own_class_names(annotations.classes)


def fully_supervised(annotations: Annotations, classes: ClassNames) -> list[Selection]:
    """`train`, `val` of split 1; `train_split2`, `val_split2` and so on where the data set has
    several."""
    ids = {fold_name(name): label for label, name in enumerate(classes.names)}
    ids = {name: ids[fold_name(name)] for name in annotations.classes}
    ordered = sorted(annotations.lists, key=lambda official: (official.number, official.split))
    return [
        select(full_spec(official.split, official.number), official, classes, ids)
        for official in ordered
    ]


def cross_dataset(dataset: str, annotations: Annotations, mapping: ClassFile) -> list[Selection]:
    """`train` and `val` of the classes in the mapping file, from the official split 1; labels in
    its sorted order."""
    shared = {fold_name(name): label for label, name in enumerate(mapping.names)}
    to_shared = (
        UCF_TO_SHARED if dataset == "ucf101" else {name: name for name in annotations.classes}
    )
    ids = {
        name: shared[fold_name(target)]
        for name, target in to_shared.items()
        if fold_name(target) in shared and name in annotations.classes
    }
    classes = ClassNames(mapping.names, "csv", mapping.sha256)
    return [
        select(
            ManifestSpec("cross_dataset", official.split, official.split), official, classes, ids
        )
        for official in sorted(annotations.lists, key=lambda official: official.split)
        if official.number == 1
    ]


def select(
    spec: ManifestSpec,
    official: OfficialList,
    classes: ClassNames,
    ids: Mapping[str, int],
    *,
    source: str = "",
) -> Selection:
    """The lines of an official list whose class is in `ids` (class -> label), in the list's
    order."""
    lines = [
        (name, ids[class_name])
        for name, class_name in zip(official.names, official.classes, strict=True)
        if class_name in ids
    ]
    names, labels = [name for name, _ in lines], [label for _, label in lines]
    return Selection(spec, classes, source or official.source, official.sha256, names, labels)
