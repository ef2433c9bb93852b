"""`bmpt bench build`: what preparing costs beside decoding alone and beside the usual FFmpeg
scripts, in one run.

All sides take the same videos in turn, so that a busy machine slows them alike. In-process sides
and FFmpeg processes are measured in CPU seconds of one core (best of a few repeats a video), builds
in clips a second."""

from __future__ import annotations

import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocess.coordinator.pipeline import run_build
from preprocess.decode.pixels import FrameEncoder
from preprocess.decode.pyav_reader import read_video, set_up_logging
from preprocess.settings import make_build_settings
from preprocess.sources.naming import VIDEO_EXTENSIONS
from shards.errors import ConfigError
from shards.format.schema import Encoding
from shards.progress import NullProgress, Progress

# short side at most 256, even sizes
_SHORT_SIDE = (
    "scale='if(gt(iw,ih),-2,min(256,trunc(iw/2)*2))':'if(gt(iw,ih),min(256,trunc(ih/2)*2),-2)'"
)
STORED_FRAMES = 32  # what the published figures of this kind of tool are stated for


@dataclass(frozen=True)
class BuildBenchmark:
    """CPU seconds of all videos together, the best of `repeats` for each, and wall seconds of whole
    builds.

    decode: PyAV, one thread, nothing kept; ours: the whole of `read_video` (structure, decoding, 32
        frames to JPEG)
    every_frame: one FFmpeg process a video, every frame to JPEG files; reencode: one FFmpeg process
        a video to
    H.264 at short side 256, as video2dataset does
    rate_1, rate_2: clips/s of builds with one and two workers, from the first clip written to the
        last"""

    videos: int
    repeats: int
    cores: int
    decode: float
    ours: float
    every_frame: float
    reencode: float
    rate_1: float
    rate_2: float

    def ratios(self) -> dict[str, float]:
        """What is claimed: shares and multiples, not times."""
        return {
            "ours_of_decode_only_rate": self.decode / self.ours,
            "ours_times_every_frame_script": self.every_frame / self.ours,
            "ours_times_reencoding": self.reencode / self.ours,
            "two_workers_times_one": self.rate_2 / self.rate_1,
        }

    def as_json(self) -> dict[str, Any]:
        """Measurements and ratios."""
        return {**asdict(self), "ratios": self.ratios()}


def bench_build(
    videos: Path, *, repeats: int, progress: Progress = NullProgress(), build_seconds: float = 20.0
) -> BuildBenchmark:
    """Measure all videos below a folder. Raises: ConfigError if there are none.

    build_seconds: builds take each video as often as keeps one worker busy for about so long"""
    files = sorted(
        path
        for path in videos.rglob("*")
        if path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file()
    )
    if not files:
        raise ConfigError(f"{videos}: holds no video file; give a folder of videos to measure")
    set_up_logging()
    encoding = Encoding(frames_per_clip=STORED_FRAMES)
    encoder = FrameEncoder(encoding)
    with tempfile.TemporaryDirectory() as scratch:
        sides: list[Callable[[Path], object]] = [
            _decode_only,
            lambda path: read_video(path, encoder, encoding),
            lambda path: _every_frame(path, Path(scratch)),
            lambda path: _reencode(path, Path(scratch)),
        ]
        seconds = [0.0] * len(sides)
        for done, path in enumerate(files, start=1):
            for index, best in enumerate(_best_of(sides, path, repeats)):
                seconds[index] += best
            progress.update("measure", done, len(files))
        tree = _repeat(
            files, Path(scratch) / "tree", copies=max(2, math.ceil(build_seconds / seconds[1]))
        )
        rates = [_build_rate(tree, Path(scratch), workers) for workers in (1, 2)]
    return BuildBenchmark(len(files), repeats, os.cpu_count() or 1, *seconds, *rates)


def _best_of(sides: Sequence[Callable[[Path], object]], path: Path, repeats: int) -> list[float]:
    """The least CPU seconds of each side on one video; the sides take turns."""
    best = [float("inf")] * len(sides)
    for _ in range(repeats):
        for index, side in enumerate(sides):
            before = _cpu_seconds()
            side(path)
            best[index] = min(best[index], _cpu_seconds() - before)
    return best


def _cpu_seconds() -> float:
    """Of this process and its ended children, user and system."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _decode_only(path: Path) -> int:
    """Decode every frame with one thread and look at none."""
    import av

    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def _every_frame(path: Path, scratch: Path) -> None:
    """The usual script: every frame to a JPEG file, with FFmpeg's defaults for threads."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    _ffmpeg(path, f"{folder}/img_%05d.jpg", {"qscale:v": 2, "vf": _SHORT_SIDE})
    for file in folder.iterdir():
        file.unlink()


def _reencode(path: Path, scratch: Path) -> None:
    _ffmpeg(path, f"{scratch}/out.mp4", {"vcodec": "libx264", "vf": _SHORT_SIDE, "an": None})


def _ffmpeg(path: Path, out: str, options: dict[str, Any]) -> None:
    import ffmpeg
    import imageio_ffmpeg

    stream = (
        ffmpeg.input(f"file:{path}")
        .output(f"file:{out}", loglevel="quiet", **options)
        .overwrite_output()
    )
    stream.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stderr=True)


def _repeat(files: Sequence[Path], tree: Path, *, copies: int) -> Path:
    """A folder in which every video is found `copies` times."""
    for copy in range(copies):
        (tree / f"copy{copy:04d}").mkdir(parents=True)
        for number, path in enumerate(files):
            (tree / f"copy{copy:04d}" / f"{number:04d}{path.suffix}").symlink_to(path.absolute())
    return tree


class _Clock(NullProgress):
    """Keep the time of every update."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Record the time at which `done` clips are complete."""
        self.times.append(time.perf_counter())


def _build_rate(videos: Path, scratch: Path, workers: int) -> float:
    """Clips a second of a build into a new folder; its start and its closing are not counted."""
    clock = _Clock()
    options = {
        "dataset": "folder",
        "videos": videos,
        "out": str(scratch / f"pool-{workers}"),
        "workers": workers,
    }
    settings = make_build_settings(options, [f"frames_per_clip={STORED_FRAMES}"])
    run_build(settings, progress=clock)
    times = clock.times
    first_clip, last_clip = times[1], times[-1]  # times[0]: nothing is written yet
    return (len(times) - 2) / (last_clip - first_clip)
