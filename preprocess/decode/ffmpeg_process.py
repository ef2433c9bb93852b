"""The FFmpeg program of imageio-ffmpeg: find it, check it, and run it so that it ends with us."""

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
from shards.files import os_error_text

_HINT = (
    "unset IMAGEIO_FFMPEG_EXE or set it to another FFmpeg, or leave the option out: PyAV needs none"
)
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

# One made-up frame through the scaler with the options that the reader uses.
_ONE_FRAME = (
    *("-f", "lavfi", "-i", "nullsrc=s=16x16", "-vf", "scale=8:8:in_chroma_loc=left"),
    *("-frames:v", "1", "-fps_mode", "passthrough", "-f", "null", "-"),
)


def find_ffmpeg() -> str:
    """Return the path of the FFmpeg program.

    Raises:
        ConfigError: if there is none for this machine.
    """
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise ConfigError(
            f"--decoder ffmpeg: imageio-ffmpeg has no FFmpeg for this machine; {_HINT}"
        ) from None


def ffmpeg_version() -> str:
    """Return the version of the FFmpeg program.

    Raises:
        ConfigError: if there is none for this machine.
    """
    find_ffmpeg()
    return str(imageio_ffmpeg.get_ffmpeg_version())


def check_ffmpeg(hwaccel: str | None) -> None:
    """Check FFmpeg, and the hardware decoder if one is named, with one made-up frame; 30 ms.

    Raises:
        ConfigError: if FFmpeg does not run, does not know the name, or cannot open such a device
            on this machine.
    """
    binary = find_ffmpeg()

    # A wrong name and a missing device are different mistakes of the user.
    device: list[str] = []
    if hwaccel is not None:
        # The names follow the line "Hardware acceleration methods:".
        known = _run(binary, "-hwaccels").stdout.split()[3:]
        if hwaccel not in known:
            raise ConfigError(
                f"--hwaccel {hwaccel}: FFmpeg {ffmpeg_version()} knows {', '.join(known)}; give "
                "one of these"
            )
        device = ["-init_hw_device", hwaccel]

    result = _run(binary, "-nostdin", "-v", "error", *device, *_ONE_FRAME)
    if result.returncode == 0:
        return

    # The first line is the cause, later ones repeat it for each stage.
    first_line = next(iter(result.stderr.splitlines()), "it printed no error")
    reason = first_line.split("] ")[-1]
    if hwaccel is not None:
        raise ConfigError(
            f"--hwaccel {hwaccel}: FFmpeg cannot use it on this machine: {reason}; leave it out, "
            "or build on a machine with its device and driver"
        )
    raise ConfigError(f"--decoder ffmpeg: {binary} is too old or broken: {reason}; {_HINT}")


def _run(binary: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [binary, "-hide_banner", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise ConfigError(
            f"--decoder ffmpeg: {binary} cannot be run: {os_error_text(error)}; {_HINT}"
        ) from None


@contextlib.contextmanager
def running(command: list[str], feed: Callable[[str], None]) -> Iterator[subprocess.Popen[bytes]]:
    """Run FFmpeg while a thread reads its log.

    When the context is left, the process has ended and the log was read to its end.

    Args:
        command: the program and its arguments.
        feed: called in the thread with each line of standard error.
    """
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
        finally:
            # FFmpeg blocks while nothing reads its log, so read on even if `feed` has failed.
            for _ in log:
                pass

    # In a thread, since FFmpeg writes frames to one pipe and its log to another at the same time.
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
    """Let the kernel kill this new process when its parent dies; runs before FFmpeg is loaded."""
    assert _prctl is not None
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    # The parent may have died before the call above.
    if os.getppid() != parent:
        os._exit(1)
