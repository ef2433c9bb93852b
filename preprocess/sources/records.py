"""Record types for a data set: how it is laid out, its videos, and its official lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from preprocess.sources.naming import parent_folder, storable, video_key, youtube_id
from shards.format.names import fold_name

_SPLIT_FOLDER = re.compile(r"(?:train|val|validate|validation|test)(?:[-_]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class ExpectedSource:
    """Size and hash of a source file that is known to be good; None is not compared."""

    num_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class SourceVideo:
    """One video file below `--videos`."""

    key: str
    """Stable sample id, percent-encoded (shards/README.md, Key)."""
    path: Path
    """Absolute path of the file."""
    relative_path: str
    """Path below `--videos`, `/` between parts; bytes that are not UTF-8 are percent-encoded."""
    num_bytes: int
    class_name: str | None
    """From the official annotation files, else from the folder; None if neither names a class."""
    expected: ExpectedSource | None = None
    """The entry of `--expect-sources` for this video; None without one."""


@dataclass(frozen=True)
class OfficialList:
    """One list of the data set's own split."""

    number: int
    """Split 1, 2 or 3; always 1 for a data set with a single split."""
    split: str
    """train | val. An official test list is `val`, because papers report accuracy on it."""
    names: list[str]
    """Path or file name of each line, in the order of the list."""
    classes: list[str]
    """Class of each line."""
    source: str
    """Origin of the list, as manifests state it."""
    sha256: str
    """Hash of the file or files that the list was read from."""


@dataclass(frozen=True)
class Annotations:
    """The data set's own annotation files."""

    classes: list[str]
    """Class names in the official spelling and the official order."""
    class_of: Mapping[str, str]
    """Key -> class, for every video that the files name."""
    lists: list[OfficialList]
    class_of_id: Mapping[str, str] = field(default_factory=dict)
    """YouTube id -> class. Kinetics only: lists and mirrors omit the times from a name."""

    @classmethod
    def from_lists(
        cls, classes: list[str], lists: list[OfficialList], *, keep_folders: bool = False
    ) -> Annotations:
        """Return annotations whose videos are those of the lists.

        Args:
            classes: in the official order
            keep_folders: as `path_keyed` of the data set"""
        class_of: dict[str, str] = {}
        for rows in lists:
            for name, class_name in zip(rows.names, rows.classes, strict=True):
                class_of[video_key(name, keep_folders=keep_folders)] = class_name
        return cls(classes, class_of, lists)

    def official_class(self, key: str) -> str | None:
        """Return the class of a video; None if the files do not name it."""
        # A key with times is looked up as it is first: an id may have two classes.
        class_name = self.class_of.get(key)
        if class_name is None and self.class_of_id:
            return self.class_of_id.get(youtube_id(key) or "")
        return class_name

    @cached_property
    def official_spelling(self) -> dict[str, str]:
        """Folded class name -> class name as the data set spells it."""
        return {fold_name(name): name for name in self.classes}


@dataclass(frozen=True)
class ListFile:
    """A published list and the class file that its labels index."""

    path: str
    class_file: str
    """Relative to the checkout."""


@dataclass(frozen=True)
class DataSet:
    """The layout of one data set and of the lists that are published for it.

    Each file of `preprocess/sources/` ends with such a record, and the table in
    `preprocess/sources/__init__.py` names it. The defaults fit a data set with one folder per
    class and the lists `train.txt` and `val.txt`."""

    name: str
    """Value of `--dataset`; shards are named after it."""
    read_annotations: Callable[[Path], Annotations]
    """Read the official annotation files of the folder `--annotations`.

    Raises ConfigError that names the file, the line and the expected form."""

    # Videos: their keys and classes. A key must not change between releases of bmpt, because pools,
    # manifests and predictions refer to it.
    path_keyed: bool = False
    """Keys keep the folders of a path, because two classes may hold files of the same name."""
    has_class_folders: bool = True
    """The folder of a video names its class."""
    has_youtube_ids: bool = False
    """Keys are `<YouTube id>_<start>_<end>` or the bare id, and lists may omit the times."""
    class_in_name: Callable[[Sequence[str]], re.Pattern[str] | None] | None = None
    """Make the pattern that finds a class in a key (group 1, last match), from all class names."""

    # Lists in a checkout of a method's repository (`--splits`). The published names follow no rule
    # that covers all data sets, hence one field per kind of list.
    class_file: str = "classes.txt"
    """File of all classes, relative to the checkout."""
    splits_folder: str | None = None
    """Folder of the lists below `datasets_splits/`; None: the checkout itself."""
    full_lists: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train.txt", "val": "val.txt"}
    )
    """Lists of fully_supervised: split -> file in `splits_folder`."""
    few_shot_val: str | None = None
    """Validation list of few_shot in `splits_folder`; None: no few-shot lists are published."""
    parts_stem: str | None = None
    """Class files of base_to_novel start with this path; None: no such lists are published."""
    zero_shot_lists: tuple[ListFile, ...] = ()
    """Lists of zero_shot/split1, split2, ..., in `splits_folder`."""
    halves_list: ListFile | None = None
    """BIKE's list of all videos, relative to the checkout; zero_shot/half_0 to half_9 are cut
    from it."""
    shared_classes: Mapping[str, str] | None = None
    """cross_dataset: class -> its name in the mapping file, where the two differ; None: the data
    set has no part in that protocol."""
    official_lists_first: bool = False
    """The official list makes a manifest that both it and a checkout could make."""

    def key_of(self, name: str) -> str:
        """Return the key of a file with this path, on disk or in a list."""
        return video_key(name, keep_folders=self.path_keyed)

    def folder_class(self, relative_path: str) -> str | None:
        """Return the class that the folder of a video names; None if it names none.

        Published data sets have folders such as `train`, `test` or `val_256`, which are not
        classes. In a path-keyed data set a class may have such a name."""
        folder = parent_folder(relative_path)
        # None also for a video directly below `--videos`.
        if folder is None or not self.has_class_folders:
            return None
        if not self.path_keyed and _SPLIT_FOLDER.fullmatch(folder):
            return None
        return storable(folder)


@dataclass(frozen=True)
class Source:
    """All videos of a data set, sorted by the UTF-8 bytes of their keys, and its annotations."""

    dataset: DataSet
    root: Path
    """The folder `--videos`, absolute."""
    videos: list[SourceVideo]
    annotations: Annotations | None
    """None without `--annotations`."""
