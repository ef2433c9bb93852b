"""HMDB-51: `class/file.avi`; `<class>_test_split<N>.txt`, lines `file.avi flag` with a space at the
end.

Flag 1 is train (70 a class), 2 is test (30), 0 neither; each file names all videos of its class."""

from __future__ import annotations

import hashlib
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

_FILES = re.compile(r"(.+)_test_split([123])\.txt")
_SPLIT_OF_FLAG = {"1": "train", "2": "val", "0": None}


def read_annotations(folder: Path) -> Annotations:
    """Read the official files. Raises: ConfigError naming the file and the line."""
    found = find_annotation_files(folder, _FILES)
    if not found:
        raise nothing_found(folder, "brush_hair_test_split1.txt and its like, three a class")
    flagged: dict[
        int, list[tuple[str, str, str | None]]
    ] = {}  # split number -> (class, name, split)
    digests: dict[int, list[bytes]] = {}
    for class_name, number, path in sorted(_parts(path) for path in found.values()):
        file = read_text_file(path)
        rows = flagged.setdefault(number, [])
        rows.extend((class_name, name, split) for name, split in _read_flags(file))
        digests.setdefault(number, []).append(f"{path.name}\t{file.sha256}\n".encode())
    lists = [
        OfficialList(
            number=number,
            split=split,
            names=[name for _, name, where in rows if where == split],
            classes=[class_name for class_name, _, where in rows if where == split],
            source=f"official *_test_split{number}.txt, flag {flag}",
            sha256=hashlib.sha256(b"".join(digests[number])).hexdigest(),
        )
        for number, rows in sorted(flagged.items())
        for flag, split in (("1", "train"), ("2", "val"))
    ]
    class_of = {
        video_key("hmdb51", name): class_name
        for rows in flagged.values()
        for class_name, name, _ in rows
    }
    return Annotations(sorted({_parts(path)[0] for path in found.values()}), class_of, lists)


def _parts(path: Path) -> tuple[str, int, Path]:
    match = _FILES.fullmatch(path.name)
    assert match is not None
    return match[1], int(match[2]), path


def _read_flags(file: TextFile) -> list[tuple[str, str | None]]:
    """(file name, train | val | None) of each line."""
    rows = []
    for number, line in enumerate(file.lines(), start=1):
        if not line.strip():
            continue
        name, _, flag = line.rstrip().rpartition(" ")
        if not name or flag not in _SPLIT_OF_FLAG:
            raise ConfigError(
                f"{file.path}: line {number}: {line!r} is not `file.avi flag` with flag 0, 1 or 2; "
                "get the official file again"
            )
        rows.append((name, _SPLIT_OF_FLAG[flag]))
    return rows
