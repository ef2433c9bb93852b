"""The FFmpeg binary of imageio-ffmpeg: is it there, what can it do here, and one run of it that
cannot be orphaned."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import imageio_ffmpeg

from shards.errors import ConfigError

_CURE = "unset IMAGEIO_FFMPEG_EXE or set it to another FFmpeg, or leave the option away: PyAV needs none"
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def find_ffmpeg() -> str:
    """The path of the binary. Raises: ConfigError if there is none for this machine."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise ConfigError(
            f"--decoder ffmpeg: imageio-ffmpeg has no FFmpeg for this machine; {_CURE}"
        ) from None


def ffmpeg_version() -> str:
    """Raises: ConfigError if there is no binary."""
    find_ffmpeg()
    return str(imageio_ffmpeg.get_ffmpeg_version())


def check_ffmpeg(hwaccel: str | None) -> None:
    """Try the binary, and the hardware decoder if one is named, on one made-up frame; 30 ms.

    Raises: ConfigError if it does not run, does not know that name, or cannot open such a device on
        this machine."""
    binary = find_ffmpeg()
    device: list[str] = []
    if hwaccel is not None:
        known = _run(binary, "-hwaccels").stdout.split()[
            3:
        ]  # behind "Hardware acceleration methods:"
        if hwaccel not in known:
            raise ConfigError(
                f"--hwaccel {hwaccel}: FFmpeg {ffmpeg_version()} knows {', '.join(known)}; give one of these"
            )
        device = ["-init_hw_device", hwaccel]
    one_frame = [
        "-f",
        "lavfi",
        "-i",
        "nullsrc=s=16x16",
        "-vf",
        "scale=8:8:in_chroma_loc=left",
        "-frames:v",
        "1",
    ]
    tried = _run(
        binary,
        "-nostdin",
        "-v",
        "error",
        *device,
        *one_frame,
        "-fps_mode",
        "passthrough",
        "-f",
        "null",
        "-",
    )
    if tried.returncode == 0:
        return
    said = next(iter(tried.stderr.splitlines()), "it said nothing").split("] ")[-1]
    if hwaccel is not None:
        raise ConfigError(
            f"--hwaccel {hwaccel}: FFmpeg cannot use it on this machine: {said}; "
            "leave it away, or build where its device and driver are"
        )
    raise ConfigError(f"--decoder ffmpeg: {binary} is too old or broken: {said}; {_CURE}")


def _run(binary: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [binary, "-hide_banner", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ConfigError(
            f"--decoder ffmpeg: {binary} cannot be run: {error.strerror}; {_CURE}"
        ) from None


@contextlib.contextmanager
def running(command: list[str], feed: Callable[[str], None]) -> Iterator[subprocess.Popen[bytes]]:
    """Run FFmpeg with its log read by a thread; once left, the process is gone and its log is read
    to the end."""
    parent = os.getpid()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=(lambda: _die_with(parent)) if _prctl else None,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log = process.stderr

    def read_log() -> None:
        try:
            for line in log:
                feed(line.decode(errors="replace").rstrip("\n"))
        finally:  # FFmpeg waits for whoever reads its log
            for _ in log:
                pass

    reader = threading.Thread(target=read_log)
    reader.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        log.close()


def _die_with(parent: int) -> None:
    """In the new process, before FFmpeg: have the kernel kill it once the process that started it
    is gone."""
    assert _prctl is not None
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
