"""Read split lists (`path label`) and class files (`id,name`)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from preprocess.protocols.records import ClassFile, SplitList
from preprocess.sources.textfiles import read_text_file
from shards.errors import ConfigError


def read_split_list(path: Path, *, num_columns: int = 2) -> SplitList:
    """Read `path label` lines, split at the last space; with 3 columns `path frames label` (BIKE).

    Raises: ConfigError if no line has that form, or if the file is empty."""
    file = read_text_file(path)
    names: list[str] = []
    labels: list[int] = []
    line_numbers: list[int] = []
    malformed: list[int] = []
    label_of: dict[str, int] = {}
    for number, line in enumerate(file.lines(), start=1):
        parts = line.rsplit(None, num_columns - 1)
        if len(parts) == num_columns and parts[-1].removeprefix("-").isdecimal():
            name, label = parts[0].lstrip(), int(parts[-1])
            if label_of.setdefault(name, label) != label:
                raise ConfigError(
                    f"{path}: line {number} gives {name!r} label {label}, an earlier line {label_of[name]}; "
                    "correct one of the lines"
                )
            if len(label_of) > len(names):  # a repeated line would be trained and scored twice
                names.append(name)
                labels.append(label)
                line_numbers.append(number)
        elif parts:
            malformed.append(number)
    if not names:
        found = (
            f"line {malformed[0]} is {file.lines()[malformed[0] - 1][:80]!r}"
            if malformed
            else "the file is empty"
        )
        form = "path label" if num_columns == 2 else "path frames label"
        raise ConfigError(
            f"{path}: no line has the form `{form}` ({found}); get the list again or take it out of --splits"
        )
    return SplitList(
        path, file.sha256, names, labels, line_numbers, len(malformed), min(malformed, default=None)
    )


def read_class_file(path: Path) -> ClassFile:
    """Read the names of a CSV `id,name` with ids 0 to K-1, of a mapping `name -> other`, or one
    name a line.

    The form follows the file's name: `*.csv`, `*mapping*.txt`, else one name a line.
    Raises: ConfigError naming the file and what is wrong."""
    file = read_text_file(path)
    if path.suffix == ".csv":
        names = _names_by_id(path, file.text)
    elif "mapping" in path.name:
        names = sorted(line.partition("->")[0].strip() for line in file.lines() if "->" in line)
    else:
        names = [line.strip() for line in file.lines() if line.strip()]
    if not names:
        raise ConfigError(f"{path}: holds no class name; get the class file again")
    return ClassFile(path, names, file.sha256)


def _names_by_id(path: Path, text: str) -> list[str]:
    rows = [
        row
        for row in csv.reader(io.StringIO(text, newline=""))
        if any(cell.strip() for cell in row)
    ]
    if rows and not rows[0][0].strip().isdecimal():
        rows = rows[1:]  # the header, `id,name` or `id,label`
    names: dict[int, str] = {}
    for row in rows:
        name = ",".join(row[1:]).strip()  # an unquoted name with a comma comes as several cells
        if not row[0].strip().isdecimal() or not name:
            raise ConfigError(f"{path}: {','.join(row)!r} is not `id,name`; correct that line")
        if int(row[0]) in names:
            raise ConfigError(f"{path}: id {int(row[0])} stands twice; correct one of the lines")
        names[int(row[0])] = name
    if sorted(names) != list(range(len(names))):
        absent = next(number for number in range(len(names)) if number not in names)
        raise ConfigError(
            f"{path}: {len(names)} names, but no id {absent}; ids must be 0 to {len(names) - 1}"
        )
    return [names[number] for number in range(len(names))]
