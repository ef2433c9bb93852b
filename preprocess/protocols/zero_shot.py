"""The protocol zero_shot: the published splits, and BIKE's ten seeded halves of the classes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from preprocess.protocols.records import ClassNames, ListRule, ManifestSpec, Selection
from preprocess.sources import DataSet

_NUM_HALVES = 10


def zero_shot_rules(dataset: DataSet, folder: str) -> Iterator[ListRule]:
    """Yield the rules of the published zero-shot lists.

    Args:
        folder: of the lists of the data set in a checkout"""
    for number, listed in enumerate(dataset.zero_shot_lists, start=1):
        spec = ManifestSpec("zero_shot", f"split{number}", "val")
        yield ListRule(spec, f"{folder}{listed.path}", (listed.class_file,))
    halves = dataset.halves_list
    if halves is not None:
        # The spec of the whole list is replaced by those of its halves.
        spec = ManifestSpec("zero_shot", "half", "val")
        yield ListRule(spec, halves.path, (halves.class_file,), num_columns=3, in_halves=True)


def cut_in_halves(full: Selection) -> list[Selection]:
    """Return `half_0` to `half_9`: the lines of K//2 classes, drawn by seed 0 to 9.

    The classes are the first K//2 of numpy's permutation. Labels are renumbered by ascending
    class id, as in BIKE's test_zeroshot; lines keep their order."""
    halves = []
    for seed in range(_NUM_HALVES):
        # RandomState(r) has the state that np.random.seed(r) sets, without the global generator.
        order = np.random.RandomState(seed).permutation(len(full.classes.names)).tolist()
        halves.append(_half(full, sorted(order[: len(order) // 2]), seed))
    return halves


def _half(full: Selection, chosen: list[int], seed: int) -> Selection:
    """Keep the lines of the chosen class ids."""
    # `chosen` is sorted, so the order of the classes stays.
    new_label = {old: new for new, old in enumerate(chosen)}
    names: list[str] = []
    labels: list[int] = []
    for name, label in zip(full.names, full.labels, strict=True):
        if label in new_label:
            names.append(name)
            labels.append(new_label[label])
    chosen_names = [full.classes.names[label] for label in chosen]
    return Selection(
        ManifestSpec("zero_shot", f"half_{seed}", "val", seed=seed),
        ClassNames(chosen_names, full.classes.labels, full.classes.sha256),
        full.source,
        names,
        labels,
    )
