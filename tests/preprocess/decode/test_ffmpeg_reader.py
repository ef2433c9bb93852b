"""One FFmpeg process per video: the same frames, pixels, facts and verdicts as PyAV."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from preprocess.decode.ffmpeg_reader import FfmpegReader, _select
from preprocess.decode.pixels import FrameEncoder
from preprocess.decode.pyav_reader import read_video, set_up_logging
from preprocess.decode.video import ReadVideo
from preprocess.sources import SourceVideo
from preprocess.workers.child import DecodeOptions, decode_video, open_reader
from shards.errors import ConfigError
from shards.format import jpeg
from shards.format.schema import Encoding
from shards.reader import open_pool
from tests.preprocess.builds import build, digests
from tests.preprocess.fuzz import Damage
from tests.preprocess.tiny_videos import index_of, make_audio, make_video
from tests.shared_data import SMALL_CLIPS, sample_clips, shared_data

FFMPEG = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]


@pytest.fixture(scope="module", autouse=True)
def _logging() -> None:
    set_up_logging()


def read(path: Path, **encoding: int) -> ReadVideo:
    return FfmpegReader(Encoding(**encoding)).read(path)


def read_in_process(path: Path, **encoding: int) -> ReadVideo:
    settings = Encoding(**encoding)
    return read_video(path, FrameEncoder(settings), settings)


def images(video: ReadVideo) -> list[np.ndarray]:
    return [jpeg.decode(frame, where="test") for frame in video.frames]


def check_equal(found: ReadVideo, wanted: ReadVideo) -> None:
    """Assert equal frames, times, facts and verdicts, and pixels within 3 levels."""
    assert found.source_index == wanted.source_index
    assert found.num_frames_decoded == wanted.num_frames_decoded
    assert found.stored_size == wanted.stored_size
    assert found.source_time_seconds == pytest.approx(wanted.source_time_seconds, abs=0.001)
    assert found.stream == wanted.stream
    assert found.verdict == wanted.verdict
    for ours, theirs in zip(images(found), images(wanted), strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 3


@pytest.mark.parametrize("name", sample_clips())
def test_every_sample_clip_is_read_as_by_pyav(name: str) -> None:
    path = shared_data() / "clips" / name
    found = read(path, frames_per_clip=12)
    check_equal(found, read_in_process(path, frames_per_clip=12))
    assert found.verdict.name == "ok"
    assert found.source_time_seconds == sorted(found.source_time_seconds)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".webm"])
def test_a_long_video_keeps_the_lattice_of_its_decoded_frames(tmp_path: Path, suffix: str) -> None:
    video = read(make_video(tmp_path / f"a{suffix}", frames=23), frames_per_clip=5)
    assert (video.verdict.name, video.num_frames_decoded) == ("ok", 23)
    assert video.source_index == [0, 4, 9, 13, 18]
    assert [index_of(image) for image in images(video)] == video.source_index


def test_a_header_that_states_too_many_frames_costs_a_second_process_and_changes_no_frame(
    tmp_path: Path,
) -> None:
    whole = make_video(tmp_path / "a.avi", frames=23)
    data = bytearray(whole.read_bytes())
    length_at = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    data[length_at : length_at + 4] = (40).to_bytes(4, "little")
    (tmp_path / "b.avi").write_bytes(data)
    video = read(tmp_path / "b.avi", frames_per_clip=5)
    assert video.frames == read(whole, frames_per_clip=5).frames
    assert video.verdict.name == "short"


def make_odd(folder: Path) -> dict[str, Path]:
    """Make whole files that are unusual, one of each kind."""
    files = {
        "odd size": make_video(folder / "odd.webm", frames=5, size=(67, 49)),
        "portrait": make_video(folder / "portrait.mp4", frames=3, size=(300, 400)),
        "large and odd": make_video(folder / "large.avi", frames=3, size=(427, 301)),
        "one frame": make_video(folder / "one.mov", frames=1),
        "no count, no length": make_video(folder / "live.webm", frames=20, options={"live": "1"}),
        "vp8": make_video(folder / "vp8.webm", frames=20, codec="libvpx"),
        "10 bits": make_video(
            folder / "ten.mp4", frames=4, size=(66, 50), pixel_format="yuv420p10le"
        ),
        "4:4:4": make_video(folder / "444.mp4", frames=4, size=(402, 302), pixel_format="yuv444p"),
        "4:2:2": make_video(folder / "422.mp4", frames=4, size=(402, 302), pixel_format="yuv422p"),
        "full range": make_video(
            folder / "full.mp4", frames=4, size=(402, 302), pixel_format="yuvj420p"
        ),
        "variable rate": make_video(folder / "vfr.mp4", frames=6, times=[0, 4, 9, 60, 61, 300]),
        "strange name": make_video(folder / "-i %d 'a' [1];é.avi", frames=3),
    }
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=1"]
    subprocess.run(
        [*FFMPEG, *source, "-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p10le", folder / "ten.webm"],
        check=True,
    )
    files["10 bits in vp9"] = folder / "ten.webm"
    return files


def test_unusual_whole_files_are_read_as_by_pyav(tmp_path: Path) -> None:
    for kind, path in make_odd(tmp_path).items():
        found = read(path)
        assert found.verdict.name == "ok", (kind, found.verdict)
        check_equal(found, read_in_process(path))


@pytest.mark.parametrize(
    ("suffix", "degrees"), [(".webm", 90), (".mp4", 90), (".mp4", 180), (".mp4", 270)]
)
def test_a_rotated_video_is_stored_upright(tmp_path: Path, suffix: str, degrees: int) -> None:
    plain, rotated = (
        make_video(tmp_path / f"a{suffix}", frames=3, size=(64, 46)),
        tmp_path / f"b{suffix}",
    )
    subprocess.run(
        [*FFMPEG, "-display_rotation", str(degrees), "-i", plain, "-c", "copy", rotated], check=True
    )
    video = read(rotated)
    assert video.stream.rotation_degrees == degrees
    check_equal(video, read_in_process(rotated))


def test_a_video_that_changes_its_size_loses_no_frame(tmp_path: Path) -> None:
    joined = tmp_path / "joined.mpg"
    for number, size in enumerate(((64, 48), (96, 64))):
        path = make_video(tmp_path / f"{number}.mp4", frames=5, size=size)
        stream = [
            "-c",
            "copy",
            "-output_ts_offset",
            str(number / 2),
            "-f",
            "mpegts",
            tmp_path / "one.ts",
        ]
        subprocess.run([*FFMPEG, "-i", path, *stream], check=True)
        with joined.open("ab") as file:
            file.write((tmp_path / "one.ts").read_bytes())
    video = read(joined)
    assert video.num_frames_decoded == 10
    assert {image.shape for image in images(video)} == {(48, 64, 3)}
    check_equal(video, read_in_process(joined))


def test_a_file_that_is_no_video_has_the_same_reason_as_with_pyav(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    make_audio(tmp_path / "audio.mp4")
    for path in sorted(tmp_path.iterdir()):
        found = read(path)
        assert (found.verdict.name, found.frames) == ("undecodable", [])
        assert found.verdict == read_in_process(path).verdict


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".webm"])
def test_damaged_files_keep_the_frames_and_the_verdict_that_pyav_gives_them(
    tmp_path: Path, suffix: str
) -> None:
    data = make_video(tmp_path / f"whole{suffix}", frames=40, size=(160, 128)).read_bytes()
    damages = [
        Damage("cut", 30),
        Damage("cut", 95),
        *[Damage("flip", 8)] * 2,
        Damage("flip", 40),
        Damage("zero", 512),
    ]
    path = tmp_path / f"a{suffix}"
    for number, damage in enumerate(damages):
        path.write_bytes(damage.apply(data, np.random.default_rng(number)))
        found, wanted = read(path, frames_per_clip=7), read_in_process(path, frames_per_clip=7)
        assert found.verdict.name == wanted.verdict.name, (damage, found.verdict, wanted.verdict)
        assert found.source_index == wanted.source_index, damage
        assert found.num_decoder_errors == wanted.num_decoder_errors, damage
        assert str(tmp_path) not in (found.verdict.reason or "")
        for ours, theirs in zip(images(found), images(wanted), strict=True):
            assert np.abs(ours.astype(int) - theirs).mean() < 3, damage


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL_CLIPS)
def test_damaged_sample_clips_have_the_verdicts_of_pyav_every_time(
    name: str, tmp_path: Path
) -> None:
    whole = shared_data() / "clips" / name
    flips = [Damage("flip", 1), Damage("flip", 8), Damage("flip", 40), Damage("zero", 512)]
    damages = [*[Damage("cut", percent) for percent in (10, 30, 50, 70, 90, 98)], *flips * 4]
    path = tmp_path / f"a{whole.suffix}"
    for number, damage in enumerate(damages):
        path.write_bytes(damage.apply(whole.read_bytes(), np.random.default_rng([7, number])))
        found, wanted = read(path, frames_per_clip=4), read_in_process(path, frames_per_clip=4)
        assert found.verdict.name == wanted.verdict.name, (damage, found.verdict, wanted.verdict)
        assert found.verdict.name != "ok" or damage.kind != "cut"
        assert read(path, frames_per_clip=4) == found


def test_open_reader_returns_the_ffmpeg_reader(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    read_file = open_reader(DecodeOptions(Encoding(decoder="ffmpeg"), timeout_seconds=60))
    decoded = decode_video(SourceVideo("a", path, "a.mp4", 1, None), read_file)
    assert (decoded.row["verdict"], len(decoded.frames)) == ("ok", 12)


@pytest.mark.parametrize("indices", [[], [0], [0, 1, 2], [j * 3000 // 999 for j in range(999)]])
def test_the_select_expression_selects_exactly_the_given_frames(indices: list[int]) -> None:
    number = 3000
    pattern = _select(indices).replace(",", "\\,")
    source = f"color=size=16x16:rate=1000:duration={number / 1000}"
    shown = ["-vf", f"select={pattern}", "-fps_mode", "passthrough", "-f", "framecrc", "-"]
    done = subprocess.run(
        [*FFMPEG, "-f", "lavfi", "-i", source, *shown], capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [int(line.split(",")[1]) for line in lines] == indices


@pytest.fixture(scope="module")
def built(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the pool of a build with FFmpeg and one worker."""
    out = tmp_path_factory.mktemp("built") / "pool"
    build(videos, out, decoder="ffmpeg")
    return out


