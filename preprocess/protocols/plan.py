"""Plan all manifests of a pool: match lists and annotations with the videos that are present."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from preprocess.protocols.audit import LABELS, AuditReport, audit
from preprocess.protocols.catalogue import MAPPING_FILE
from preprocess.protocols.checkouts import (
    Checkout,
    ListUse,
    find_first,
    full_class_file,
    no_lists,
    open_checkouts,
    read_lists,
)
from preprocess.protocols.draw import draw, folder_annotations
from preprocess.protocols.lists import read_class_file
from preprocess.protocols.lookup import ClassFinder, VideoIndex
from preprocess.protocols.official import cross_dataset, fully_supervised, official_classes
from preprocess.protocols.records import (
    ClassFile,
    ClassNames,
    ListSource,
    ManifestPlan,
    MissingVideo,
    PlannedRow,
    ProtocolPlan,
    Selection,
)
from preprocess.protocols.zero_shot import cut_in_halves
from preprocess.sources import Source
from preprocess.sources.naming import storable, youtube_id
from shards.errors import ConfigError


def plan_protocols(
    source: Source, splits: Sequence[Path], *, labels: str = "csv", seed: int = 0
) -> ProtocolPlan:
    """Plan every manifest of these videos, and audit the labels of the lists.

    Args:
        splits: checkouts in order, the first that has a file is used; without any, few_shot and
            base_to_novel are drawn by `seed`
        labels: csv | official | legacy, see `preprocess.protocols.audit`

    Raises:
        ConfigError: the lists, class files or labels are unusable. A list line without a video is
            no error: it counts as missing."""
    if labels not in LABELS:
        raise ConfigError(f"labels={labels}: unknown value; choose one of {', '.join(LABELS)}")
    if splits:
        return _plan_from_lists(source, open_checkouts(splits), labels)
    return _plan_own(source, seed)


def _plan_from_lists(source: Source, checkouts: Sequence[Checkout], labels: str) -> ProtocolPlan:
    """Plan the manifests of published lists and of the official lists."""
    dataset, annotations = source.dataset, source.annotations
    uses = read_lists(dataset, checkouts)
    full_file = full_class_file(dataset, checkouts)
    mapping = None
    if dataset.shared_classes is not None:
        mapping = find_first(checkouts, (MAPPING_FILE,))
    # Checkouts of another data set would otherwise give a pool without manifests and no error.
    if not uses and (annotations is None or (full_file is None and mapping is None)):
        raise no_lists(dataset, checkouts)

    # All known class names, to tell class folders from other folders.
    files = [use.class_file for use in uses if use.class_file is not None]
    if full_file is not None:
        files.append(full_file)
    index = VideoIndex(source)
    finder = ClassFinder(source, (name for file in files for name in file.names))
    report = _audit_lines(uses, index, finder, labels)
    full = _full_names(full_file, report, labels)

    # Several sources may make one manifest; the first of them is used.
    listed = [selection for use in uses for selection in _selections(use, report)]
    official: list[Selection] = []
    if annotations is not None:
        official += fully_supervised(annotations, official_classes(annotations, full))
        if mapping is not None and dataset.shared_classes is not None:
            shared = read_class_file(mapping[1])
            official += cross_dataset(annotations, dataset.shared_classes, shared)
    if dataset.official_lists_first:
        selections = _merge(official, listed)
    else:
        selections = _merge(listed, official)

    return ProtocolPlan(
        manifests=[_plan_manifest(selection, index) for selection in selections],
        missing=_missing_videos(index, finder),
        classes=full.names if full is not None else _own_classes(source),
        warnings=_malformed(uses),
        num_audited=report.num_audited,
        num_not_audited=report.num_not_audited,
    )


def _plan_own(source: Source, seed: int) -> ProtocolPlan:
    """Plan without published lists: the official split if there is one, and draws from it."""
    annotations = source.annotations
    # A data set whose keys are paths may have no official split; it is drawn from the folders.
    if annotations is None and source.dataset.path_keyed:
        annotations = folder_annotations(source, seed)
        if not annotations.classes:
            raise ConfigError(
                f"{source.root}: has no class folders, so no video has a class; give the folder "
                "that holds one folder per class with --videos, or lists with --splits"
            )
    if annotations is None:
        selections: list[Selection] = []
        warnings = [
            f"{source.dataset.name}: neither --splits nor --annotations is given, so there are no "
            "manifests"
        ]
    else:
        selections = fully_supervised(annotations, official_classes(annotations, None))
        own, warnings = draw(source.dataset, annotations, seed)
        selections += own

    index = VideoIndex(source)
    return ProtocolPlan(
        manifests=[_plan_manifest(selection, index) for selection in selections],
        missing=_missing_videos(index, ClassFinder(source, ())),
        classes=annotations.classes if annotations is not None else _own_classes(source),
        warnings=warnings,
        num_audited=0,
        num_not_audited=0,
    )


def _audit_lines(
    uses: Sequence[ListUse], index: VideoIndex, finder: ClassFinder, labels: str
) -> AuditReport:
    """Look up every list line and audit its label."""
    # Looked up first with file and line number, which the error of an ambiguous line names.
    for split_list in {use.split_list.path: use.split_list for use in uses}.values():
        for number, name in zip(split_list.line_numbers, split_list.names, strict=True):
            index.find(name, where=f"{split_list.path}: line {number}")

    def class_of(name: str) -> str | None:
        return finder.class_of(index.key_of(name), index.find(name, where=""))

    return audit(uses, class_of, labels)


def _full_names(full_file: ClassFile | None, report: AuditReport, labels: str) -> ClassNames | None:
    """Return the names of all classes, audited if a list uses their file."""
    if full_file is None:
        return None
    # A class file that no list uses could not be audited: its names stay.
    kind = "legacy" if labels == "legacy" else "csv"
    as_written = ClassNames(full_file.names, kind, full_file.sha256)
    return report.names.get(full_file.path, as_written)


def _own_classes(source: Source) -> list[str]:
    """Return the official classes, else those of the videos, sorted."""
    if source.annotations is not None:
        return source.annotations.classes
    return sorted({video.class_name for video in source.videos if video.class_name is not None})


def _selections(use: ListUse, report: AuditReport) -> list[Selection]:
    """Return the one manifest of a list, or BIKE's ten halves of it."""
    split_list = use.split_list
    selection = Selection(
        spec=use.rule.spec,
        classes=report.names_of(use),
        source=ListSource(use.source, split_list.sha256),
        names=split_list.names,
        labels=split_list.labels,
    )
    return cut_in_halves(selection) if use.rule.in_halves else [selection]


