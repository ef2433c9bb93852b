"""Kinetics-400 and -600: `<YouTube id>_<start>_<end>.mp4` or the bare id, in class or
train/val/test folders.

Official CSVs: columns label, youtube_id, time_start, time_end (seconds; six digits in file
    names)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from preprocess.sources.naming import first_clash, video_key
from preprocess.sources.records import Annotations, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read_annotations(folder: Path, dataset: str) -> Annotations:
    """Read the official CSVs of one release. Raises: ConfigError naming the file."""
    pattern = _file_pattern(dataset)
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
        raise nothing_found(
            folder,
            f"{dataset}_train.csv and {dataset}_val.csv with the columns {','.join(_COLUMNS)}",
        )
    lists = [_read_list(file, split) for split, file in sorted(files.items())]
    class_of, class_of_id = _classes_of_videos(lists)
    classes = sorted(
        {name for rows in lists for name in rows.classes}, key=lambda name: (name.casefold(), name)
    )
    _check_spellings(classes, folder)
    return Annotations(classes, class_of, lists, class_of_id)


def _file_pattern(dataset: str) -> re.Pattern[str]:
    """`*train.csv`, `*val.csv`, `*validate.csv`, unless the name says another release
    (kinetics-700_val.csv)."""
    release = dataset.removeprefix("kinetics")
    return re.compile(
        rf"(?!.*(?:kinetics|k)[-_ ]?(?!{release})\d00)(?:.*[^a-z])?(train|val|validate|validation)\.csv"
    )


def _read_list(file: TextFile, split: str) -> OfficialList:
    reader = csv.DictReader(io.StringIO(file.text, newline=""))
    absent = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if absent:
        raise ConfigError(
            f"{file.path}: has no column {absent[0]}; expected {','.join(_COLUMNS)}, as the official CSVs have"
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
    """`<id>_<start>_<end>`, or the bare id where a row has no times."""
    try:
        return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except (TypeError, ValueError):
        return row["youtube_id"]


def _classes_of_videos(lists: list[OfficialList]) -> tuple[dict[str, str], dict[str, str]]:
    """Class by key, and by YouTube id unless one id has two classes (other times, other action)."""
    class_of: dict[str, str] = {}
    class_of_id: dict[str, str | None] = {}
    for rows in lists:
        for name, class_name in zip(rows.names, rows.classes, strict=True):
            class_of[video_key("kinetics", name)] = class_name
            video_id = name[:11]
            class_of_id[video_id] = (
                class_name if class_of_id.get(video_id, class_name) == class_name else None
            )
    return class_of, {video_id: name for video_id, name in class_of_id.items() if name is not None}


def _check_spellings(classes: list[str], folder: Path) -> None:
    clash = first_clash(classes)
    if clash is not None:
        raise ConfigError(
            f"{folder}: the train and validation CSVs spell one class {clash[0]!r} and {clash[1]!r}; "
            "take both files from one release"
        )
