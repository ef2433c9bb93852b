"""Compare the class names of every list line with the data set's own class of that video.

Published class files are wrong in places (ViFi-CLIP's HMDB-51 CSVs swap kick / kick ball and sword
/ sword exercise), and a wrong name costs accuracy without any error. Three ways to go on:

csv       the class file is right; a disagreement stops
official  the name of id i is the one official class of all lines with label i
legacy    the class file is kept although it is wrong, to repeat published numbers"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.protocols.checkouts import ListUse
from preprocess.protocols.records import ClassFile, ClassNames, own_class_names
from preprocess.sources.naming import fold_name
from shards.errors import ConfigError

LABELS = ("csv", "official", "legacy")
_MOST_NAMED = 20

ClassOf = Callable[[str], str | None]


@dataclass(frozen=True)
class AuditReport:
    """The class names that each list's labels index.

    names: by class file; None stands for lists without one, keyed by their own path in
        `names_without_file`
    num_audited, num_not_audited: lines, each list counted once per class file"""

    names: Mapping[Path, ClassNames]
    names_without_file: Mapping[Path, ClassNames]
    num_audited: int
    num_not_audited: int

    def names_of(self, use: ListUse) -> ClassNames:
        """The class names of one list."""
        if use.class_file is None:
            return self.names_without_file[use.split_list.path]
        return self.names[use.class_file.path]


def audit(uses: Sequence[ListUse], class_of: ClassOf, labels: str) -> AuditReport:
    """Audit every line of every list, found or not. `class_of` tells the class of a line's name,
    None if unknown.

    Raises: ConfigError for a label outside its class file, for a disagreement under `csv`, for an
        id with two
    official classes under `official`."""
    counts: dict[tuple[Path, Path | None], Counter[tuple[int, str | None]]] = {}
    for use in uses:
        where = (use.split_list.path, use.class_file.path if use.class_file is not None else None)
        if where not in counts:
            _check_range(use)
            known = map(class_of, use.split_list.names)
            counts[where] = Counter(zip(use.split_list.labels, known, strict=True))
    files = {use.class_file.path: use.class_file for use in uses if use.class_file is not None}
    by_file = {
        path: _votes([votes for (_, file), votes in counts.items() if file == path])
        for path in files
    }
    if labels == "csv":
        _check_agreement(files, by_file)
    names = {
        path: _official_names(file, by_file[path])
        if labels == "official"
        else ClassNames(file.names, labels, file.sha256)
        for path, file in files.items()
    }
    without = {
        path: _names_from_lines(path, _votes([votes]))
        for (path, file), votes in counts.items()
        if file is None
    }
    num_lines = sum(votes.total() for votes in counts.values())
    unknown = sum(
        count for votes in counts.values() for (_, name), count in votes.items() if name is None
    )
    return AuditReport(names, without, num_lines - unknown, unknown)


def _check_range(use: ListUse) -> None:
    """Every label must index a name."""
    split_list = use.split_list
    num_classes = (
        len(use.class_file.names) if use.class_file is not None else max(split_list.labels) + 1
    )
    if min(split_list.labels) >= 0 and max(split_list.labels) < num_classes:
        return
    for number, label in zip(split_list.line_numbers, split_list.labels, strict=True):
        if not 0 <= label < num_classes:
            source = (
                f"the {num_classes} classes of {use.class_file.path}"
                if use.class_file is not None
                else "0 and up"
            )
            raise ConfigError(
                f"{split_list.path}: line {number} has label {label}, outside {source} "
                f"(0 to {num_classes - 1}); give the class file that belongs to this list"
            )


def _votes(counts: Sequence[Counter[tuple[int, str | None]]]) -> dict[int, dict[str, str]]:
    """For each label its official classes: folded name -> spelling."""
    votes: dict[int, dict[str, str]] = {}
    for pairs in counts:
        for label, name in pairs:
            if name is not None:
                spellings = votes.setdefault(label, {})
                folded = fold_name(name)
                spellings[folded] = min(spellings.get(folded, name), name)
    return votes


def _check_agreement(
    files: Mapping[Path, ClassFile], by_file: Mapping[Path, Mapping[int, Mapping[str, str]]]
) -> None:
    """One error for all class files, naming each wrong class once."""
    wrong: dict[str, str] = {}  # folded -> as the class file spells it
    wrong_files: list[Path] = []
    example = ""
    for path, file in files.items():
        for label, spellings in sorted(by_file[path].items()):
            name = file.names[label]
            others = [
                spelling for folded, spelling in spellings.items() if folded != fold_name(name)
            ]
            if not others:
                continue
            wrong.setdefault(fold_name(name), name)
            example = example or f"id {label} is {name!r} there, its videos are {others[0]!r}"
            if path not in wrong_files:
                wrong_files.append(path)
    if not wrong:
        return
    names = sorted(wrong.values())
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    raise ConfigError(
        f"{', '.join(map(str, wrong_files))}: the names of {len(names)} classes disagree with the data set: "
        f"{', '.join(names[:_MOST_NAMED])}{more} ({example}); take the data set's names with "
        "`--set labels=official`, or keep these to repeat published numbers with `--set labels=legacy`"
    )


def _official_names(file: ClassFile, votes: Mapping[int, Mapping[str, str]]) -> ClassNames:
    """The official name of each id; an id that no audited line has keeps the name of the file."""
    names = list(file.names)
    for label, spellings in sorted(votes.items()):
        names[label] = _only(spellings, label, file.path)
    folded = Counter(map(fold_name, names))
    twice = [name for name in names if folded[fold_name(name)] > 1]
    if twice:
        raise ConfigError(
            f"{file.path}: with labels=official two ids have the name {twice[0]!r}, since the lists at hand do not "
            "name a video of each class; give the full lists or `--set labels=legacy`"
        )
    return ClassNames(names, "official", file.sha256)


def _names_from_lines(path: Path, votes: Mapping[int, Mapping[str, str]]) -> ClassNames:
    """Class names of a list without a class file: id -> the one class of its lines."""
    if sorted(votes) != list(range(len(votes))) or not votes:
        raise ConfigError(
            f"{path}: no class file for it in --splits, and the data set does not tell the class of each label; "
            "give the folder of the class files with another --splits, or --annotations DIR"
        )
    return own_class_names(_only(votes[label], label, path) for label in range(len(votes)))


def _only(spellings: Mapping[str, str], label: int, path: Path) -> str:
    if len(spellings) > 1:
        first, second = sorted(spellings.values())[:2]
        raise ConfigError(
            f"{path}: label {label} has videos of two classes of the data set, {first!r} and {second!r}; "
            "the list is wrong, or it belongs to another class file: correct --splits"
        )
    return next(iter(spellings.values()))
