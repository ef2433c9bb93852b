"""Find the lists and class files of `--splits`.

These are checkouts of ViFi-CLIP, BDC-CLIP, BMPT or BIKE, or folders of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.protocols.catalogue import list_rules
from preprocess.protocols.lists import read_class_file, read_split_list
from preprocess.protocols.records import ClassFile, ListRule, SplitList
from preprocess.sources import DataSet
from shards.errors import ConfigError

_SPLITS = "datasets_splits"
_CHECKOUT_FOLDERS = (_SPLITS, "labels", "lists", "mapping")


@dataclass(frozen=True)
class Checkout:
    """One `--splits` folder."""

    root: Path
    splits: Path
    """Its folder of lists, which has another name if it was given itself."""
    origin: str
    """The method whose checkout it is, as the `source` of a manifest states it; empty for one's
    own folder. It follows from the content, not from the path, so that manifests do not depend on
    the location of a checkout."""

    def find(self, name: str) -> Path | None:
        """Return the file with a relative name; None if it does not exist."""
        inner = name.removeprefix(f"{_SPLITS}/")
        path = self.root / name if inner == name else self.splits / inner
        return path if path.is_file() else None


@dataclass(frozen=True)
class ListUse:
    """A list that exists, with the class file that its labels index."""

    rule: ListRule
    source: str
    split_list: SplitList
    class_file: ClassFile | None
    """None if no checkout has a class file for the list."""


def open_checkouts(folders: Sequence[Path]) -> list[Checkout]:
    """Open the `--splits` folders in order. Raises ConfigError for a missing folder."""
    return [_open_checkout(folder) for folder in folders]


def _open_checkout(folder: Path) -> Checkout:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; give --splits a checkout that holds {_SPLITS}/ and labels/"
        )
    is_root = any((folder / name).is_dir() for name in _CHECKOUT_FOLDERS)
    if not is_root and any(folder.glob("*_splits")):  # `datasets_splits` itself was given
        root = folder.absolute().parent
        return Checkout(root, folder, _origin(root))
    return Checkout(folder, folder / _SPLITS, _origin(folder))


def _origin(root: Path) -> str:
    """Name the method whose checkout a folder is, from files that only that one has."""
    if (root / "lists").is_dir():
        return "BIKE"
    if (root / "mapping").is_dir():
        return "BMPT"
    if any(root.glob("labels/*_corrected.csv")):
        return "BDC-CLIP"
    return "ViFi-CLIP" if (root / _SPLITS).is_dir() or (root / "labels").is_dir() else ""


def read_lists(dataset: DataSet, checkouts: Sequence[Checkout]) -> list[ListUse]:
    """Read every list of the data set that exists; the first checkout that has a file is used."""
    # Several manifests are made from one file, which is read once.
    lists: dict[tuple[Path, int], SplitList] = {}
    files: dict[Path, ClassFile] = {}
    uses = []
    for rule in list_rules(dataset):
        listed = find_first(checkouts, (rule.list_file,))
        if listed is None:
            continue
        checkout, path = listed
        # BIKE's lists have another form, hence the number of columns in the key.
        if (path, rule.num_columns) not in lists:
            lists[path, rule.num_columns] = read_split_list(path, num_columns=rule.num_columns)

        class_file = None
        named = find_first(checkouts, rule.class_files)
        if named is not None:
            if named[1] not in files:
                files[named[1]] = read_class_file(named[1])
            class_file = files[named[1]]
        # Without the path of the checkout, which differs between machines.
        source = f"{checkout.origin} {rule.list_file}".strip()
        uses.append(ListUse(rule, source, lists[path, rule.num_columns], class_file))
    return uses


def no_lists(dataset: DataSet, checkouts: Sequence[Checkout]) -> ConfigError:
    """Return the error for checkouts without any list of the data set."""
    expected = ", ".join(rule.list_file for rule in list_rules(dataset)[:3])
    folders = ", ".join(str(checkout.root) for checkout in checkouts)
    return ConfigError(
        f"--splits {folders}: no list of {dataset.name} there; expected files such as {expected}"
    )


def find_first(checkouts: Sequence[Checkout], names: Sequence[str]) -> tuple[Checkout, Path] | None:
    """Return the first file of `names` in the first checkout that has one of them."""
    for checkout in checkouts:
        for name in names:
            path = checkout.find(name)
            if path is not None:
                return checkout, path
    return None


def full_class_file(dataset: DataSet, checkouts: Sequence[Checkout]) -> ClassFile | None:
    """Read the file of all classes of a data set; None if no checkout has it."""
    named = find_first(checkouts, (dataset.class_file,))
    return read_class_file(named[1]) if named is not None else None
