"""UCF-101: `Class/v_Class_gNN_cNN.avi`; classInd.txt, trainlist0N.txt, testlist0N.txt.

Lines of trainlist0N.txt end with a label from 1, lines of testlist0N.txt have no label.
128 files of the class HandstandPushups are named `v_HandStandPushups_...`, so the class of a line
is its folder, never a part of the file name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from preprocess.sources.records import Annotations, DataSet, ListFile, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError

_FILES = re.compile(r"classInd\.txt|(train|test)list0([123])\.txt")
_CLASS_IN_NAME = re.compile(r"v_(\w+?)_g\d")
_CLASS_FILE = "labels/ucf_101_labels.csv"

# UCF-101's names of the 12 shared classes, as in UCF-HMDB-full (TA3N, Chen et al. 2019). With the
# official split 1 they give its published 1438 training and 571 test videos of UCF-101.
_SHARED_CLASSES = {
    "RockClimbingIndoor": "climb",
    "RopeClimbing": "climb",
    "Fencing": "fencing",
    "GolfSwing": "golf",
    "SoccerPenalty": "kick_ball",
    "PullUps": "pullup",
    "BoxingPunchingBag": "punch",
    "BoxingSpeedBag": "punch",
    "Punch": "punch",
    "PushUps": "pushup",
    "Biking": "ride_bike",
    "HorseRiding": "ride_horse",
    "Basketball": "shoot_ball",
    "Archery": "shoot_bow",
    "WalkingWithDog": "walk",
}


def read_annotations(folder: Path) -> Annotations:
    """Read the official files. Raises ConfigError that names the file and the line."""
    files = find_annotation_files(folder, _FILES)
    if "classInd.txt" not in files:
        raise nothing_found(folder, "classInd.txt, trainlist01.txt, testlist01.txt")
    classes = _read_classes(read_text_file(files.pop("classInd.txt")))
    lists = [_read_list(read_text_file(path), classes) for _, path in sorted(files.items())]
    return Annotations.from_lists(classes, lists)


def _read_classes(file: TextFile) -> list[str]:
    """Read lines `<number from 1> <Class>`."""
    classes = [line.split()[1] for line in file.lines() if len(line.split()) == 2]
    if not classes:
        raise ConfigError(
            f"{file.path}: holds no line such as `1 ApplyEyeMakeup`; get the official file again"
        )
    return classes


def _read_list(file: TextFile, classes: list[str]) -> OfficialList:
    """Read lines `Class/file.avi 1` or `Class/file.avi`."""
    match = _FILES.fullmatch(file.path.name)
    assert match is not None
    names = [line.split()[0] for line in file.lines() if line.strip()]
    known = set(classes)
    # Every class must be known: labels are positions in classInd.txt.
    for number, name in enumerate(names, start=1):
        if name.partition("/")[0] not in known:
            raise ConfigError(
                f"{file.path}: line {number}: {name!r} is not `Class/file.avi` with a class of "
                "classInd.txt; get the official file again"
            )
    return OfficialList(
        number=int(match[2]),
        split="train" if match[1] == "train" else "val",
        names=names,
        classes=[name.partition("/")[0] for name in names],
        source=f"official {file.path.name}",
        sha256=file.sha256,
    )


def _class_in_name(class_names: Sequence[str]) -> re.Pattern[str]:
    return _CLASS_IN_NAME  # the form of the names is the same for all classes


UCF101 = DataSet(
    name="ucf101",
    read_annotations=read_annotations,
    class_in_name=_class_in_name,
    class_file=_CLASS_FILE,
    splits_folder="ucf_splits",
    full_lists={},
    few_shot_val="val1.txt",
    parts_stem="labels/ucf_101",
    zero_shot_lists=(
        ListFile("val1.txt", _CLASS_FILE),
        ListFile("val2.txt", _CLASS_FILE),
        ListFile("val3.txt", _CLASS_FILE),
    ),
    halves_list=ListFile("lists/ucf101/ucf_full_for_zeroshot.txt", "lists/ucf101/ucf_labels.csv"),
    shared_classes=_SHARED_CLASSES,
)
