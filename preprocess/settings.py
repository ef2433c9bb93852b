"""The settings of a build, checked before anything is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from shards.config import Settings, build_settings, merge, parse_override, suggest_key
from shards.errors import ConfigError
from shards.format.schema import Encoding

# The fields of Encoding that this version can write with other values than the default.
_ADJUSTABLE = ("frames_per_clip", "short_side_px", "jpeg_quality", "videos_per_shard", "decoder")


def count_cores() -> int:
    """Return the number of cores that this process may use.

    In a container or a batch job it may use fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class BuildSettings(Settings):
    """The settings of one build of one pool."""

    dataset: str
    videos: Path
    """Default: ./videos/<dataset>."""
    annotations: Path | None = None
    splits: list[Path] = Field(default_factory=list)
    out: str = Field(min_length=1)
    """Folder or address of the pool. Default: ./data/<dataset>."""
    workers: int = Field(default_factory=count_cores, ge=1, le=1024)
    part: str | None = None
    """`I/N`: build the shards of part I of N, counted from 1."""
    merge: bool = False
    limit: int | None = Field(None, ge=1)
    retry_failed: bool = False
    check_sources: bool = False
    expect_sources: Path | None = None
    labels: Literal["csv", "official", "legacy"] = "csv"
    strict: bool = False
    json_output: bool = Field(False, alias="json")
    seed: int = 0
    decoder: Literal["pyav", "ffmpeg"] = "pyav"
    hwaccel: str | None = Field(None, pattern=r"^[a-z0-9_]+$")
    """FFmpeg's name of a hardware decoder, for example cuda; needs `decoder` ffmpeg."""
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    """auto or host:port of a running cluster. Default: a new cluster on this machine."""
    scratch: Path | None = None
    """Folder of the open shards of a pool in object storage. Default: ./scratch/<dataset>."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Time limit of one video; above 100 MB, per 100 MB of its file."""
    encoding: Encoding = Encoding()

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("dataset"), str):
            return values
        name = values["dataset"]
        filled = {"videos": Path("videos") / name, "out": str(Path("data") / name), **values}
        # The decoder is part of the encoding, and an option of its own.
        encoding = filled.get("encoding", {})
        if "decoder" in filled and isinstance(encoding, Mapping):
            filled["encoding"] = {"decoder": filled["decoder"], **encoding}
        return filled

    @field_validator("part")
    @classmethod
    def _part_is_in_range(cls, value: str | None) -> str | None:
        if value is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", value)
            if match is None or not 1 <= int(match[1]) <= int(match[2]) <= 9999:
                raise ValueError("expected I/N with I from 1 to N, for example 1/4")
        return value

    @field_validator("ray_address")
    @classmethod
    def _ray_address_names_a_node(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(r"auto|[^/\s]+:\d+", value) is None:
            raise ValueError(
                "expected auto or host:port, for example auto on a node of the cluster"
            )
        return value

    @field_validator("encoding")
    @classmethod
    def _encoding_can_be_written(cls, value: Encoding) -> Encoding:
        for name, default in Encoding().model_dump().items():
            if name not in _ADJUSTABLE and getattr(value, name) != default:
                raise ValueError(f"{name} can only be {default!r} in this version")
        return value

    @model_validator(mode="after")
    def _settings_agree(self) -> BuildSettings:
        if self.merge and self.part is not None:
            raise ValueError("part and merge exclude each other: build all parts, then merge once")
        if self.part is not None and self.retry_failed:
            raise ValueError("part and retry_failed exclude each other: merge first, then retry")
        if self.encoding.decoder != self.decoder:
            raise ValueError(
                f"encoding.decoder is {self.encoding.decoder!r}, decoder is {self.decoder!r}"
            )
        if self.hwaccel is not None and self.decoder != "ffmpeg":
            raise ValueError("hwaccel needs decoder ffmpeg; PyAV decodes on the CPU")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("ray_address needs engine ray")
        return self

    @property
    def part_index(self) -> int:
        """I of `part`, counted from 1; 1 without parts."""
        return int(self.part.split("/")[0]) if self.part else 1

    @property
    def num_parts(self) -> int:
        """N of `part`; 1 without parts."""
        return int(self.part.split("/")[1]) if self.part else 1


def make_build_settings(options: Mapping[str, Any], overrides: Sequence[str] = ()) -> BuildSettings:
    """Merge the options and `--set key=value`, and validate them.

    Args:
        options: values by setting; None stands for an option that was not given
        overrides: `key=value`; the name of an encoding field is short for `encoding.<name>`

    Raises:
        ConfigError: a key is unknown or a value is not valid."""
    values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for override in overrides:
        parsed = parse_override(override)
        (name,) = parsed
        if name in BuildSettings.model_fields:
            values = merge(values, parsed)
        elif name in Encoding.model_fields:
            values = merge(values, {"encoding": parsed})
        else:
            known = [*BuildSettings.model_fields, *_ADJUSTABLE]
            raise ConfigError(f"--set {override}: unknown key {name}; {suggest_key(name, known)}")
    return build_settings(BuildSettings, values, where="build")
