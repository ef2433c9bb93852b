"""Any data set with one folder a class, `<class>/<video>`; the demo has the same layout.

The class of a video is the folder that holds it. Annotation files are optional: `train.txt` and
`val.txt`, a relative path a line, say which videos train where the split is not to be drawn."""

from __future__ import annotations

import re
from pathlib import Path

from preprocess.sources.naming import PATH_KEYED, storable, video_key
from preprocess.sources.records import Annotations, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError

_LISTS = re.compile(r"(train|val)\.txt")

_SPLIT_FOLDER = re.compile(r"(?:train|val|validate|validation|test)(?:[-_]?\d+)?", re.IGNORECASE)


def folder_class(dataset: str, relative_path: str) -> str | None:
    """The name of the folder that holds a video, None if that is `--videos` itself.

    In the published data sets `train`, `val`, `test` (also `val_256`) are not classes; in one's own
    they may be. Something-Something V2 has no class folders."""
    folder = relative_path.rpartition("/")[0].rpartition("/")[2]
    if not folder or dataset == "ssv2":
        return None
    if dataset not in PATH_KEYED and _SPLIT_FOLDER.fullmatch(folder):
        return None
    return storable(folder)


def read_annotations(dataset: str, folder: Path) -> Annotations:
    """Read `train.txt` and `val.txt`. Raises: ConfigError naming the file and the line."""
    found = find_annotation_files(folder, _LISTS)
    if "train.txt" not in found:
        raise nothing_found(folder, "train.txt and val.txt, a line `class/video.mp4` each")
    lists = [_read_list(dataset, read_text_file(path)) for _, path in sorted(found.items())]
    class_of = {
        video_key(dataset, name): class_name
        for split in lists
        for name, class_name in zip(split.names, split.classes, strict=True)
    }
    return Annotations(sorted(set(class_of.values())), class_of, lists)


def _read_list(dataset: str, file: TextFile) -> OfficialList:
    """`class/video.mp4` a line."""
    names = [line.strip() for line in file.lines() if line.strip()]
    classes = []
    for number, name in enumerate(names, start=1):
        class_name = folder_class(dataset, name)
        if class_name is None:
            raise ConfigError(
                f"{file.path}: line {number}: {name!r} is not `class/video.mp4`; put the class folder first"
            )
        classes.append(class_name)
    return OfficialList(
        1, file.path.stem, names, classes, f"official {file.path.name}", file.sha256
    )
