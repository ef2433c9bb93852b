"""Plan all manifests of a pool: lists and annotations against the videos that are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from preprocess.protocols.audit import LABELS, AuditReport, audit
from preprocess.protocols.catalogue import MAPPING_FILE, SHARED_CLASS_DATASETS
from preprocess.protocols.checkouts import (
    ListUse,
    find_first,
    full_class_file,
    no_lists,
    open_checkouts,
    read_lists,
)
from preprocess.protocols.draw import draw, folder_annotations
from preprocess.protocols.halves import cut_in_halves
from preprocess.protocols.lists import read_class_file
from preprocess.protocols.lookup import ClassFinder, VideoIndex
from preprocess.protocols.official import cross_dataset, fully_supervised, official_classes
from preprocess.protocols.records import (
    ClassFile,
    ClassNames,
    ManifestPlan,
    MissingVideo,
    PlannedRow,
    ProtocolPlan,
    Selection,
)
from preprocess.sources import Source
from preprocess.sources.naming import PATH_KEYED, storable, youtube_id
from shards.errors import ConfigError

_YOUTUBE_ID_CHARS = 11


def plan_protocols(
    source: Source, splits: Sequence[Path], *, labels: str = "csv", seed: int = 0
) -> ProtocolPlan:
    """Plan every manifest that the lists, else own draws, give for these videos; audit the labels.

    splits: checkouts in order, the first that has a file wins; none: few_shot and base_to_novel are
        drawn by `seed`
    labels: csv | official | legacy, see `preprocess.protocols.audit`
    Raises: ConfigError for what a user must correct. A list line whose video is absent is not an
        error."""
    if labels not in LABELS:
        raise ConfigError(f"labels={labels}: not a way to read labels; known: {', '.join(LABELS)}")
    index = VideoIndex(source)
    if not splits:
        return _plan_own(source, index, seed)
    checkouts = open_checkouts(splits)
    uses = read_lists(source.dataset, checkouts)
    full_file = full_class_file(source.dataset, checkouts)
    mapping = (
        find_first(checkouts, (MAPPING_FILE,)) if source.dataset in SHARED_CLASS_DATASETS else None
    )
    if not uses and (source.annotations is None or (full_file is None and mapping is None)):
        raise no_lists(source.dataset, checkouts)
    files = [use.class_file for use in uses if use.class_file is not None] + (
        [full_file] if full_file else []
    )
    finder = ClassFinder(source, (name for file in files for name in file.names))
    report = _audit_lines(uses, index, finder, labels)
    full = _full_names(full_file, report, labels)
    listed = [selection for use in uses for selection in _selections(use, report)]
    official: list[Selection] = []
    if source.annotations is not None:
        official = fully_supervised(source.annotations, official_classes(source.annotations, full))
        if mapping is not None:
            official += cross_dataset(
                source.dataset, source.annotations, read_class_file(mapping[1])
            )
    first, second = (official, listed) if source.dataset == "ssv2" else (listed, official)
    taken = {selection.spec.path for selection in first}
    selections = first + [selection for selection in second if selection.spec.path not in taken]
    return _finish(
        selections,
        index,
        finder,
        classes=full.names if full is not None else _own_classes(source),
        warnings=_malformed(uses),
        num_audited=report.num_audited,
        num_not_audited=report.num_not_audited,
    )


def _plan_own(source: Source, index: VideoIndex, seed: int) -> ProtocolPlan:
    """Plan without lists: the data set's own split where it has one, and draws from it."""
    annotations = source.annotations
    if annotations is None and source.dataset in PATH_KEYED:
        annotations = folder_annotations(source, seed)
        if not annotations.classes:
            raise ConfigError(
                f"{source.root}: has no class folders, so no video has a class; give the folder that holds one folder "
                "a class with --videos, or lists with --splits"
            )
    if annotations is None:
        selections: list[Selection] = []
        warnings = [
            f"{source.dataset}: neither --splits nor --annotations is given, so there are no manifests"
        ]
    else:
        selections = fully_supervised(annotations, official_classes(annotations, None))
        own, warnings = draw(source.dataset, annotations, seed)
        selections += own
    return _finish(
        selections,
        index,
        ClassFinder(source, ()),
        classes=annotations.classes if annotations is not None else _own_classes(source),
        warnings=warnings,
        num_audited=0,
        num_not_audited=0,
    )


