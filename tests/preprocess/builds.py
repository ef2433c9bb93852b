"""A tiny `folder` data set, and helpers to build it, kill a build and compare pools."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess.coordinator.pipeline import run_build
from preprocess.coordinator.report import BuildReport
from preprocess.settings import make_build_settings
from shards.progress import NullProgress
from tests.preprocess.tiny_videos import make_video

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("-_a (1)#&;", "b!!! [2]", "c é", "d", "e")
PATIENCE_SECONDS = 300  # for a process that hangs
ENCODING = ("frames_per_clip=6", "videos_per_shard=4", "jpeg_quality=80")


def make_tree(root: Path) -> Path:
    """Make ten videos of two classes, of which one is cut and one is a text file.

    With four videos per shard they need three shards, the last with an undecodable video.
    """
    for label, class_name in enumerate(("jump", "run fast")):
        for number, name in enumerate(NAMES):
            suffix = (".avi", ".mp4")[number % 2]
            make_video(
                root / class_name / f"{name}{suffix}", frames=5 + number, seed=10 * label + number
            )
    cut = root / "jump" / "c é.avi"
    cut.write_bytes(cut.read_bytes()[:-900])
    (root / "run fast" / "d.mp4").write_text("not a video\n" * 20)
    return root


def build(videos: Path, out: Path | str, *overrides: str, **options: Any) -> BuildReport:
    """Build in this process."""
    values = {"dataset": "folder", "videos": videos, "out": str(out), "workers": 1, **options}
    settings = make_build_settings(values, [*ENCODING, *overrides])
    return run_build(settings)


class CallOnUpdate(NullProgress):
    """Calls a function with (done, total) whenever the progress is updated."""

    def __init__(self, call: Callable[[int, int], None]) -> None:
        super().__init__()
        self._call = call

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        self._call(done, total)


class Interruption(BaseException):
    """Ends a build in this process at a chosen video."""


def build_interrupted(videos: Path, out: Path | str, *, at: int, **options: Any) -> None:
    """Build in this process until `at` videos are written, and leave the files as a kill would."""

    def stop(done: int, total: int) -> None:
        if done == at:
            raise Interruption

    values = {"dataset": "folder", "videos": videos, "out": str(out), "workers": 1, **options}
    with contextlib.suppress(Interruption):
        run_build(make_build_settings(values, ENCODING), progress=CallOnUpdate(stop))


def arguments(videos: Path, out: Path, *more: str) -> list[str]:
    """Return the command line of the same build."""
    sets = [word for override in ENCODING for word in ("--set", override)]
    return [
        "--dataset",
        "folder",
        "--videos",
        str(videos),
        "--out",
        str(out),
        "--workers",
        "2",
        *sets,
        *more,
    ]


_KILLED = """
import os, sys
from preprocess import build_shards
from shards.progress import Progress
signal, at = int(sys.argv[1]), int(sys.argv[2])
def update(self, name, done, total, note=""):
    if done == at:
        os.kill(os.getpid(), signal)
Progress.update = update
sys.exit(build_shards.main(sys.argv[3:]))
"""


def run_killed(args: list[str], *, signal: int, at: int) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that gets a signal once `at` videos are written."""
    return run_python("-c", _KILLED, str(int(signal)), str(at), *args)


def run_script(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python preprocess/build_shards.py` from any folder."""
    return run_python(str(ROOT / "preprocess" / "build_shards.py"), *args, cwd=cwd)


def run_python(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python and capture what it prints."""
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, hidden ones too, by relative path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
