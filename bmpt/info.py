"""Facts about the installation and the machine for a bug report: `bmpt info`."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bmpt.config import RunConfig
from shards.files import os_error_text
from shards.storage.credential_source import credential_sources

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "webdataset",
    "av",
    "simplejpeg",
    "obstore",
    "pyarrow",
    "numpy",
    "pydantic",
    "safetensors",
)


@dataclass(frozen=True)
class Info:
    """Facts about the installation and the machine; no secret and no user name is among them."""

    bmpt: str
    """Version of the package."""
    python: str
    platform: str
    cpu_cores: int
    """Cores that this process may use."""
    packages: dict[str, str]
    """Versions by distribution; `not installed` where one is missing."""
    gpus: list[str]
    """Name and memory per GPU; empty without CUDA."""
    cuda: str
    """CUDA version that torch was built for, or why no GPU can be used."""
    decoders: dict[str, str]
    """Decoding libraries and codecs."""
    credentials: dict[str, str]
    """Source of the credentials by scheme: s3, gs, az."""
    free_disk: dict[str, str]
    """Free bytes by folder."""
    cache: str
    """The cache of frames, if a config was given that has one."""


def collect_info(
    decoders: Mapping[str, str], cpu_cores: int, config: RunConfig | None = None
) -> Info:
    """Collect the facts. Imports torch, which takes seconds.

    Args:
        decoders: of `preprocess.decode.available.available_decoders`; the command passes it in,
            since bmpt does not import preprocess.
        cpu_cores: of `preprocess.settings.count_cores`, passed in for the same reason.
        config: a config whose cache is described, too.
    """
    gpus, cuda = _gpus()
    folders = {"working folder": Path.cwd()}
    if config is not None and config.data.cache is not None:
        folders["cache"] = config.data.cache

    return Info(
        bmpt=_version("bmpt"),
        python=sys.version.split()[0],
        platform=platform.platform(),
        cpu_cores=cpu_cores,
        packages={name: _version(name) for name in PACKAGES},
        gpus=gpus,
        cuda=cuda,
        decoders=dict(decoders),
        credentials=credential_sources(os.environ),
        free_disk={name: _free(folder) for name, folder in folders.items()},
        cache=_cache_text(config),
    )


def info_text(info: Info) -> str:
    """Return one line per fact."""
    rows = [
        ("bmpt", info.bmpt),
        ("Python", info.python),
        ("platform", info.platform),
        ("CPU cores", str(info.cpu_cores)),
        *info.packages.items(),
        ("CUDA", info.cuda),
        *(("GPU", gpu) for gpu in info.gpus),
        *info.decoders.items(),
        *((f"credentials {scheme}://", source) for scheme, source in info.credentials.items()),
        *((f"free disk, {name}", free) for name, free in info.free_disk.items()),
        ("cache", info.cache),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> tuple[list[str], str]:
    """Return name and memory of every GPU, and the CUDA version or why there is none."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [], f"torch cannot be imported: {error}"

    if torch.version.cuda is None:
        return [], "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return [], f"{torch.version.cuda}, but torch finds no usable GPU"

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return gpus, str(torch.version.cuda)


def _free(folder: Path) -> str:
    """Return the free space of the folder, or of the nearest parent that exists."""
    folder = folder.absolute()
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return f"{shutil.disk_usage(folder).free / 1e9:,.1f} GB"
    except OSError as error:
        return f"unknown: {os_error_text(error)}"


def _cache_text(config: RunConfig | None) -> str:
    if config is None:
        return "none by default; `bmpt info CONFIG` describes the cache of a config"
    if config.data.cache is None:
        return "none; data.cache=FOLDER enables it"

    used = 0
    for path in config.data.cache.rglob("*"):
        # A run may evict an entry at any time.
        with contextlib.suppress(OSError):
            if path.is_file():
                used += path.stat().st_size
    cap = config.data.cache_bytes
    return f"{config.data.cache}: {used / 1e9:,.1f} of at most {cap / 1e9:,.1f} GB"
