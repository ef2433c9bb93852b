"""The versions of the libraries that decide the bytes of a pool."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path


def library_versions(decoder: str = "pyav", hwaccel: str | None = None) -> dict[str, str]:
    """Return the versions in use, and the hardware decoder if one was requested.

    Args:
        decoder: pyav | ffmpeg
        hwaccel: FFmpeg's name of a hardware decoder

    Raises:
        ConfigError: `decoder` is ffmpeg and there is no usable FFmpeg."""
    import av  # here: a run that decodes nothing does not need libav

    versions = {
        "av": av.__version__,
        "simplejpeg": metadata.version("simplejpeg"),
        "bmpt": _own_version(),
    }
    if decoder == "ffmpeg":  # PyAV still reads the facts of the container
        from preprocess.decode.ffmpeg_process import ffmpeg_version

        versions["ffmpeg"] = ffmpeg_version()
        if hwaccel:
            versions["hwaccel"] = hwaccel
    else:
        for name in ("libavcodec", "libswscale"):
            versions[name] = ".".join(map(str, av.library_versions[name]))
    return versions


def join_versions(*versions: Mapping[str, str]) -> dict[str, str]:
    """Join the versions that worked on one pool.

    A library that was upgraded in between has all its versions, in order: `18.1.0, 18.2.0`."""
    joined: dict[str, list[str]] = {}
    for of_build in versions:
        for name, text in of_build.items():
            joined.setdefault(name, []).extend(text.split(", "))
    return {name: ", ".join(dict.fromkeys(joined[name])) for name in sorted(joined)}


def _own_version() -> str:
    """Read the version of the checkout, which may not be installed, else of the package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        text = project.read_text(encoding="utf-8")
        version = re.search(r'^version = "(.+)"$', text, flags=re.MULTILINE)
        if version:
            return version[1]
    return metadata.version("bmpt")
