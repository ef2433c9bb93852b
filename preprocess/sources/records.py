"""What a data set is to a build: its files, its classes, its official lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.sources.naming import youtube_id


@dataclass(frozen=True)
class ExpectedSource:
    """What a file was while it was known to be good; None is not compared."""

    num_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class SourceVideo:
    """One video file below `--videos`.

    key: stable sample id, percent-encoded (shards/README.md, Key)
    path: absolute path of the file
    relative_path: below `--videos`, `/` between parts; bytes that are not UTF-8 are percent-encoded
    class_name: from the official annotation files, else the folder; None if neither names one
    expected: what `--expect-sources` states of it, None if nothing"""

    key: str
    path: Path
    relative_path: str
    num_bytes: int
    class_name: str | None
    expected: ExpectedSource | None = None


@dataclass(frozen=True)
class OfficialList:
    """One list of the data set's own split.

    number: 1 to 3; 1 where the data set has a single split
    split: train | val (an official test list is val: it is what papers score)
    names, classes: of each line, in the list's order
    source, sha256: what a manifest says about where it comes from"""

    number: int
    split: str
    names: list[str]
    classes: list[str]
    source: str
    sha256: str


@dataclass(frozen=True)
class Annotations:
    """The data set's own annotation files.

    classes: official spelling, official order
    class_of: key -> class of every video that the files name
    class_of_id: YouTube id -> class; Kinetics only, since lists and mirrors drop the times from the
        name"""

    classes: list[str]
    class_of: Mapping[str, str]
    lists: list[OfficialList]
    class_of_id: Mapping[str, str] = field(default_factory=dict)

    def official_class(self, key: str) -> str | None:
        """The class of a video, None if the files do not name it."""
        found = self.class_of.get(key)
        if found is None and self.class_of_id:
            return self.class_of_id.get(youtube_id(key) or "")
        return found


@dataclass(frozen=True)
class Source:
    """All videos of a data set, sorted by the UTF-8 bytes of their keys, and its annotations if
    given."""

    dataset: str
    root: Path
    videos: list[SourceVideo]
    annotations: Annotations | None
