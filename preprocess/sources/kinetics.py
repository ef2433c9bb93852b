"""Kinetics-400 and -600: `<YouTube id>_<start>_<end>.mp4` or `<YouTube id>.mp4`.

The videos lie in class folders or in train/val/test folders. The official CSV files have the
columns label, youtube_id, time_start, time_end; times are in seconds, with six digits in file
names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from preprocess.sources.naming import first_clash, video_key
from preprocess.sources.records import Annotations, DataSet, ListFile, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_ID_CHARS = 11


def read_annotations(folder: Path, *, release: str) -> Annotations:
    """Read the official CSV files of one release, "400" or "600".

    Raises ConfigError that names the file."""
    pattern = _file_pattern(release)
    files: dict[str, TextFile] = {}
    for name, path in find_annotation_files(folder, pattern).items():
        match = pattern.fullmatch(name)
        assert match is not None
        split = "train" if match[1] == "train" else "val"
        if split in files:
            raise ConfigError(
                f"{folder}: holds {files[split].path.name} and {name}, both {split} lists; "
                "give --annotations the folder of one"
            )
        files[split] = read_text_file(path)
    if not files:
        names = f"kinetics{release}_train.csv and kinetics{release}_val.csv"
        raise nothing_found(folder, f"{names} with the columns {','.join(_COLUMNS)}")

    lists = [_read_list(file, split) for split, file in sorted(files.items())]
    class_of, class_of_id = _classes_of_videos(lists)
    names_in_use = {name for rows in lists for name in rows.classes}
    classes = sorted(names_in_use, key=lambda name: (name.casefold(), name))
    # Releases differ in spelling, which would make two classes of one.
    _check_spellings(classes, folder)
    return Annotations(classes, class_of, lists, class_of_id)


def _file_pattern(release: str) -> re.Pattern[str]:
    """Match `*train.csv`, `*val.csv` and `*validate.csv`, but not `kinetics-700_val.csv`."""
    # A folder may hold the files of several releases. A name without a release belongs to any.
    return re.compile(
        rf"(?!.*(?:kinetics|k)[-_ ]?(?!{release})\d00)"
        r"(?:.*[^a-z])?(train|val|validate|validation)\.csv"
    )


def _read_list(file: TextFile, split: str) -> OfficialList:
    reader = csv.DictReader(io.StringIO(file.text, newline=""))
    absent = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if absent:
        raise ConfigError(
            f"{file.path}: has no column {absent[0]}; expected {','.join(_COLUMNS)}, as in the "
            "official CSV files"
        )
    rows = [row for row in reader if row["youtube_id"] and row["label"]]
    if not rows:
        raise ConfigError(
            f"{file.path}: holds no row with a label and a youtube_id; get the official file again"
        )
    return OfficialList(
        number=1,
        split=split,
        names=[_file_name(row) for row in rows],
        classes=[row["label"] for row in rows],
        source=f"official {file.path.name}",
        sha256=file.sha256,
    )


def _file_name(row: Mapping[str, str]) -> str:
    """Return `<id>_<start>_<end>`, or the bare id for a row without times."""
    try:
        start, end = int(float(row["time_start"])), int(float(row["time_end"]))
    except (TypeError, ValueError):
        return row["youtube_id"]
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"


def _classes_of_videos(lists: list[OfficialList]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the class by key, and by YouTube id.

    An id is left out if it has two classes: one video shows two actions at different times."""
    class_of: dict[str, str] = {}
    class_of_id: dict[str, str] = {}
    ambiguous: set[str] = set()
    for rows in lists:
        for name, class_name in zip(rows.names, rows.classes, strict=True):
            class_of[video_key(name)] = class_name
            video_id = name[:_ID_CHARS]  # names start with it, see _file_name
            if class_of_id.setdefault(video_id, class_name) != class_name:
                ambiguous.add(video_id)
    for video_id in ambiguous:
        del class_of_id[video_id]
    return class_of, class_of_id


def _check_spellings(classes: list[str], folder: Path) -> None:
    clash = first_clash(classes)
    if clash is not None:
        raise ConfigError(
            f"{folder}: the train and validation CSV files spell one class {clash[0]!r} and "
            f"{clash[1]!r}; take both files from one release"
        )


KINETICS400 = DataSet(
    name="kinetics400",
    read_annotations=partial(read_annotations, release="400"),
    has_youtube_ids=True,
    class_file="labels/kinetics_400_labels.csv",
    splits_folder="k400_splits",
    parts_stem="labels/kinetics_400",
)

KINETICS600 = DataSet(
    name="kinetics600",
    read_annotations=partial(read_annotations, release="600"),
    has_youtube_ids=True,
    class_file="labels/kinetics_600_labels.csv",
    splits_folder="k600_splits",
    zero_shot_lists=(
        ListFile("ZS_split1_K600_eval.txt", "labels/ZS_split1_K600.csv"),
        ListFile("ZS_split2_K600_eval.txt", "labels/ZS_split2_K600.csv"),
        ListFile("ZS_split3_K600_eval.txt", "labels/ZS_split3_K600.csv"),
    ),
)
