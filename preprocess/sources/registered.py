"""Data sets that other installed packages register.

A package names its record in its metadata, for example in pyproject.toml:

    [project.entry-points."bmpt.data_sets"]
    toy = "toy_package.toy:TOY"
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from preprocess.sources.records import DataSet
from shards.errors import ConfigError

GROUP = "bmpt.data_sets"


def find_registered(name: str, built_in: Iterable[str]) -> DataSet | None:
    """Load the data set that a package registers under this name; None if none does.

    Raises:
        ConfigError: two packages register the name, a package registers a built-in name, or the
            entry point does not lead to a record of that name."""
    entries = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not entries:
        return None
    if name in built_in:
        raise ConfigError(
            f"--dataset {name}: {_package(entries[0])} registers a data set with this built-in "
            f"name ({GROUP}: {entries[0].value}); rename it there, or uninstall the package"
        )
    if len(entries) > 1:
        packages = " and ".join(_package(entry) for entry in entries)
        raise ConfigError(
            f"--dataset {name}: {packages} register a data set with this name; uninstall all but "
            "one of them"
        )
    return _load(entries[0])


def registered_names() -> list[str]:
    """Return the names that installed packages register, sorted; nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def _load(entry: EntryPoint) -> DataSet:
    """Import the record of an entry point and check it."""
    where = f"--dataset {entry.name}: the entry point {entry.value} of {_package(entry)}"
    cure = "correct, update or uninstall that package"
    try:
        record = entry.load()
    except Exception as error:  # the module is foreign code and may raise anything
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where} cannot be loaded: {what}; {cure}") from error
    if not isinstance(record, DataSet):
        raise ConfigError(
            f"{where} is a {type(record).__name__}, expected a "
            f"{DataSet.__module__}.{DataSet.__qualname__}; {cure}"
        )
    if record.name != entry.name:
        raise ConfigError(f"{where} is a record with the name {record.name!r}; {cure}")
    return record


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist is not None else "an unnamed package"
