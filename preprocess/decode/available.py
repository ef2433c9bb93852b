"""The video decoders of this machine, for `bmpt info`."""

from __future__ import annotations

from importlib import import_module, metadata

from shards.errors import ConfigError
from shards.files import one_line

# The codecs of the data sets' files, by the names of FFmpeg.
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg")


def available_decoders() -> dict[str, str]:
    """Return the version of each decoding library, and the codecs that PyAV can decode.

    A library that is missing or broken is named with the reason instead of a version.
    """
    return {
        "PyAV": _pyav_text(),
        "codecs": _codecs_text(),
        "FFmpeg program": _ffmpeg_text(),
        "decord": _decord_text(),
    }


def _pyav_text() -> str:
    import av

    version = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"{av.__version__} (libavcodec {version})"


def _codecs_text() -> str:
    """Return the codecs of `CODECS` that PyAV can decode, and those that it cannot."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    found, missing = [], []
    for name in CODECS:
        try:
            Codec(name, "r")
        except UnknownCodecError:
            missing.append(name)
        else:
            found.append(name)

    text = " ".join(found)
    return f"{text}; not {' '.join(missing)}" if missing else text


def _ffmpeg_text() -> str:
    from preprocess.decode.ffmpeg_process import ffmpeg_version

    try:
        return ffmpeg_version()
    except ConfigError as error:
        return f"not usable: {error}"


def _decord_text() -> str:
    """Return the distribution that provides the module `decord`: decord, or its fork decord2."""
    for distribution in ("decord", "decord2"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue

        try:
            import_module("decord")
        except (ImportError, OSError, RuntimeError) as error:
            return f"{distribution} {version}, not usable: {one_line(error)}"
        return f"{distribution} {version}"
    return "not installed"
