"""What the lists say, before and after they meet the videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path


@dataclass(frozen=True)
class ManifestSpec:
    """Which manifest: `<protocol>/<name>` and the facts that its metadata repeats.

    part: base | novel | all
    split: train | val
    shot: videos per class, None for all
    seed: of the draw, None where nothing was drawn"""

    protocol: str
    name: str
    split: str
    part: str = "all"
    shot: int | None = None
    seed: int | None = None

    @property
    def path(self) -> str:
        """`<protocol>/<name>`."""
        return f"{self.protocol}/{self.name}"


@dataclass(frozen=True)
class ClassNames:
    """The class names that the labels of a list index.

    labels: csv | official | legacy, see `preprocess.protocols.audit`
    sha256: of the raw bytes of the class file, else of the names"""

    names: list[str]
    labels: str
    sha256: str


@dataclass(frozen=True)
class Selection:
    """One manifest before its names are looked up: a list's names and labels, in the list's
    order."""

    spec: ManifestSpec
    classes: ClassNames
    source: str
    source_sha256: str
    names: list[str]
    labels: list[int]


@dataclass(frozen=True)
class PlannedRow:
    """A list line whose video was found."""

    key: str
    label: int


@dataclass(frozen=True)
class ManifestPlan:
    """One manifest before its videos are decoded.

    labels: whose names `classes` are: csv (the class file) | official (the data set) | legacy (the
        class file, kept)
    expected: lines of the list; found lines are `rows`, names of the others are `missing`, both in
        its order"""

    protocol: str
    name: str
    part: str
    split: str
    shot: int | None
    seed: int | None
    classes: list[str]
    labels: str
    source: str
    source_sha256: str
    classes_sha256: str
    expected: int
    rows: list[PlannedRow]
    missing: list[str]

    @property
    def path(self) -> str:
        """`<protocol>/<name>`."""
        return f"{self.protocol}/{self.name}"


@dataclass(frozen=True)
class MissingVideo:
    """A video that a list or an annotation file in use names and no file answers."""

    key: str
    class_name: str | None


@dataclass(frozen=True)
class ProtocolPlan:
    """All manifests of a pool.

    missing: each video once, sorted by key
    classes: the data set's classes, for pool.json
    num_audited, num_not_audited: list lines whose class was known from another source, and the
        others"""

    manifests: list[ManifestPlan]
    missing: list[MissingVideo]
    classes: list[str]
    warnings: list[str]
    num_audited: int
    num_not_audited: int


def own_class_names(names: Iterable[str]) -> ClassNames:
    """Class names that come from the data set itself, not from a class file."""
    names = list(names)
    return ClassNames(
        names, "official", sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    )


@dataclass(frozen=True)
class ClassFile:
    """A file of class names; position is id."""

    path: Path
    names: list[str]
    sha256: str


@dataclass(frozen=True)
class SplitList:
    """A list as it is in its file.

    names: may hold surrogate escapes where the file is not UTF-8
    line_numbers: of each name, from 1
    num_malformed: lines that are neither empty nor `path label`; `first_malformed` is the first
        one's number"""

    path: Path
    sha256: str
    names: list[str]
    labels: list[int]
    line_numbers: list[int]
    num_malformed: int
    first_malformed: int | None
