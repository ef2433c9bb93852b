"""Record types for split lists and for the manifests planned from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path


@dataclass(frozen=True)
class ManifestSpec:
    """The identity of a manifest, as its metadata states it."""

    protocol: str
    name: str
    split: str
    """train | val"""
    part: str = "all"
    """base | novel | all"""
    shot: int | None = None
    """Training videos per class; None for all of them."""
    seed: int | None = None
    """Seed of the draw; None if nothing was drawn."""

    @property
    def path(self) -> str:
        """Return `<protocol>/<name>`."""
        return f"{self.protocol}/{self.name}"


@dataclass(frozen=True)
class ListRule:
    """Where the list of a manifest lies in a checkout."""

    spec: ManifestSpec
    list_file: str
    class_files: tuple[str, ...]
    """In order of preference: the first that exists is used."""
    num_columns: int = 2
    """2 for `path label`, 3 for BIKE's `path frames label`."""
    in_halves: bool = False
    """Cut the list into `half_0` to `half_9` instead of making one manifest."""


@dataclass(frozen=True)
class ClassFile:
    """A file of class names; the position of a name is its id."""

    path: Path
    names: list[str]
    sha256: str


@dataclass(frozen=True)
class SplitList:
    """A split list as it is in its file."""

    path: Path
    sha256: str
    names: list[str]
    """With surrogate escapes where the file is not UTF-8."""
    labels: list[int]
    line_numbers: list[int]
    """Of each name, counted from 1."""
    num_malformed: int
    """Lines that are neither empty nor `path label`."""
    first_malformed: int | None
    """Number of the first such line."""


@dataclass(frozen=True)
class ClassNames:
    """The class names that the labels of a list index."""

    names: list[str]
    labels: str
    """csv | official | legacy: the origin of the names, see `preprocess.protocols.audit`."""
    sha256: str
    """Of the raw bytes of the class file, else of the names."""


@dataclass(frozen=True)
class ListSource:
    """The origin of a list, as a manifest states it."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Selection:
    """A manifest before its videos are looked up: names and labels in the order of the list."""

    spec: ManifestSpec
    classes: ClassNames
    source: ListSource
    names: list[str]
    labels: list[int]


@dataclass(frozen=True)
class PlannedRow:
    """A list line whose video was found."""

    key: str
    label: int


@dataclass(frozen=True)
class ManifestPlan:
    """A manifest before its videos are decoded."""

    spec: ManifestSpec
    classes: ClassNames
    source: ListSource
    rows: list[PlannedRow]
    """The lines whose video was found, in the order of the list."""
    missing: list[str]
    """The names of the other lines, in the order of the list."""

    @property
    def path(self) -> str:
        """Return `<protocol>/<name>`."""
        return self.spec.path

    @property
    def expected(self) -> int:
        """Number of lines of the list."""
        return len(self.rows) + len(self.missing)


@dataclass(frozen=True)
class MissingVideo:
    """A video that a list or an annotation file names, without a file below `--videos`."""

    key: str
    class_name: str | None


@dataclass(frozen=True)
class ProtocolPlan:
    """All manifests of a pool."""

    manifests: list[ManifestPlan]
    missing: list[MissingVideo]
    """Each missing video once, sorted by key."""
    classes: list[str]
    """Classes of the data set, for `pool.json`."""
    warnings: list[str]
    num_audited: int
    """List lines whose label was compared with a class from another source."""
    num_not_audited: int
    """List lines without such a source."""


def own_class_names(names: Iterable[str]) -> ClassNames:
    """Return class names that come from the data set itself, not from a class file."""
    names = list(names)
    text = "".join(f"{name}\n" for name in names)
    return ClassNames(names, "official", sha256(text.encode()).hexdigest())
