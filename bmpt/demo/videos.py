"""Write the demo's videos: rendered motions in the three codecs that the real data sets use."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg
import numpy as np

from bmpt.demo.render import MOTIONS, Look, render_clip
from shards.errors import StorageError
from shards.progress import NullProgress, Progress

TRAIN_PER_CLASS = 20
VAL_PER_CLASS = 40
NUM_FRAMES = 16
SIZE_PX = 64
FPS = 12

# (suffix, ffmpeg's container and encoder options); one thread, since many files are written side by
# side
CODECS: tuple[tuple[str, dict[str, Any]], ...] = (
    (".mp4", {"format": "mp4", "vcodec": "libx264", "crf": 14, "preset": "veryfast", "threads": 1}),
    (
        ".webm",
        {
            "format": "webm",
            "vcodec": "libvpx-vp9",
            "crf": 20,
            "b:v": 0,
            "cpu-used": 8,
            "threads": 1,
        },
    ),
    (".avi", {"format": "avi", "vcodec": "mpeg4", "qscale:v": 3, "threads": 1}),
)


@dataclass(frozen=True)
class DemoVideo:
    """One video of the demo: `<motion>/<split>_<index>` and its codec."""

    motion: str
    split: str
    index: int

    @property
    def name(self) -> str:
        """Path below the video folder."""
        return f"{self.motion}/{self.split}_{self.index:03d}{CODECS[self.index % len(CODECS)][0]}"


def demo_videos() -> list[DemoVideo]:
    """All videos of the demo, the same on every machine."""
    counts = {"train": TRAIN_PER_CLASS, "val": VAL_PER_CLASS}
    return [
        DemoVideo(m, split, index)
        for m in MOTIONS
        for split, count in counts.items()
        for index in range(count)
    ]


def write_lists(folder: Path) -> None:
    """Write the demo's annotation files, train.txt and val.txt: a path below the video folder each
    line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        lines = [f"{video.name}\n" for video in demo_videos() if video.split == split]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def write_videos(folder: Path, look: Look, progress: Progress = NullProgress()) -> None:
    """Render and encode the videos that are not there yet. Raises: StorageError with FFmpeg's last
    line."""
    videos = demo_videos()
    for motion in MOTIONS:
        (folder / motion).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, _ in enumerate(
            pool.map(lambda video: write_video(folder, video, look), videos), start=1
        ):
            progress.update("render videos", done, len(videos))


def write_video(folder: Path, video: DemoVideo, look: Look) -> None:
    """Render and encode one video unless it is there; its random numbers are keyed by its name."""
    path = folder / video.name
    if path.exists():
        return
    rng = np.random.default_rng(zlib.crc32(f"{video.split}/{video.motion}/{video.index}".encode()))
    clip = render_clip(video.motion, look, rng, num_frames=NUM_FRAMES, size_px=SIZE_PX)
    temporary = path.with_name(f".{path.name}.part")
    encode(clip.frames_THWC, temporary, dict(CODECS)[path.suffix])
    temporary.replace(path)


def encode(frames_THWC: np.ndarray, path: Path, options: dict[str, Any]) -> None:
    """Encode RGB frames [T, H, W, 3] with the bundled FFmpeg; no shell. Raises: StorageError."""
    height, width = frames_THWC.shape[1:3]
    raw = ffmpeg.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=FPS
    )
    stream = raw.output(
        f"file:{path}", pix_fmt="yuv420p", loglevel="error", **options
    ).overwrite_output()
    try:
        stream.run(
            cmd=imageio_ffmpeg.get_ffmpeg_exe(), input=frames_THWC.tobytes(), capture_stderr=True
        )
    except ffmpeg.Error as error:
        path.unlink(missing_ok=True)
        last = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
        raise StorageError(
            f"{path}: FFmpeg could not write it: {' '.join(last) or 'no message'}"
        ) from None
