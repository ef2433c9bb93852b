"""Splits of our own, for builds without lists: seeded, the same on every machine.

`preprocess.protocols.selections` states the rule of a draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256

from preprocess.protocols.base_to_novel import draw_base_to_novel
from preprocess.protocols.few_shot import draw_few_shot
from preprocess.protocols.records import Selection
from preprocess.protocols.selections import drawn, keyed_order
from preprocess.sources import Annotations, DataSet, OfficialList, Source

_TRAIN_OF_FIVE = 4  # 80/20
_MIN_CLASSES = 4  # two base and two novel classes


def folder_annotations(source: Source, seed: int) -> Annotations:
    """Split a data set without official lists 80/20 within each class.

    Training gets floor(4n/5) videos of a class, at least one. The classes are the folders,
    sorted; videos outside a folder are in neither list."""
    keys_of: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    digest = sha256()
    # In place of the sha256 of a list file: it changes when a video or a class does.
    for video in source.videos:
        path_of[video.key] = video.relative_path
        if video.class_name:
            keys_of.setdefault(video.class_name, []).append(video.key)
            digest.update(f"{video.key}\t{video.class_name}\n".encode())

    names: dict[str, list[str]] = {"train": [], "val": []}
    classes: dict[str, list[str]] = {"train": [], "val": []}
    for class_name in sorted(keys_of):
        keys = keyed_order(keys_of[class_name], seed)
        # At least one, so that every class can be trained.
        num_train = max(1, len(keys) * _TRAIN_OF_FIVE // 5)
        for split, chosen in (("train", keys[:num_train]), ("val", keys[num_train:])):
            names[split] += [path_of[key] for key in chosen]
            classes[split] += [class_name] * len(chosen)

    lists = [
        OfficialList(1, split, names[split], classes[split], drawn(seed), digest.hexdigest())
        for split in names
    ]
    class_of = {key: class_name for class_name, keys in keys_of.items() for key in keys}
    return Annotations(sorted(keys_of), class_of, lists)


def draw(
    dataset: DataSet, annotations: Annotations, seed: int
) -> tuple[list[Selection], list[str]]:
    """Draw few_shot and base_to_novel from the official split 1.

    Returns:
        The selections, and warnings. Without a training list nothing is drawn."""
    first = {official.split: official for official in annotations.lists if official.number == 1}
    if "train" not in first:
        return [], [
            f"{dataset.name}: no official training list, so few_shot and base_to_novel are not "
            "drawn"
        ]
    train, val, classes = first["train"], first.get("val"), annotations.classes
    warnings = []
    if len(classes) < _MIN_CLASSES:
        warnings.append(
            f"{dataset.name}: with {len(classes)} classes the base or the novel part has a single "
            "class, so its accuracy is always 100 %"
        )
    selections = [
        *draw_few_shot(dataset, classes, train, val, seed=seed),
        *draw_base_to_novel(dataset, classes, train, val, seed=seed),
    ]
    return selections, warnings + _too_few(selections, Counter(train.classes))


def _too_few(selections: Iterable[Selection], counts: Mapping[str, int]) -> list[str]:
    """Return a warning per manifest with a class of fewer training videos than its shots."""
    warnings = []
    for selection in selections:
        shot, names = selection.spec.shot, selection.classes.names
        if shot is None:
            continue
        few = [name for name in names if counts.get(name, 0) < shot]
        if few:
            warnings.append(
                f"{selection.spec.path}: {len(few)} of {len(names)} classes have fewer than "
                f"{shot} training videos, for example {few[0]} ({counts.get(few[0], 0)}); all "
                "their videos are used"
            )
    return warnings
