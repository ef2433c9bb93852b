"""`bmpt bench build`: compare the cost of a build with decoding alone and with FFmpeg scripts.

All contenders process the same videos in turn, so that other load slows them alike. Code in this
process and FFmpeg processes are measured in CPU seconds of one core, the best of a few repeats per
video; whole builds are measured in clips per second."""

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

# FFmpeg's scale filter: short side at most 256, even sizes.
_SHORT_SIDE = (
    "scale='if(gt(iw,ih),-2,min(256,trunc(iw/2)*2))':'if(gt(iw,ih),min(256,trunc(ih/2)*2),-2)'"
)
STORED_FRAMES = 32  # as in the published figures of comparable tools

Contender = Callable[[Path], object]


@dataclass(frozen=True)
class BuildBenchmark:
    """The measurements: CPU seconds of all videos together, and rates of whole builds."""

    videos: int
    repeats: int
    """Measurements per video and contender, of which the best counts."""
    cores: int
    decode: float
    """PyAV with one thread, no frame kept."""
    ours: float
    """All of `read_video`: container structure, decoding, 32 frames to JPEG."""
    every_frame: float
    """One FFmpeg process per video that writes every frame as a JPEG file."""
    reencode: float
    """One FFmpeg process per video that writes H.264 with short side 256, as video2dataset does."""
    rate_1: float
    """Clips per second of a build with one worker, from the first clip written to the last."""
    rate_2: float
    """The same with two workers."""

    def ratios(self) -> dict[str, float]:
        """Return the claimed figures: ratios, which do not depend on the machine's speed."""
        return {
            "ours_of_decode_only_rate": self.decode / self.ours,
            "ours_times_every_frame_script": self.every_frame / self.ours,
            "ours_times_reencoding": self.reencode / self.ours,
            "two_workers_times_one": self.rate_2 / self.rate_1,
        }

    def as_json(self) -> dict[str, Any]:
        """Return the measurements and the ratios."""
        return {**asdict(self), "ratios": self.ratios()}


def bench_build(
    videos: Path,
    *,
    repeats: int,
    progress: Progress = NullProgress(),
    build_seconds: float = 20.0,
) -> BuildBenchmark:
    """Measure all videos below a folder.

    Args:
        repeats: measurements per video and contender
        build_seconds: approximate duration of a build with one worker; the build gets several
            copies of each video to take this long

    Raises:
        ConfigError: the folder holds no video."""
    files = [path for path in sorted(videos.rglob("*")) if _is_video(path)]
    if not files:
        raise ConfigError(f"{videos}: holds no video file; give a folder of videos to measure")
    set_up_logging()
    encoding = Encoding(frames_per_clip=STORED_FRAMES)
    encoder = FrameEncoder(encoding)

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        contenders: list[Contender] = [
            _decode_only,
            lambda path: read_video(path, encoder, encoding),
            lambda path: _every_frame(path, scratch),
            lambda path: _reencode(path, scratch),
        ]
        seconds = [0.0] * len(contenders)
        for done, path in enumerate(files, start=1):
            for index, best in enumerate(_best_of(contenders, path, repeats)):
                seconds[index] += best
            progress.update("measure", done, len(files))

        # A build of a few short videos would measure its start.
        copies = max(2, math.ceil(build_seconds / seconds[1]))
        tree = _link_copies(files, scratch / "tree", copies=copies)
        rates = [_build_rate(tree, scratch, num_workers) for num_workers in (1, 2)]
    return BuildBenchmark(len(files), repeats, os.cpu_count() or 1, *seconds, *rates)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file()


def _best_of(contenders: Sequence[Contender], path: Path, repeats: int) -> list[float]:
    """Return the least CPU seconds of each contender on one video; they take turns."""
    best = [float("inf")] * len(contenders)
    for _ in range(repeats):
        for index, contender in enumerate(contenders):
            # CPU time instead of wall time, because other processes run on this machine too.
            before = _cpu_seconds()
            contender(path)
            best[index] = min(best[index], _cpu_seconds() - before)
    return best


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and its ended children, user and system."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _decode_only(path: Path) -> int:
    """Decode every frame with one thread and keep none."""
    import av

    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def _every_frame(path: Path, scratch: Path) -> None:
    """Write every frame as a JPEG file, the usual script, with FFmpeg's default threads."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    _ffmpeg(path, f"{folder}/img_%05d.jpg", {"qscale:v": 2, "vf": _SHORT_SIDE})
    for file in folder.iterdir():
        file.unlink()


def _reencode(path: Path, scratch: Path) -> None:
    _ffmpeg(path, f"{scratch}/out.mp4", {"vcodec": "libx264", "vf": _SHORT_SIDE, "an": None})


def _ffmpeg(path: Path, out: str, options: dict[str, Any]) -> None:
    import ffmpeg
    import imageio_ffmpeg

    source = ffmpeg.input(f"file:{path}")
    stream = source.output(f"file:{out}", loglevel="quiet", **options).overwrite_output()
    stream.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stderr=True)


def _link_copies(files: Sequence[Path], tree: Path, *, copies: int) -> Path:
    """Make a folder with `copies` links to every video."""
    for copy in range(copies):
        folder = tree / f"copy{copy:04d}"
        folder.mkdir(parents=True)
        for number, path in enumerate(files):
            # Links cost no disk, and give each copy a key of its own.
            (folder / f"{number:04d}{path.suffix}").symlink_to(path.absolute())
    return tree


class _Clock(NullProgress):
    """Keep the time of every update."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Record the time at which `done` clips are complete."""
        self.times.append(time.perf_counter())


def _build_rate(videos: Path, scratch: Path, num_workers: int) -> float:
    """Return the clips per second of a build, without its start and its closing."""
    options = {
        "dataset": "folder",
        "videos": videos,
        "out": str(scratch / f"pool-{num_workers}"),
        "workers": num_workers,
    }
    settings = make_build_settings(options, [f"frames_per_clip={STORED_FRAMES}"])
    clock = _Clock()
    run_build(settings, progress=clock)
    # The first update comes before any clip is written.
    first_clip, last_clip = clock.times[1], clock.times[-1]
    return (len(clock.times) - 2) / (last_clip - first_clip)
