"""Find the configs that ship with the project by name, in a checkout and in an installed wheel.

The name of a config is its path below the folder of its kind, without `.yaml`: the experiment
`few_shot/ucf101_k2` is the file configs/experiments/few_shot/ucf101_k2.yaml."""

from __future__ import annotations

import difflib
from pathlib import Path

import shards
from shards.errors import ConfigError
from shards.files import os_error_text

_MOST_SUGGESTIONS, _LEAST_CLOSENESS = 3, 0.7


def configs_folder() -> Path:
    """Return the folder of the configs that ship with this copy of the project.

    A wheel holds it as `bmpt/configs`. In a checkout, also when it is installed with
    `pip install --editable`, it is `configs` beside the packages."""
    root = Path(str(shards.__file__)).resolve().parents[1]
    in_wheel = root / "bmpt" / "configs"
    return in_wheel if in_wheel.is_dir() else root / "configs"


def config_names(kind: str) -> list[str]:
    """Return the names of all shipped configs of a kind (a folder of `configs/`), sorted."""
    folder = configs_folder() / kind
    files = folder.rglob("*.yaml")
    return sorted(path.relative_to(folder).as_posix().removesuffix(".yaml") for path in files)


def name_of_config(path: Path, kind: str) -> str:
    """Return the name of a config file: its path below `configs/<kind>`, or else its stem.

    Only the path decides, so that a copy of the folder `configs` gives the same names."""
    parts = (*path.parent.resolve().parts, path.stem)
    for start in range(len(parts) - 1, 1, -1):
        if parts[start - 2 : start] == ("configs", kind):
            return "/".join(parts[start:])
    return path.stem


def find_config(address: Path | str, kind: str, *, listed_by: str) -> Path:
    """Return the file of a config that is given by its path or by the name of a shipped one.

    A file of that path comes before a shipped config of that name.

    Args:
        address: the path or the name.
        kind: the folder of `configs/` that holds the shipped ones, for example `experiments`.
        listed_by: the command that lists the names, for the error message.

    Raises:
        ConfigError: there is neither; the message suggests similar names."""
    path = Path(address)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise ConfigError(f"{address}: cannot be read: {os_error_text(error)}") from None
    # not `is_file`: the shell's `<(...)` is a pipe
    if exists and not is_folder:
        return path

    if str(address) in config_names(kind):
        return configs_folder() / kind / f"{address}.yaml"
    if is_folder:
        raise ConfigError(f"{address}: cannot be read: it is a folder; give a config file in it")

    names = suggest_names(str(address), kind)
    hint = f"did you mean {names}?" if names else f"give a path or a name that {listed_by} lists"
    raise ConfigError(f"{address}: no such config file; {hint}")


def suggest_names(address: str, kind: str) -> str:
    """Return the shipped names closest to a misspelt name or path: "a", "a or b", "a, b or c", or
    an empty string."""
    wanted = address.removesuffix(".yaml").rpartition(f"configs/{kind}/")[2]
    closeness = {}
    for name in config_names(kind):
        # the whole name, or its last part for those who leave out the folder
        texts = (name, name.rpartition("/")[2])
        closeness[name] = max(difflib.SequenceMatcher(None, wanted, text).ratio() for text in texts)

    close = [name for name in closeness if closeness[name] >= _LEAST_CLOSENESS]
    close.sort(key=closeness.__getitem__, reverse=True)
    *others, last = close[:_MOST_SUGGESTIONS] or [""]
    return f"{', '.join(others)} or {last}" if others else last
