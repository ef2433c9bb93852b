"""The private memory (USS, from the kernel) of a worker that reads a long file."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import pytest

from shards.reader import open_pool
from tests.preprocess.builds import build
from tests.process_memory import children_of, tree_uss_bytes, uss_bytes

MAX_USS_BYTES = 400_000_000
_CODECS = {
    ".mp4": {"vcodec": "libx264", "preset": "ultrafast", "crf": 32, "acodec": "aac"},
    ".webm": {
        **{
            "vcodec": "libvpx-vp9",
            "deadline": "realtime",
            "cpu-used": 8,
            "row-mt": 1,
            "tile-columns": 2,
        },
        **{"crf": 50, "b:v": 0, "acodec": "libopus"},
    },
}


def make_long_video(path: Path, *, segment_seconds: int, repeats: int) -> Path:
    """Write a noisy 1080p video at 30/s with sound: one encoded segment, copied `repeats` times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    segment = path.with_name(f"segment{path.suffix}")
    names = path.with_name("segments.txt")
    picture = ffmpeg.input(f"testsrc2=size=1920x1080:rate=30:duration={segment_seconds}", f="lavfi")
    sound = ffmpeg.input(f"sine=frequency=440:duration={segment_seconds}", f="lavfi")
    noisy = picture.filter("noise", alls=8, allf="t")
    _run(ffmpeg.output(noisy, sound, str(segment), pix_fmt="yuv420p", **_CODECS[path.suffix]))
    names.write_text(f"file '{segment}'\n" * repeats)
    _run(ffmpeg.input(str(names), f="concat", safe=0).output(str(path), c="copy"))
    segment.unlink()
    names.unlink()
    return path


def _run(stream: ffmpeg.Stream) -> None:
    stream.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True)


@contextlib.contextmanager
def watch_workers() -> Iterator[list[int]]:
    """Collect the USS of each child with its descendants in bytes, twenty times per second."""
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            seen.extend(tree_uss_bytes(pid) for pid in children_of(os.getpid()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_uss_counts_the_private_memory_of_a_process() -> None:
    before = uss_bytes(os.getpid())
    held = bytearray(os.urandom(64_000_000))
    assert 60_000_000 < uss_bytes(os.getpid()) - before < 70_000_000, len(held)


@pytest.mark.parametrize(
    ("suffix", "segment_seconds", "repeats", "decoder"),
    [
        pytest.param(".mp4", 2, 10, "pyav", id="20 s of h264"),
        pytest.param(".webm", 1, 10, "pyav", id="10 s of vp9"),
        pytest.param(".mp4", 2, 10, "ffmpeg", id="20 s of h264 by ffmpeg"),
        pytest.param(".mp4", 10, 60, "pyav", id="10 min of h264", marks=pytest.mark.long),
        pytest.param(".webm", 2, 300, "pyav", id="10 min of vp9", marks=pytest.mark.long),
        pytest.param(
            ".mp4", 10, 60, "ffmpeg", id="10 min of h264 by ffmpeg", marks=pytest.mark.long
        ),
    ],
)
def test_a_worker_stays_below_400_mb_on_1080p(
    tmp_path: Path, suffix: str, segment_seconds: int, repeats: int, decoder: str
) -> None:
    make_long_video(
        tmp_path / "videos" / "a" / f"long{suffix}",
        segment_seconds=segment_seconds,
        repeats=repeats,
    )
    with watch_workers() as seen:
        build(tmp_path / "videos", tmp_path / "pool", "frames_per_clip=64", decoder=decoder)
    (row,) = open_pool(tmp_path / "pool").samples().to_pylist()
    num_frames = 30 * segment_seconds * repeats
    assert (row["verdict"], row["height"], row["num_frames_decoded"]) == ("ok", 1080, num_frames), (
        row["reason"]
    )
    assert len(row["source_index"]) == 64
    assert 20_000_000 < max(seen) < MAX_USS_BYTES, f"{max(seen) / 1e6:.0f} MB"
    print(f"peak {max(seen) / 1e6:.0f} MB of USS in {len(seen)} looks")
