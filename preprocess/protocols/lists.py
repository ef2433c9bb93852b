"""Read split lists (`path label`) and class files (`id,name`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from preprocess.protocols.records import ClassFile, SplitList
from preprocess.sources.textfiles import TextFile, read_text_file
from shards.errors import ConfigError

_SHOWN_CHARS = 80


def read_split_list(path: Path, *, num_columns: int = 2) -> SplitList:
    """Read lines `path label`, split at the last space.

    A repeated line is read once; a line of another form is counted.

    Args:
        num_columns: 3 for BIKE's `path frames label`

    Raises:
        ConfigError: no line has the form, or a name has two labels."""
    file = read_text_file(path)
    line_numbers: list[int] = []
    malformed: list[int] = []
    label_of: dict[str, int] = {}
    for number, line in enumerate(file.lines(), start=1):
        parts = line.rsplit(None, num_columns - 1)  # names may contain spaces
        if len(parts) < num_columns or not parts[-1].removeprefix("-").isdecimal():
            if parts:
                malformed.append(number)
            continue
        name, label = parts[0].lstrip(), int(parts[-1])
        # A repeated line would be trained on and scored twice.
        if name not in label_of:
            label_of[name] = label
            line_numbers.append(number)
        elif label_of[name] != label:
            raise ConfigError(
                f"{path}: line {number} gives {name!r} label {label}, an earlier line "
                f"{label_of[name]}; correct one of the lines"
            )
    if not label_of:
        raise _no_line(file, malformed, num_columns)
    return SplitList(
        path=path,
        sha256=file.sha256,
        names=list(label_of),
        labels=list(label_of.values()),
        line_numbers=line_numbers,
        num_malformed=len(malformed),
        first_malformed=min(malformed, default=None),
    )


def _no_line(file: TextFile, malformed: Sequence[int], num_columns: int) -> ConfigError:
    """Return the error of a list without a usable line."""
    reason = "the file is empty"
    if malformed:
        line = file.lines()[malformed[0] - 1]
        reason = f"line {malformed[0]} is {line[:_SHOWN_CHARS]!r}"
    form = "path label" if num_columns == 2 else "path frames label"
    return ConfigError(
        f"{file.path}: no line has the form `{form}` ({reason}); get the list again or take it out "
        "of --splits"
    )


def read_class_file(path: Path) -> ClassFile:
    """Read class names; the file name decides the form.

    `*.csv` has lines `id,name` with the ids 0 to K-1, `*mapping*.txt` has lines `name -> other`,
    and any other file has one name per line.

    Raises:
        ConfigError: a line of another form, an id that repeats or is absent, or no name."""
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
    """Read a CSV `id,name`, with or without a header, in the order of the ids."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if rows and not rows[0][0].strip().isdecimal():
        rows = rows[1:]  # the header, `id,name` or `id,label`

    names: dict[int, str] = {}
    for row in rows:
        name = ",".join(row[1:]).strip()  # an unquoted name with a comma is several cells
        if not row[0].strip().isdecimal() or not name:
            raise ConfigError(f"{path}: {','.join(row)!r} is not `id,name`; correct that line")
        if int(row[0]) in names:
            raise ConfigError(f"{path}: id {int(row[0])} occurs twice; correct one of the lines")
        names[int(row[0])] = name

    if sorted(names) != list(range(len(names))):
        absent = next(number for number in range(len(names)) if number not in names)
        raise ConfigError(
            f"{path}: {len(names)} names, but no id {absent}; ids must be 0 to {len(names) - 1}"
        )
    return [names[number] for number in range(len(names))]
