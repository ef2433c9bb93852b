"""UCF-101: `Class/v_Class_gNN_cNN.avi`; classInd.txt, trainlist0N.txt (labels from 1),
testlist0N.txt (none).

128 files of the class HandstandPushups are named `v_HandStandPushups_...`, so a class is read from
the folder of a line, never from the file name."""

from __future__ import annotations

import re
from pathlib import Path

from preprocess.sources.naming import video_key
from preprocess.sources.records import Annotations, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError

_FILES = re.compile(r"classInd\.txt|(train|test)list0([123])\.txt")


def read_annotations(folder: Path) -> Annotations:
    """Read the official files. Raises: ConfigError naming the file and the line."""
    found = find_annotation_files(folder, _FILES)
    if "classInd.txt" not in found:
        raise nothing_found(folder, "classInd.txt, trainlist01.txt, testlist01.txt")
    classes = _read_classes(read_text_file(found.pop("classInd.txt")))
    lists = [_read_list(read_text_file(path), classes) for _, path in sorted(found.items())]
    class_of = {
        video_key("ucf101", name): class_name
        for official in lists
        for name, class_name in zip(official.names, official.classes, strict=True)
    }
    return Annotations(classes, class_of, lists)


def _read_classes(file: TextFile) -> list[str]:
    """`<number from 1> <Class>` a line."""
    classes = [line.split()[1] for line in file.lines() if len(line.split()) == 2]
    if not classes:
        raise ConfigError(
            f"{file.path}: holds no line `1 ApplyEyeMakeup`; get the official file again"
        )
    return classes


def _read_list(file: TextFile, classes: list[str]) -> OfficialList:
    """`Class/file.avi 1` or `Class/file.avi` a line."""
    match = _FILES.fullmatch(file.path.name)
    assert match is not None
    names = [line.split()[0] for line in file.lines() if line.strip()]
    known = set(classes)
    for number, name in enumerate(names, start=1):
        if name.partition("/")[0] not in known:
            raise ConfigError(
                f"{file.path}: line {number}: {name!r} is not `Class/file.avi` with a class of classInd.txt; "
                "get the official file again"
            )
    return OfficialList(
        number=int(match[2]),
        split="train" if match[1] == "train" else "val",
        names=names,
        classes=[name.partition("/")[0] for name in names],
        source=f"official {file.path.name}",
        sha256=file.sha256,
    )
