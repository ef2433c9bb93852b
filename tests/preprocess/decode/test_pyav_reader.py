"""The PyAV reader: the frames that it keeps, their pixels, and the facts of the file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from preprocess.decode.pixels import FrameEncoder, stored_size
from preprocess.decode.pyav_container import expect_frames
from preprocess.decode.pyav_reader import read_video, set_up_logging
from preprocess.decode.video import ReadVideo
from preprocess.planning import stored_indices
from shards.format import jpeg
from shards.format.schema import Encoding
from tests.preprocess.tiny_videos import index_of, make_video
from tests.shared_data import sample_clips, shared_data


@pytest.fixture(scope="module", autouse=True)
def _logging() -> None:
    set_up_logging()


def read(path: Path, **encoding: int) -> ReadVideo:
    settings = Encoding(**encoding)
    return read_video(path, FrameEncoder(settings), settings)


def images(video: ReadVideo) -> list[np.ndarray]:
    return [jpeg.decode(frame, where="test") for frame in video.frames]


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".webm"])
def test_a_short_video_keeps_all_its_frames_in_order(tmp_path: Path, suffix: str) -> None:
    video = read(make_video(tmp_path / f"a{suffix}"))
    assert video.verdict.name == "ok"
    assert video.source_index == list(range(12))
    assert [index_of(image) for image in images(video)] == list(range(12))
    assert video.source_time_seconds == pytest.approx(
        [index / 10 for index in range(12)], abs=0.011
    )


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".webm"])
def test_a_long_video_keeps_the_lattice_of_its_decoded_frames(tmp_path: Path, suffix: str) -> None:
    video = read(make_video(tmp_path / f"a{suffix}", frames=23), frames_per_clip=5)
    assert video.num_frames_decoded == 23
    assert video.source_index == [0, 4, 9, 13, 18]
    assert [index_of(image) for image in images(video)] == video.source_index


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".webm"])
def test_the_expected_number_of_frames_is_the_decoded_one(tmp_path: Path, suffix: str) -> None:
    assert expect_frames(make_video(tmp_path / f"a{suffix}", frames=17)) == 17


def test_a_header_that_states_too_many_frames_changes_no_stored_frame(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.avi", frames=23)
    data = whole.read_bytes()
    length_at = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(data[length_at : length_at + 4], "little") == 23
    lying = tmp_path / "b.avi"
    lying.write_bytes(data[:length_at] + (40).to_bytes(4, "little") + data[length_at + 4 :])
    video = read(lying, frames_per_clip=5)
    assert video.frames == read(whole, frames_per_clip=5).frames
    assert video.verdict.name == "short"
    assert "states 40 video packets and has 23" in (video.verdict.reason or "")


def test_a_rotated_video_is_stored_upright_as_ffmpeg_shows_it(tmp_path: Path) -> None:
    plain, rotated = make_video(tmp_path / "a.mp4", frames=2, size=(64, 46)), tmp_path / "b.mp4"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    subprocess.run(
        [*ffmpeg, "-display_rotation", "90", "-i", plain, "-c", "copy", rotated], check=True
    )
    raw = subprocess.run(
        [*ffmpeg, "-i", rotated, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "gray", "-"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    shown = np.frombuffer(raw, np.uint8).reshape(64, 46).astype(int)
    video = read(rotated)
    assert (video.stream.width, video.stream.height) == (64, 46)
    assert video.stored_size == (46, 64)
    assert video.stream.rotation_degrees == 90
    assert (
        np.abs(images(video)[0].mean(-1) - shown).mean() < 12
    )  # limited against full range, not another turn


def test_stored_sizes_are_never_scaled_up_and_odd_sizes_stay_odd() -> None:
    assert stored_size(427, 240, short_side_px=256) == (427, 240)
    assert stored_size(1280, 720, short_side_px=256) == (455, 256)
    assert stored_size(1080, 1920, short_side_px=256) == (256, 455)
    assert stored_size(5000, 2, short_side_px=256) == (5000, 2)


@pytest.mark.parametrize(
    "pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le"]
)
def test_all_pixel_formats_become_the_same_grey(tmp_path: Path, pixel_format: str) -> None:
    video = read(make_video(tmp_path / "a.mp4", frames=4, size=(66, 50), pixel_format=pixel_format))
    assert [index_of(image) for image in images(video)] == [0, 1, 2, 3]


def test_a_scaled_video_equals_the_libav_conversion_to_rgb(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=3, size=(402, 302))
    assert difference_from_rgb(path, read(path, short_side_px=101)) < 3


def test_a_video_with_a_name_that_is_not_utf8_can_be_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 -[1].avi"))
    make_video(tmp_path / "a.avi").rename(path)
    assert read(path).verdict.name == "ok"


def difference_from_rgb(path: Path, video: ReadVideo) -> float:
    """Return the largest mean difference from rgb24 over the first and the middle stored frame."""
    assert video.stored_size is not None
    size = video.stored_size[::-1] if video.stream.rotation_degrees % 180 else video.stored_size
    checked = {video.source_index[position]: position for position in (0, len(video.frames) // 2)}
    largest = 0.0
    with av.open(str(path), metadata_errors="ignore") as container:
        for index, frame in zip(range(max(checked) + 1), container.decode(video=0), strict=False):
            if index in checked:
                flags = {"width": size[0], "height": size[1], "interpolation": "BICUBIC"}
                wanted = np.rot90(
                    frame.to_ndarray(format="rgb24", **flags), video.stream.rotation_degrees // 90
                )
                stored = jpeg.decode(video.frames[checked[index]], where="test")
                largest = max(largest, float(np.abs(stored.astype(int) - wanted).mean()))
    return largest


@pytest.mark.long
@pytest.mark.parametrize("name", sample_clips())
def test_no_truncated_sample_clip_is_ok(name: str, tmp_path: Path) -> None:
    whole = shared_data() / "clips" / name
    data = whole.read_bytes()
    cut = tmp_path / f"cut{whole.suffix}"
    for percent in (10, 30, 50, 70, 90, 95, 98):
        cut.write_bytes(data[: len(data) * percent // 100])
        assert read(cut).verdict.name != "ok", f"{percent} %"


@pytest.mark.parametrize("name", sample_clips())
def test_every_sample_clip_is_ok_and_has_the_pixels_of_libav(name: str) -> None:
    path = shared_data() / "clips" / name
    video = read(path)
    assert (video.verdict.name, video.verdict.reason) == ("ok", None)
    assert video.source_index == stored_indices(video.num_frames_decoded, 64)
    assert difference_from_rgb(path, video) < 3
