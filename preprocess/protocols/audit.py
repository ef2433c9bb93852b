"""Compare the class name of every list line with the data set's own class of that video.

Published class files contain errors (ViFi-CLIP's HMDB-51 CSV files swap kick and kick ball, sword
and sword exercise), and a wrong name lowers accuracy without any error message. `--set labels=`
chooses what a disagreement means:

csv       the class file is taken as correct; a disagreement is an error
official  id i gets the one official class that all lines with label i have
legacy    the class file is kept although it is wrong, to reproduce published numbers"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.protocols.checkouts import ListUse
from preprocess.protocols.records import ClassFile, ClassNames, own_class_names
from shards.errors import ConfigError
from shards.files import name_some
from shards.format.names import fold_name

LABELS = ("csv", "official", "legacy")
_MOST_NAMED = 20

ClassOf = Callable[[str], str | None]
Votes = Counter[tuple[int, str | None]]  # (label, class from another source) -> lines
Spellings = Mapping[int, Mapping[str, str]]  # label -> folded official name -> official name


@dataclass(frozen=True)
class AuditReport:
    """The class names that the labels of each list index, and the number of lines compared."""

    names: Mapping[Path, ClassNames]
    """By class file."""
    names_without_file: Mapping[Path, ClassNames]
    """By list, for lists without a class file."""
    num_audited: int
    """Lines whose class is known from another source; a list counts once per class file."""
    num_not_audited: int

    def names_of(self, use: ListUse) -> ClassNames:
        """Return the class names of one list."""
        if use.class_file is None:
            return self.names_without_file[use.split_list.path]
        return self.names[use.class_file.path]


def audit(uses: Sequence[ListUse], class_of: ClassOf, labels: str) -> AuditReport:
    """Audit every line of every list, whether its video was found or not.

    Args:
        class_of: return the class of a line's name from another source, None if it is unknown
        labels: csv | official | legacy

    Raises:
        ConfigError: a label outside its class file, a disagreement under `csv`, or an id with two
            official classes under `official`."""
    # Several manifests may use one list with the same class file; it is audited once.
    votes_of: dict[tuple[Path, Path | None], Votes] = {}
    for use in uses:
        pair = (use.split_list.path, use.class_file.path if use.class_file is not None else None)
        if pair not in votes_of:
            _check_range(use)
            known = map(class_of, use.split_list.names)
            votes_of[pair] = Counter(zip(use.split_list.labels, known, strict=True))

    files = {use.class_file.path: use.class_file for use in uses if use.class_file is not None}
    spellings: dict[Path, Spellings] = {}
    # All lists of a class file vote together, so that each id has the lines of every list.
    for path in files:
        spellings[path] = _spellings(
            [votes for (_, used), votes in votes_of.items() if used == path]
        )
    if labels == "csv":
        _check_agreement(files, spellings)

    names: dict[Path, ClassNames] = {}
    for path, file in files.items():
        if labels == "official":
            names[path] = _official_names(file, spellings[path])
        else:
            names[path] = ClassNames(file.names, labels, file.sha256)
    names_without_file = {
        path: _names_from_lines(path, _spellings([votes]))
        for (path, used), votes in votes_of.items()
        if used is None
    }
    num_lines = sum(votes.total() for votes in votes_of.values())
    num_unknown = sum(map(_count_unknown, votes_of.values()))
    return AuditReport(names, names_without_file, num_lines - num_unknown, num_unknown)


def _count_unknown(votes: Votes) -> int:
    return sum(count for (_, name), count in votes.items() if name is None)


def _check_range(use: ListUse) -> None:
    """Check that every label indexes a class name."""
    split_list = use.split_list
    if use.class_file is not None:
        num_classes = len(use.class_file.names)
        limit = f"the {num_classes} classes of {use.class_file.path}"
    else:
        num_classes = max(split_list.labels) + 1
        limit = "the ids from 0"
    if min(split_list.labels) >= 0 and max(split_list.labels) < num_classes:
        return
    for number, label in zip(split_list.line_numbers, split_list.labels, strict=True):
        if not 0 <= label < num_classes:
            raise ConfigError(
                f"{split_list.path}: line {number} has label {label}, outside {limit} "
                f"(0 to {num_classes - 1}); give the class file that belongs to this list"
            )


def _spellings(counts: Sequence[Votes]) -> Spellings:
    """Return the official classes that the lines of each label have."""
    spellings: dict[int, dict[str, str]] = {}
    for votes in counts:
        for label, name in votes:
            if name is not None:
                of_label = spellings.setdefault(label, {})
                folded = fold_name(name)
                # Sources may spell a class differently; the choice must not depend on their order.
                of_label[folded] = min(of_label.get(folded, name), name)
    return spellings


def _check_agreement(files: Mapping[Path, ClassFile], spellings: Mapping[Path, Spellings]) -> None:
    """Raise one error for all class files that names each wrong class once."""
    wrong: dict[str, str] = {}  # folded name -> name as the class file spells it
    wrong_files: list[Path] = []
    example = ""
    for path, file in files.items():
        for label, of_label in sorted(spellings[path].items()):
            name = file.names[label]
            others = [other for folded, other in of_label.items() if folded != fold_name(name)]
            if not others:
                continue
            wrong.setdefault(fold_name(name), name)
            example = example or f"id {label} is {name!r} there, its videos are {others[0]!r}"
            if path not in wrong_files:
                wrong_files.append(path)
    if not wrong:
        return

    names = name_some(sorted(wrong.values()), _MOST_NAMED)
    raise ConfigError(
        f"{', '.join(map(str, wrong_files))}: the names of {len(wrong)} classes disagree with the "
        f"data set: {names} ({example}); take the data set's names "
        "with `--set labels=official`, or keep these to repeat published numbers with "
        "`--set labels=legacy`"
    )


def _official_names(file: ClassFile, spellings: Spellings) -> ClassNames:
    """Return the official name of each id; an id without an audited line keeps its name."""
    names = list(file.names)
    for label, of_label in sorted(spellings.items()):
        names[label] = _only(of_label, label, file.path)
    # A corrected id may get the name of an id that no line has and that kept its name.
    folded = Counter(map(fold_name, names))
    twice = [name for name in names if folded[fold_name(name)] > 1]
    if twice:
        raise ConfigError(
            f"{file.path}: with labels=official two ids have the name {twice[0]!r}, because the "
            "given lists do not name a video of each class; give the full lists or "
            "`--set labels=legacy`"
        )
    return ClassNames(names, "official", file.sha256)


def _names_from_lines(path: Path, spellings: Spellings) -> ClassNames:
    """Name the ids of a list without a class file by the classes of its lines."""
    if sorted(spellings) != list(range(len(spellings))) or not spellings:
        raise ConfigError(
            f"{path}: --splits holds no class file for it, and the class of a label is not known "
            "from the data set either; give the folder of the class files with another --splits, "
            "or --annotations DIR"
        )
    return own_class_names(_only(spellings[label], label, path) for label in range(len(spellings)))


def _only(spellings: Mapping[str, str], label: int, path: Path) -> str:
    """Return the one official class of a label."""
    if len(spellings) > 1:
        first, second = sorted(spellings.values())[:2]
        raise ConfigError(
            f"{path}: label {label} has videos of two classes of the data set, {first!r} and "
            f"{second!r}; the list is wrong, or it belongs to another class file: correct --splits"
        )
    return next(iter(spellings.values()))