def _merge(first: Sequence[Selection], second: Sequence[Selection]) -> list[Selection]:
    """Return all selections; where both make one manifest, that of `first`."""
    taken = {selection.spec.path for selection in first}
    return [*first, *(selection for selection in second if selection.spec.path not in taken)]


def _malformed(uses: Iterable[ListUse]) -> list[str]:
    """Return a warning per list with lines that are left out because of their form."""
    lists = {use.split_list.path: use.split_list for use in uses}
    return [
        f"{path}: {split_list.num_malformed} lines are not `path label` and are left out, "
        f"the first is line {split_list.first_malformed}"
        for path, split_list in lists.items()
        if split_list.num_malformed
    ]


def _plan_manifest(selection: Selection, index: VideoIndex) -> ManifestPlan:
    """Look up the videos of one manifest."""
    rows: list[PlannedRow] = []
    missing: list[str] = []
    for name, label in zip(selection.names, selection.labels, strict=True):
        video = index.find(name, where=selection.source.name)
        if video is None:
            missing.append(storable(name))
        else:
            rows.append(PlannedRow(video.key, label))
    return ManifestPlan(selection.spec, selection.classes, selection.source, rows, missing)


def _missing_videos(index: VideoIndex, finder: ClassFinder) -> list[MissingVideo]:
    """Return each missing video of the annotation files and of the lists looked up so far, once.

    Two spellings of a key that differ in case count once, except in Kinetics, where case matters;
    there a bare YouTube id is left out if a key with times has the same id."""
    # The annotation files come first: their spelling of a key is used.
    keys: list[str] = []
    if index.source.annotations is not None:
        keys += [key for key in index.source.annotations.class_of if not index.has(key)]
    keys += [index.key_of(name) for name in index.absent_names()]

    unique: dict[str, str] = {}
    for key in keys:
        has_ids = index.source.dataset.has_youtube_ids
        unique.setdefault(key if has_ids else key.casefold(), key)
    missing = list(unique.values())
    if index.source.dataset.has_youtube_ids:
        with_times = {youtube_id(key) for key in missing if key != youtube_id(key)}
        missing = [key for key in missing if key not in with_times]
    missing.sort(key=str.encode)
    return [MissingVideo(key, finder.class_of(key, None)) for key in missing]
