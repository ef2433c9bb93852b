"""Any data set with one folder per class, `<class>/<video>`; the demo has the same layout.

Annotation files are optional: `train.txt` and `val.txt`, one relative path per line, replace the
drawn split."""

from __future__ import annotations

import re
from pathlib import Path

from preprocess.sources.naming import parent_folder, storable
from preprocess.sources.records import Annotations, DataSet, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError

_LISTS = re.compile(r"(train|val)\.txt")


def read_annotations(folder: Path) -> Annotations:
    """Read `train.txt` and `val.txt`. Raises ConfigError that names the file and the line."""
    files = find_annotation_files(folder, _LISTS)
    # val.txt is optional: without it there are no manifests to score.
    if "train.txt" not in files:
        raise nothing_found(folder, "train.txt and val.txt, with a path `class/video.mp4` per line")
    lists = [_read_list(read_text_file(path)) for _, path in sorted(files.items())]
    classes = sorted({class_name for rows in lists for class_name in rows.classes})
    return Annotations.from_lists(classes, lists, keep_folders=True)


def _read_list(file: TextFile) -> OfficialList:
    """Read lines `class/video.mp4`."""
    names = [line.strip() for line in file.lines() if line.strip()]
    classes = []
    for number, name in enumerate(names, start=1):
        class_name = parent_folder(name)
        if class_name is None:
            raise ConfigError(
                f"{file.path}: line {number}: {name!r} is not `class/video.mp4`; put the class "
                "folder first"
            )
        # As DataSet.folder_class spells it, so that lists and folders agree.
        classes.append(storable(class_name))
    split = file.path.stem
    return OfficialList(1, split, names, classes, f"official {file.path.name}", file.sha256)


FOLDER = DataSet(name="folder", read_annotations=read_annotations, path_keyed=True)
DEMO = DataSet(name="demo", read_annotations=read_annotations, path_keyed=True)
