"""HMDB-51: `class/file.avi`; one `<class>_test_split<N>.txt` per class and split.

Each of these files names all videos of its class, in lines `file.avi flag` with a space at the
end. Flag 1 is train (70 videos per class), 2 is test (30), 0 is neither."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from preprocess.sources.naming import video_key
from preprocess.sources.records import Annotations, DataSet, ListFile, OfficialList
from preprocess.sources.textfiles import (
    TextFile,
    find_annotation_files,
    nothing_found,
    read_text_file,
)
from shards.errors import ConfigError

_FILES = re.compile(r"(.+)_test_split([123])\.txt")
_SPLIT_OF_FLAG = {"1": "train", "2": "val", "0": None}
_CLASS_FILE = "labels/hmdb_51_labels.csv"


def read_annotations(folder: Path) -> Annotations:
    """Read the official files. Raises ConfigError that names the file and the line."""
    files = find_annotation_files(folder, _FILES)
    if not files:
        raise nothing_found(folder, "brush_hair_test_split1.txt and such, three files per class")

    # Split number -> (class, file name, split) of each line, and a digest per file.
    rows_of: dict[int, list[tuple[str, str, str | None]]] = {}
    digests_of: dict[int, list[bytes]] = {}
    for class_name, number, path in sorted(_parts(path) for path in files.values()):
        file = read_text_file(path)
        rows = rows_of.setdefault(number, [])
        rows.extend((class_name, name, split) for name, split in _read_flags(file))
        digests_of.setdefault(number, []).append(f"{path.name}\t{file.sha256}\n".encode())

    lists: list[OfficialList] = []
    class_of: dict[str, str] = {}
    for number, rows in sorted(rows_of.items()):
        sha256 = hashlib.sha256(b"".join(digests_of[number])).hexdigest()
        lists.append(_official_list(rows, number, "1", sha256))
        lists.append(_official_list(rows, number, "2", sha256))
        # Videos with flag 0 are in no list, but have a class.
        class_of.update((video_key(name), class_name) for class_name, name, _ in rows)
    return Annotations(sorted({_parts(path)[0] for path in files.values()}), class_of, lists)


def _official_list(
    rows: Sequence[tuple[str, str, str | None]], number: int, flag: str, sha256: str
) -> OfficialList:
    """Return the list of the lines with one flag."""
    split = _SPLIT_OF_FLAG[flag]
    assert split is not None
    names: list[str] = []
    classes: list[str] = []
    for class_name, name, split_of_line in rows:
        if split_of_line == split:
            names.append(name)
            classes.append(class_name)
    return OfficialList(
        number=number,
        split=split,
        names=names,
        classes=classes,
        source=f"official *_test_split{number}.txt, flag {flag}",
        sha256=sha256,
    )


def _parts(path: Path) -> tuple[str, int, Path]:
    match = _FILES.fullmatch(path.name)
    assert match is not None
    return match[1], int(match[2]), path


def _read_flags(file: TextFile) -> list[tuple[str, str | None]]:
    """Read (file name, train | val | None) from each line."""
    rows = []
    for number, line in enumerate(file.lines(), start=1):
        if not line.strip():
            continue
        name, _, flag = line.rstrip().rpartition(" ")  # file names may contain spaces
        if not name or flag not in _SPLIT_OF_FLAG:
            raise ConfigError(
                f"{file.path}: line {number}: {line!r} is not `file.avi flag` with flag 0, 1 or "
                "2; get the official file again"
            )
        rows.append((name, _SPLIT_OF_FLAG[flag]))
    return rows


def _class_in_name(class_names: Sequence[str]) -> re.Pattern[str] | None:
    """Match `_<class>_[hulf]_[cn]m_np<N>_`; finds the class of all 6766 official names."""
    # The longest name first, so that `draw_sword` is not read as `sword`.
    names = sorted(
        {"_".join(re.findall(r"[^\W_]+", name)) for name in class_names},
        key=lambda name: (-len(name), name),
    )
    if not names:
        return None
    choice = "|".join(map(re.escape, names))
    return re.compile(f"_({choice})" + r"_[hulf]_[cn]m_np\d+_", re.IGNORECASE)


HMDB51 = DataSet(
    name="hmdb51",
    read_annotations=read_annotations,
    class_in_name=_class_in_name,
    class_file=_CLASS_FILE,
    splits_folder="hmdb_splits",
    full_lists={},
    few_shot_val="val1.txt",
    parts_stem="labels/hmdb_51",
    zero_shot_lists=(
        ListFile("val1.txt", _CLASS_FILE),
        ListFile("val2.txt", _CLASS_FILE),
        ListFile("val3.txt", _CLASS_FILE),
    ),
    halves_list=ListFile(
        "lists/hmdb51/hmdb_full_for_zeroshot.txt", "lists/hmdb51/hmdb51_labels.csv"
    ),
    shared_classes={},  # the mapping file has HMDB-51's own names
)