def _audit_lines(
    uses: Sequence[ListUse], index: VideoIndex, finder: ClassFinder, labels: str
) -> AuditReport:
    """Look up every list line, so that an ambiguous one is named with its number, and audit its
    label."""
    for split_list in {use.split_list.path: use.split_list for use in uses}.values():
        for number, name in zip(split_list.line_numbers, split_list.names, strict=True):
            index.find(name, where=f"{split_list.path}: line {number}")
    return audit(
        uses, lambda name: finder.class_of(index.key_of(name), index.find(name, where="")), labels
    )


def _full_names(full_file: ClassFile | None, report: AuditReport, labels: str) -> ClassNames | None:
    """The names of all classes: audited if a list uses that file, else as they are in it."""
    if full_file is None:
        return None
    as_written = ClassNames(
        full_file.names, "legacy" if labels == "legacy" else "csv", full_file.sha256
    )
    return report.names.get(full_file.path, as_written)


def _own_classes(source: Source) -> list[str]:
    """The data set's classes without a class file: the official ones, else those of the videos,
    sorted."""
    if source.annotations is not None:
        return source.annotations.classes
    return sorted({video.class_name for video in source.videos if video.class_name is not None})


def _selections(use: ListUse, report: AuditReport) -> list[Selection]:
    """What one list gives: one manifest, or BIKE's ten halves."""
    selection = Selection(
        use.rule.spec,
        report.names_of(use),
        use.source,
        use.split_list.sha256,
        use.split_list.names,
        use.split_list.labels,
    )
    return cut_in_halves(selection) if use.rule.in_halves else [selection]


def _malformed(uses: Iterable[ListUse]) -> list[str]:
    """One warning for each list with lines that are left out because they have another form."""
    lists = {use.split_list.path: use.split_list for use in uses}
    return [
        f"{path}: {split_list.num_malformed} lines are not `path label` and are left out, "
        f"the first is line {split_list.first_malformed}"
        for path, split_list in lists.items()
        if split_list.num_malformed
    ]


def _finish(
    selections: Sequence[Selection],
    index: VideoIndex,
    finder: ClassFinder,
    *,
    classes: list[str],
    warnings: list[str],
    num_audited: int,
    num_not_audited: int,
) -> ProtocolPlan:
    """Look up the videos of all selections and collect what is missing."""
    manifests = [_plan_manifest(selection, index) for selection in selections]
    return ProtocolPlan(
        manifests, _missing_videos(index, finder), classes, warnings, num_audited, num_not_audited
    )


def _plan_manifest(selection: Selection, index: VideoIndex) -> ManifestPlan:
    rows: list[PlannedRow] = []
    missing: list[str] = []
    for name, label in zip(selection.names, selection.labels, strict=True):
        video = index.find(name, where=selection.source)
        if video is None:
            missing.append(storable(name))
        else:
            rows.append(PlannedRow(video.key, label))
    spec = selection.spec
    return ManifestPlan(
        protocol=spec.protocol,
        name=spec.name,
        part=spec.part,
        split=spec.split,
        shot=spec.shot,
        seed=spec.seed,
        classes=selection.classes.names,
        labels=selection.classes.labels,
        source=selection.source,
        source_sha256=selection.source_sha256,
        classes_sha256=selection.classes.sha256,
        expected=len(selection.names),
        rows=rows,
        missing=missing,
    )


def _missing_videos(index: VideoIndex, finder: ClassFinder) -> list[MissingVideo]:
    """Each absent video once: those that the annotation files name, then those of the lists just
    looked up.

    Two spellings of one key count once, except in Kinetics, where case matters and a bare YouTube
    id is left out if a name with times has it."""
    annotations = index.source.annotations
    keys = (
        [key for key in annotations.class_of if not index.has(key)]
        if annotations is not None
        else []
    )
    keys += [index.key_of(name) for name in index.absent_names()]
    unique: dict[str, str] = {}
    for key in keys:
        unique.setdefault(key if index.is_kinetics else key.casefold(), key)
    found = list(unique.values())
    if index.is_kinetics:
        with_times = {youtube_id(key) for key in found if len(key) > _YOUTUBE_ID_CHARS}
        found = [key for key in found if key not in with_times]
    found.sort(key=str.encode)
    return [MissingVideo(key, finder.class_of(key, None)) for key in found]
