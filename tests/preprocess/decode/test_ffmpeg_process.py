"""FFmpeg processes: none is left behind, and absent hardware ends a build before it begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest

from preprocess.settings import make_build_settings
from preprocess.sources import SourceVideo
from preprocess.workers.child import DecodeOptions
from preprocess.workers.in_order import InOrder
from preprocess.workers.local import LocalWorkers
from shards.errors import ConfigError
from shards.format.schema import Encoding
from tests.preprocess.builds import PATIENCE_SECONDS, ROOT, arguments, build
from tests.preprocess.tiny_videos import make_video

FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]


def test_an_unknown_or_absent_hardware_decoder_ends_a_build_before_it_begins(
    videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--hwaccel magic: .* knows .*cuda.*; give one of these"):
        build(videos, tmp_path / "pool", decoder="ffmpeg", hwaccel="magic")
    # drm wants the name of a device and gets none: it opens on no machine
    with pytest.raises(ConfigError, match=r"--hwaccel drm: FFmpeg cannot use it on this machine"):
        build(videos, tmp_path / "pool", decoder="ffmpeg", hwaccel="drm")
    assert not (tmp_path / "pool" / "pool.json").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "cannot be run: No such file"),
        ("echo old >&2; exit 1", "is too old or broken: old; unset IMAGEIO_FFMPEG_EXE"),
    ],
)
def test_an_ffmpeg_that_does_not_run_ends_a_build_before_it_begins(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    binary = tmp_path / "ffmpeg"
    if script is not None:
        binary.write_text(f"#!/bin/sh\n{script}\n")
        binary.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(binary))
    with pytest.raises(ConfigError, match=said):
        build(videos, tmp_path / "pool", decoder="ffmpeg")


def test_hwaccel_without_the_ffmpeg_decoder_is_an_error() -> None:
    with pytest.raises(ConfigError, match="hwaccel needs decoder ffmpeg"):
        make_build_settings({"dataset": "folder", "out": "pool", "hwaccel": "cuda"})


def ffmpeg_processes(path: Path) -> list[str]:
    """Return the command lines of running FFmpeg processes that read a file."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"file:{path}" in command:
            found.append(command)
    return found


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video that takes minutes to decode, in a folder of its own."""
    folder = tmp_path_factory.mktemp("endless")
    make_video(folder / "short.mp4", frames=5, size=(1280, 720))
    path = folder / "videos" / "jump" / "a.mp4"
    path.parent.mkdir(parents=True)
    subprocess.run(
        [*FFMPEG, "-stream_loop", "4000", "-i", folder / "short.mp4", "-c", "copy", path],
        check=True,
    )
    return path


def test_no_ffmpeg_outlives_the_time_of_its_video(endless: Path) -> None:
    options = DecodeOptions(Encoding(decoder="ffmpeg"), timeout_seconds=1.0)
    with LocalWorkers(1, options) as workers:
        (answer,) = InOrder(workers).decode([SourceVideo("a", endless, "a.mp4", 0, None)])
        assert answer.row["reason"] == "the decoder did not end within 1 s, tried twice"
        wait_until(lambda: not ffmpeg_processes(endless), "FFmpeg runs on")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_ffmpeg_outlives_a_build_that_was_killed(
    endless: Path, tmp_path: Path, number: int
) -> None:
    script = str(ROOT / "preprocess" / "build_shards.py")
    words = arguments(endless.parents[1], tmp_path / "pool", "--decoder", "ffmpeg")
    process = subprocess.Popen(
        [sys.executable, script, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: bool(ffmpeg_processes(endless)), "FFmpeg never began")
        os.kill(process.pid, number)
        process.wait(timeout=PATIENCE_SECONDS)
        wait_until(lambda: not ffmpeg_processes(endless), "FFmpeg runs on")
    finally:
        process.kill()
        process.wait()


def test_no_ffmpeg_outlives_its_worker(endless: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from preprocess.workers.child import *;"
        "options = DecodeOptions(Encoding(decoder='ffmpeg'), timeout_seconds=60);"
        "open_reader(options)(Path(sys.argv[1]))"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(endless)], cwd=ROOT)
    try:
        wait_until(lambda: bool(ffmpeg_processes(endless)), "FFmpeg never began")
    finally:
        worker.kill()
        worker.wait()
    wait_until(lambda: not ffmpeg_processes(endless), "FFmpeg runs on")
