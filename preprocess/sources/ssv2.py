"""Something-Something V2: `<id>.webm` in one folder; labels, train and validation as JSON.

The class of a video is its template without the brackets around `[something]`; labels.json gives
the order of the classes. A single JSON file in the form of the validation file is read as a
validation list, whatever its name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from preprocess.sources.records import Annotations, DataSet, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError
from shards.format.names import fold_name

_FILES = re.compile(r"(?:something-something-v2-)?(labels|train|validation)\.json")
_ANY_JSON = re.compile(r".+\.json")


def read_annotations(folder: Path) -> Annotations:
    """Read the official files. Raises ConfigError that names the file."""
    files = {
        _kind(path): read_text_file(path) for path in find_annotation_files(folder, _FILES).values()
    }
    if not files:
        files = {"validation": _single_list(folder)}

    # Kind of list -> (id, class) of each video.
    entries = {kind: _entries(files[kind]) for kind in ("train", "validation") if kind in files}
    if "labels" in files:
        classes = _read_classes(files["labels"])
    else:
        # Without labels.json the official order is unknown.
        classes = sorted({class_name for rows in entries.values() for _, class_name in rows})
    # Folded, so that a template may differ from its label in case or spaces.
    spelling = {fold_name(name): name for name in classes}

    lists: list[OfficialList] = []
    for kind, rows in entries.items():
        unknown = sorted(name for _, name in rows if fold_name(name) not in spelling)
        if unknown:
            raise ConfigError(
                f"{files[kind].path}: the template {unknown[0]!r} is not in "
                f"{files['labels'].path}; take both files from one release"
            )
        official = OfficialList(
            number=1,
            split="train" if kind == "train" else "val",
            names=[name for name, _ in rows],
            classes=[spelling[fold_name(class_name)] for _, class_name in rows],
            source=f"official {files[kind].path.name}",
            sha256=files[kind].sha256,
        )
        lists.append(official)
    return Annotations.from_lists(classes, lists)


def _kind(path: Path) -> str:
    match = _FILES.fullmatch(path.name)
    assert match is not None
    return match[1]


def _single_list(folder: Path) -> TextFile:
    """Find the one JSON file that is a list of videos, in the folder or up to two levels below."""
    candidates = find_annotation_files(folder, _ANY_JSON).values()
    files = [read_text_file(path) for path in candidates]
    lists = [file for file in files if _is_list(_parse(file))]
    if len(lists) > 1:
        raise ConfigError(
            f"{folder}: holds {lists[0].path.name} and {lists[1].path.name}, both lists of "
            "videos; name them something-something-v2-train.json and "
            "something-something-v2-validation.json"
        )
    if not lists:
        raise nothing_found(
            folder, "something-something-v2-labels.json, ...-train.json, ...-validation.json"
        )
    return lists[0]


def _entries(file: TextFile) -> list[tuple[str, str]]:
    """Read (id, class) of each video of a train or validation list."""
    values = _parse(file)
    if not _is_list(values):
        raise ConfigError(
            f'{file.path}: is not a list of {{"id": ..., "template": ...}}; get the official '
            "file again"
        )
    return [(str(value["id"]), re.sub(r"[\[\]]", "", value["template"])) for value in values]


def _is_list(values: Any) -> bool:
    """Return whether parsed JSON is a list of videos with ids and templates."""
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(value, dict) and {"id", "template"} <= value.keys() for value in values)


def _read_classes(file: TextFile) -> list[str]:
    """Read {name: id} and return the names in the order of the ids, which are digits in quotes."""
    values = _parse(file)
    if not isinstance(values, dict) or not all(str(value).isdecimal() for value in values.values()):
        raise ConfigError(
            f'{file.path}: is not an object {{"name": "id", ...}}; get the official file again'
        )
    return sorted(values, key=lambda name: int(values[name]))


def _parse(file: TextFile) -> Any:
    try:
        return json.loads(file.text)
    except ValueError as error:
        raise ConfigError(f"{file.path}: is not JSON: {error}; get the file again") from None


SSV2 = DataSet(
    name="ssv2",
    read_annotations=read_annotations,
    has_class_folders=False,
    class_file="labels/ssv2_labels.csv",
    splits_folder="ssv2_splits",
    full_lists={"val": "validation.txt"},
    few_shot_val="validation.txt",
    parts_stem="labels/ssv2_174",
    official_lists_first=True,
)
