"""Whole but unusual files: none is flagged, and each frame is stored once, upright, at its time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from preprocess.decode.decoders import PacketDecoder, is_shown
from preprocess.decode.pixels import FrameEncoder
from preprocess.decode.pyav_reader import read_video, set_up_logging
from preprocess.decode.video import ReadVideo
from shards.format import jpeg
from shards.format.schema import Encoding
from tests.preprocess.tiny_videos import index_of, make_video

FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
TEST_PICTURE = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=4"]


@pytest.fixture(scope="module", autouse=True)
def _logging() -> None:
    set_up_logging()


def read(path: Path) -> ReadVideo:
    return read_video(path, FrameEncoder(Encoding()), Encoding())


def images(video: ReadVideo) -> list[np.ndarray]:
    return [jpeg.decode(frame, where="test") for frame in video.frames]


def check_all_stored(video: ReadVideo, num_frames: int) -> None:
    assert (video.verdict.name, video.verdict.reason) == ("ok", None)
    assert video.source_index == list(range(num_frames))
    assert [index_of(image) for image in images(video)] == list(range(num_frames))


@pytest.mark.parametrize(
    ("suffix", "size", "stored"),
    [
        (".webm", (67, 49), (67, 49)),
        (".avi", (67, 49), (67, 49)),
        (".webm", (429, 301), (365, 256)),
        (".mp4", (48, 64), (48, 64)),
        (".mp4", (300, 400), (256, 341)),
        (".mp4", (1920, 1080), (455, 256)),
        (".webm", (1080, 1920), (256, 455)),
    ],
)
def test_odd_portrait_and_large_sizes_are_stored_whole(
    tmp_path: Path, suffix: str, size: tuple[int, int], stored: tuple[int, int]
) -> None:
    path = make_video(tmp_path / f"a{suffix}", frames=3, size=size)
    video = read(path)
    check_all_stored(video, 3)
    assert video.stored_size == stored
    assert {image.shape for image in images(video)} == {(stored[1], stored[0], 3)}
    assert read(path).frames == video.frames


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_frames_of_a_variable_rate_keep_their_times(tmp_path: Path, suffix: str) -> None:
    times = [0, 4, 9, 60, 61, 150, 152, 300]
    video = read(make_video(tmp_path / f"a{suffix}", frames=len(times), times=times))
    check_all_stored(video, len(times))
    assert video.source_time_seconds == pytest.approx([time / 100 for time in times], abs=0.002)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mov", ".webm"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_video_of_three_frames_or_one_is_ok(tmp_path: Path, suffix: str, frames: int) -> None:
    check_all_stored(read(make_video(tmp_path / f"a{suffix}", frames=frames)), frames)


@pytest.mark.parametrize("options", [{}, {"live": "1"}])
@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_webm_without_a_frame_count_or_a_length_is_ok_and_a_cut_one_short(
    tmp_path: Path, codec: str, options: dict
) -> None:
    path = make_video(tmp_path / "a.webm", frames=20, codec=codec, options=options)
    video = read(path)
    check_all_stored(video, 20)
    assert video.stream.num_frames_stated is None
    assert video.stream.codec == {"libvpx": "vp8", "libvpx-vp9": "vp9"}[codec]
    cut = tmp_path / "b.webm"
    cut.write_bytes(path.read_bytes()[:-2500])
    assert read(cut).verdict.name == "short"


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_libvpx_gives_the_pixels_and_times_of_the_decoder_of_ffmpeg(
    tmp_path: Path, codec: str
) -> None:
    path = make_video(tmp_path / "a.webm", frames=15, size=(67, 49), codec=codec)
    with av.open(str(path)) as ours, av.open(str(path)) as theirs:
        decoder = PacketDecoder(ours.streams.video[0])
        found = [frame for packet in ours.demux(video=0) for frame in decoder.decode(packet)]
        wanted = list(theirs.decode(video=0))
    assert [frame.time for frame in found] == [frame.time for frame in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one.to_ndarray(format="gray") == other.to_ndarray(format="gray")).all()


def test_hidden_packets_of_vp8_are_no_lost_frames(tmp_path: Path) -> None:
    two_pass = [
        *FFMPEG,
        *TEST_PICTURE,
        "-c:v",
        "libvpx",
        "-b:v",
        "100k",
        "-auto-alt-ref",
        "1",
        "-lag-in-frames",
        "25",
    ]
    for number in ("1", "2"):
        subprocess.run([*two_pass, "-pass", number, "a.webm"], check=True, cwd=tmp_path)
    with av.open(str(tmp_path / "a.webm")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) > 100
    assert sum(is_shown(packet, "vp8") for packet in packets) == 100
    video = read(tmp_path / "a.webm")
    assert (video.verdict.name, video.num_frames_decoded) == ("ok", 100)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p", "yuv444p", "gbrp"])
def test_vp9_of_other_pixel_formats_is_ok(tmp_path: Path, pixel_format: str) -> None:
    encode = [
        *FFMPEG,
        *TEST_PICTURE,
        "-frames:v",
        "5",
        "-c:v",
        "libvpx-vp9",
        "-pix_fmt",
        pixel_format,
    ]
    subprocess.run([*encode, tmp_path / "a.webm"], check=True)
    video = read(tmp_path / "a.webm")
    assert (video.verdict.name, video.num_frames_decoded) == ("ok", 5)


@pytest.mark.parametrize(
    ("suffix", "degrees"), [(".webm", 90), (".mp4", 90), (".mp4", 180), (".mp4", 270)]
)
def test_a_rotated_vp9_video_is_stored_upright(tmp_path: Path, suffix: str, degrees: int) -> None:
    plain, rotated = (
        make_video(tmp_path / "a.webm", frames=3, size=(64, 46)),
        tmp_path / f"b{suffix}",
    )
    subprocess.run(
        [*FFMPEG, "-display_rotation", str(degrees), "-i", plain, "-c", "copy", rotated], check=True
    )
    video = read(rotated)
    assert video.verdict.name == "ok"
    assert video.stream.rotation_degrees == degrees
    assert video.stored_size == ((64, 46) if degrees == 180 else (46, 64))
    turned = np.rot90(images(read(plain))[0], degrees // 90).astype(int)
    assert np.abs(images(video)[0] - turned).mean() < 3


@pytest.mark.parametrize(
    ("codec", "picture"), [("libvpx", "black"), ("libvpx-vp9", "gray"), ("libx264", "black")]
)
def test_a_picture_that_never_changes_is_no_zeroed_block(
    tmp_path: Path, codec: str, picture: str
) -> None:
    path = tmp_path / ("a.mp4" if codec == "libx264" else "a.webm")
    still = ["-f", "lavfi", "-i", f"color={picture}:size=640x360:rate=25:duration=1"]
    subprocess.run(
        [*FFMPEG, *still, "-c:v", codec, "-b:v", "5M", "-minrate", "5M", "-maxrate", "5M", path],
        check=True,
    )
    assert read(path).verdict.name == "ok"
