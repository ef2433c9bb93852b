"""The report of an import: the files, the use of every key, and its text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shards.files import name_some

CHECKPOINT_FILE = "checkpoint.safetensors"
_NO_CHECKPOINT = (
    "no checkpoint of a method: the file has the attributes head without the video branch that it "
    "is scored with; import the file of the video branch, with this one as --attributes-head"
)
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class ImportSource:
    """The files that an import has read."""

    file: str
    """Name of the checkpoint file."""
    sha256: str
    """Hash of the checkpoint file."""
    system: str
    """Published system that wrote it."""
    base: str
    """Name of the base model."""
    base_sha256: str
    """Hash of the base model's weights."""
    config: dict[str, Any] | None
    """Config in the file, None if there is none."""
    epoch: int | None
    """Number of the epoch, if the file states it."""
    attributes_file: str | None = None
    """Name of the second file, from which BIKE's attributes head was read."""
    attributes_sha256: str | None = None
    """Hash of the second file."""


@dataclass(frozen=True)
class ImportedKeys:
    """The use that an import makes of every key of a checkpoint."""

    mapped: dict[str, str]
    """CLIP's weights, {original name: CLIP's name}."""
    missing: list[str]
    """CLIP's weights that the system does not save; they are the base model's."""
    prompts: list[str]
    """Original names of prompts."""
    heads: list[str]
    """Original names of heads."""
    dropped: dict[str, str]
    """Keys without use, {original name: reason}."""
    left_out: list[str]
    """Entries of the file beside its weights."""
    unexpected: tuple[str, ...] = ()
    """Keys that no rule covers: always empty, since one of them ends the import."""


@dataclass(frozen=True)
class ImportReport:
    """Result of an import."""

    source: ImportSource
    """The files that were read."""
    keys: ImportedKeys
    """The use of every key."""
    files: tuple[str, ...] = ()
    """Files that were written."""

    def as_json(self) -> dict[str, Any]:
        """Return all fields in one object, as they are stored and printed."""
        own = {"files": self.files}
        return {**dataclasses.asdict(self.source), **dataclasses.asdict(self.keys), **own}


def import_text(report: ImportReport) -> str:
    """Return the report as text for a terminal."""
    source, keys = report.source, report.keys
    attributes = epoch = ""
    if source.attributes_file is not None:
        attributes = f" with the attributes head of {source.attributes_file}"
    if source.epoch is not None:
        epoch = f", epoch {source.epoch}"

    by_reason: dict[str, list[str]] = {}
    for name, reason in keys.dropped.items():
        by_reason.setdefault(reason, []).append(name)
    missing = ", ".join(f"{name} (taken from the base)" for name in keys.missing)

    lines = [
        f"{source.file}{attributes}: {source.system} on {source.base}{epoch}",
        f"mapped      {len(keys.mapped)} of CLIP, {len(keys.prompts)} of prompts, "
        f"{len(keys.heads)} of heads",
        f"missing     {missing or 'none'}",
    ]
    lines += [f"dropped     {list_names(names)}: {reason}" for reason, names in by_reason.items()]
    lines += [f"left out    {', '.join(keys.left_out) or 'none'}", "unexpected  none"]
    lines += [f"wrote       {name}" for name in report.files]
    if not any(name.endswith(CHECKPOINT_FILE) for name in report.files):
        lines.append(_NO_CHECKPOINT)
    return "\n".join(lines)


def list_names(names: Sequence[str]) -> str:
    """Return the first names and the number of the others, or `none`."""
    return name_some(names, _NAMES_SHOWN) or "none"
