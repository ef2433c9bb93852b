"""Select lines of an official list: all of some classes, or a seeded number per class.

The rule of a draw: a video's position is the sha256 of "<seed> TAB <key>" in UTF-8, and a draw of
K takes the first K videos of each class in that order. Hence a draw is the same on every machine
and does not depend on the files that are present, the 2-shot videos are among the 4-shot videos,
and a new class changes the draw of no other class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

from preprocess.protocols.records import ClassNames, ListSource, ManifestSpec, Selection
from preprocess.sources import DataSet, OfficialList


def keyed_order(keys: Iterable[str], seed: int) -> list[str]:
    """Sort keys by sha256 of "<seed> TAB <key>"."""
    return sorted(keys, key=lambda key: sha256(f"{seed}\t{key}".encode()).digest())


def drawn(seed: int) -> str:
    """Return the `source` that drawn manifests state."""
    return f"drawn, seed {seed}"


def select_classes(
    spec: ManifestSpec,
    official: OfficialList,
    classes: ClassNames,
    *,
    ids: Mapping[str, int] | None = None,
    source: str | None = None,
) -> Selection:
    """Select the lines of a list by class, in the order of the list.

    Args:
        ids: class -> label of the lines to select; default: the positions in `classes`
        source: origin to state; default: that of the list"""
    ids = _positions(classes) if ids is None else ids
    names: list[str] = []
    labels: list[int] = []
    for name, class_name in zip(official.names, official.classes, strict=True):
        if class_name in ids:
            names.append(name)
            labels.append(ids[class_name])
    origin = ListSource(official.source if source is None else source, official.sha256)
    return Selection(spec, classes, origin, names, labels)


def draw_shots(
    dataset: DataSet, spec: ManifestSpec, train: OfficialList, classes: ClassNames, *, source: str
) -> Selection:
    """Draw `spec.shot` videos of each class by `spec.seed`, class by class."""
    assert spec.seed is not None
    ids = _positions(classes)
    # By key: a key that a list names twice is drawn once.
    names_of: dict[str, dict[str, str]] = {name: {} for name in classes.names}  # key -> name
    for name, class_name in zip(train.names, train.classes, strict=True):
        if class_name in ids:
            names_of[class_name][dataset.key_of(name)] = name

    names: list[str] = []
    labels: list[int] = []
    for class_name, name_of in names_of.items():
        chosen = keyed_order(name_of, spec.seed)[: spec.shot]
        names += [name_of[key] for key in chosen]
        labels += [ids[class_name]] * len(chosen)
    return Selection(spec, classes, ListSource(source, train.sha256), names, labels)


def _positions(classes: ClassNames) -> dict[str, int]:
    return {name: label for label, name in enumerate(classes.names)}
