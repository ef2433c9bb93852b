"""Find the lists and class files of ViFi-CLIP, BDC-CLIP, BMPT and BIKE checkouts, and of one's own
folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.protocols.catalogue import ListRule, class_files, list_rules
from preprocess.protocols.lists import read_class_file, read_split_list
from preprocess.protocols.records import ClassFile, SplitList
from shards.errors import ConfigError

_SPLITS = "datasets_splits"
_MARKS = (_SPLITS, "labels", "lists", "mapping")


@dataclass(frozen=True)
class Checkout:
    """One `--splits` folder.

    splits: its folder of lists, which may have another name if it was given itself
    origin: whose checkout it is, as a manifest's `source` says it; empty for one's own folder. It
        is read from
    what the folder holds, never from its name, so that manifests do not depend on where a checkout
    lies"""

    root: Path
    splits: Path
    origin: str

    def find(self, name: str) -> Path | None:
        """The file of a relative name, None if it is not there."""
        inner = name.removeprefix(f"{_SPLITS}/")
        path = self.root / name if inner == name else self.splits / inner
        return path if path.is_file() else None


@dataclass(frozen=True)
class ListUse:
    """A list that is there, with the class file that its labels index (None: no class file was
    found)."""

    rule: ListRule
    source: str
    split_list: SplitList
    class_file: ClassFile | None


def open_checkouts(folders: Sequence[Path]) -> list[Checkout]:
    """Open `--splits` folders in their order. Raises: ConfigError for a folder that is missing."""
    return [_open_checkout(folder) for folder in folders]


def _open_checkout(folder: Path) -> Checkout:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; give --splits a checkout that holds {_SPLITS}/ and labels/"
        )
    is_inner = not any((folder / mark).is_dir() for mark in _MARKS) and any(folder.glob("*_splits"))
    root = folder.absolute().parent if is_inner else folder
    return Checkout(root, folder if is_inner else folder / _SPLITS, _origin(root))


def _origin(root: Path) -> str:
    if (root / "lists").is_dir():
        return "BIKE"
    if (root / "mapping").is_dir():
        return "BMPT"
    if any(root.glob("labels/*_corrected.csv")):
        return "BDC-CLIP"
    return "ViFi-CLIP" if (root / _SPLITS).is_dir() or (root / "labels").is_dir() else ""


def read_lists(dataset: str, checkouts: Sequence[Checkout]) -> list[ListUse]:
    """Read every list of the data set that is there; the first checkout that has a file wins."""
    lists: dict[tuple[Path, int], SplitList] = {}
    files: dict[Path, ClassFile] = {}
    uses = []
    for rule in list_rules(dataset):
        found = find_first(checkouts, (rule.list_file,))
        if found is None:
            continue
        checkout, path = found
        if (path, rule.num_columns) not in lists:
            lists[path, rule.num_columns] = read_split_list(path, num_columns=rule.num_columns)
        class_file = None
        named = find_first(checkouts, rule.class_files)
        if named is not None:
            if named[1] not in files:
                files[named[1]] = read_class_file(named[1])
            class_file = files[named[1]]
        source = f"{checkout.origin} {rule.list_file}".strip()
        uses.append(ListUse(rule, source, lists[path, rule.num_columns], class_file))
    return uses


def no_lists(dataset: str, checkouts: Sequence[Checkout]) -> ConfigError:
    """The error of checkouts that hold nothing of the data set."""
    expected = ", ".join(rule.list_file for rule in list_rules(dataset)[:3])
    folders = ", ".join(str(checkout.root) for checkout in checkouts)
    return ConfigError(
        f"--splits {folders}: no list of {dataset} there; expected files such as {expected}"
    )


def find_first(checkouts: Sequence[Checkout], names: Sequence[str]) -> tuple[Checkout, Path] | None:
    """The first file of `names` in the first checkout that has one of them."""
    for checkout in checkouts:
        for name in names:
            path = checkout.find(name)
            if path is not None:
                return checkout, path
    return None


def full_class_file(dataset: str, checkouts: Sequence[Checkout]) -> ClassFile | None:
    """The file of all classes of a data set, None if no checkout has it."""
    found = find_first(checkouts, class_files(dataset))
    return read_class_file(found[1]) if found is not None else None
