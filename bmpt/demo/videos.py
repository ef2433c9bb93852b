"""Write the demo's videos: rendered motions in the three codecs of the real data sets."""

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
from shards.files import one_line
from shards.progress import NullProgress, Progress

TRAIN_PER_CLASS = 20
VAL_PER_CLASS = 40
NUM_FRAMES = 16
SIZE_PX = 64
FPS = 12

_H264 = {"format": "mp4", "vcodec": "libx264", "crf": 14, "preset": "veryfast", "threads": 1}
_VP9 = {"format": "webm", "vcodec": "libvpx-vp9", "crf": 20, "b:v": 0, "cpu-used": 8, "threads": 1}
_MPEG4 = {"format": "avi", "vcodec": "mpeg4", "qscale:v": 3, "threads": 1}

# (suffix, FFmpeg's container and encoder options). One thread per file, since as many files as the
# machine has cores are written at the same time.
CODECS: tuple[tuple[str, dict[str, Any]], ...] = (
    (".mp4", _H264),
    (".webm", _VP9),
    (".avi", _MPEG4),
)


@dataclass(frozen=True)
class DemoVideo:
    """A video of the demo."""

    motion: str

    split: str
    """`train` or `val`."""

    index: int
    """Number within the motion and split; it selects the codec."""

    @property
    def name(self) -> str:
        """Path below the video folder: `<motion>/<split>_<index>.<suffix>`."""
        suffix, _ = CODECS[self.index % len(CODECS)]
        return f"{self.motion}/{self.split}_{self.index:03d}{suffix}"


def demo_videos() -> list[DemoVideo]:
    """Return all videos of the demo, the same list on every machine."""
    videos = []

    for motion in MOTIONS:
        videos += [DemoVideo(motion, "train", index) for index in range(TRAIN_PER_CLASS)]
        videos += [DemoVideo(motion, "val", index) for index in range(VAL_PER_CLASS)]

    return videos


def write_lists(folder: Path) -> None:
    """Write the annotation files train.txt and val.txt: one path below the video folder per line.

    Raises:
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)

    for split in ("train", "val"):
        lines = [f"{video.name}\n" for video in demo_videos() if video.split == split]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def write_videos(folder: Path, look: Look, progress: Progress = NullProgress()) -> None:
    """Render and encode the videos that are missing, on all cores.

    Args:
        folder: created if it is missing.
        look: of all videos.
        progress: shows the number of videos.

    Raises:
        StorageError: with the last line of FFmpeg.
        OSError: if a folder or file cannot be written.
    """
    videos = demo_videos()
    for motion in MOTIONS:
        (folder / motion).mkdir(parents=True, exist_ok=True)

    def write(video: DemoVideo) -> None:
        write_video(folder, video, look)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(write, videos), start=1):
            progress.update("render videos", done, len(videos))


def write_video(folder: Path, video: DemoVideo, look: Look) -> None:
    """Render and encode one video unless its file exists.

    Args:
        folder: the video folder; the folder of the motion must exist in it.
        video: the name also seeds the random numbers, so the order of videos does not matter.
        look: of the video.

    Raises:
        StorageError: with the last line of FFmpeg.
        OSError: if the file cannot be written.
    """
    path = folder / video.name
    if path.exists():
        return

    # A checksum, since Python's `hash` of a text differs between processes.
    rng = np.random.default_rng(zlib.crc32(f"{video.split}/{video.motion}/{video.index}".encode()))
    clip = render_clip(video.motion, look, rng, num_frames=NUM_FRAMES, size_px=SIZE_PX)

    # A stopped demo leaves no half video under the final name.
    temporary = path.with_name(f".{path.name}.part")
    encode(clip.frames_THWC, temporary, dict(CODECS)[path.suffix])
    temporary.replace(path)


def encode(frames_THWC: np.ndarray, path: Path, options: dict[str, Any]) -> None:
    """Encode RGB frames with the bundled FFmpeg, which is started without a shell.

    Args:
        frames_THWC: uint8 [T, H, W, 3].
        path: the video file; an existing one is overwritten.
        options: FFmpeg's container and encoder options.

    Raises:
        StorageError: with the last line of FFmpeg.
    """
    height, width = frames_THWC.shape[1:3]
    raw = ffmpeg.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=FPS
    )
    # `file:` keeps FFmpeg from reading a colon in the path as a protocol.
    stream = raw.output(f"file:{path}", pix_fmt="yuv420p", loglevel="error", **options)
    command = imageio_ffmpeg.get_ffmpeg_exe()

    try:
        stream.overwrite_output().run(cmd=command, input=frames_THWC.tobytes(), capture_stderr=True)
    except ffmpeg.Error as error:
        path.unlink(missing_ok=True)
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        reason = one_line("".join(lines[-1:])) or "no message"
        raise StorageError(f"{path}: FFmpeg cannot write the video: {reason}") from None