@pytest.mark.parametrize("workers", [1, 2])
def test_ffmpeg_builds_give_the_same_bytes_with_any_number_of_workers(
    videos: Path, built: Path, tmp_path: Path, workers: int
) -> None:
    build(videos, tmp_path / "pool", decoder="ffmpeg", workers=workers)
    assert digests(tmp_path / "pool") == digests(built)


def test_an_ffmpeg_pool_states_its_ffmpeg_and_has_the_samples_of_pyav(
    built: Path, reference: Path
) -> None:
    ours, theirs = open_pool(built), open_pool(reference)
    libraries = json.loads((built / "pool.json").read_text())["libraries"]
    assert libraries["ffmpeg"] == imageio_ffmpeg.get_ffmpeg_version()
    assert not {"libavcodec", "libswscale", "hwaccel"} & libraries.keys()
    assert ours.card.encoding.decoder == "ffmpeg"
    columns = [
        "key",
        "verdict",
        "reason",
        "source_index",
        "num_frames_decoded",
        "stored_width",
        "codec",
    ]
    assert ours.samples().select(columns).equals(theirs.samples().select(columns))


def test_a_pool_is_not_continued_with_another_decoder(built: Path, videos: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder was 'ffmpeg' and is now 'pyav'"):
        build(videos, built)
