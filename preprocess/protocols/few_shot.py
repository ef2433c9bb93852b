"""The protocol few_shot: K training videos per class, and one validation list."""

from __future__ import annotations

from collections.abc import Iterator

from preprocess.protocols.records import ListRule, ManifestSpec, Selection, own_class_names
from preprocess.protocols.selections import draw_shots, drawn, select_classes
from preprocess.sources import DataSet, OfficialList

SHOTS = (2, 4, 8, 16)

_VAL = ManifestSpec("few_shot", "val", "val")


def few_shot_rules(dataset: DataSet, folder: str) -> Iterator[ListRule]:
    """Yield the rules of the published few-shot lists in a folder of a checkout."""
    if dataset.few_shot_val is None:
        return
    classes = (dataset.class_file,)
    # The published lists are draws from the official split 1, as their names say.
    for shot in SHOTS:
        yield ListRule(_train(shot), f"{folder}train1_few_shot_{shot}.txt", classes)
    yield ListRule(_VAL, f"{folder}{dataset.few_shot_val}", classes)


def draw_few_shot(
    dataset: DataSet,
    classes: list[str],
    train: OfficialList,
    val: OfficialList | None,
    *,
    seed: int,
) -> Iterator[Selection]:
    """Draw the training lists by `seed`; the validation list is the official one."""
    names = own_class_names(classes)
    for shot in SHOTS:
        yield draw_shots(dataset, _train(shot, seed), train, names, source=drawn(seed))
    if val is not None:
        yield select_classes(_VAL, val, names, source=drawn(seed))


def _train(shot: int, seed: int | None = None) -> ManifestSpec:
    """Return the spec of few_shot/train_k<shot>; a published list states no seed."""
    return ManifestSpec("few_shot", f"train_k{shot}", "train", shot=shot, seed=seed)
