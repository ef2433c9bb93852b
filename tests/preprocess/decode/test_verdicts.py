"""From evidence to verdict, and real damaged files through the reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.decode.containers import Structure, check_container
from preprocess.decode.pixels import FrameEncoder
from preprocess.decode.pyav_reader import read_video, set_up_logging
from preprocess.decode.verdicts import Evidence, Finding, judge
from preprocess.decode.video import ReadVideo
from shards.format.schema import VERDICTS, Encoding
from tests.preprocess.tiny_videos import make_audio, make_video

WHOLE = Evidence(codec="h264", num_packets_stated=10, num_packets=10, num_frames_good=10, fps=10.0)


@pytest.fixture(scope="module", autouse=True)
def _logging() -> None:
    set_up_logging()


def read(path: Path) -> ReadVideo:
    return read_video(path, FrameEncoder(Encoding()), Encoding())


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "ok", None),
        ({"problem": "no video stream"}, "undecodable", "no video stream"),
        ({"num_frames_good": 0}, "undecodable", "no frame in 10 video packets"),
        (
            {"num_frames_good": 0, "num_frames_bad": 3},
            "undecodable",
            "none of 3 frames decodes without an error",
        ),
        ({"num_packets_stated": 20}, "short", "states 20 video packets and has 10"),
        ({"missing_end": "the file has 5 bytes, x needs 9"}, "short", "has 5 bytes"),
        ({"end_gap_seconds": 0.5}, "short", "ends 0.50 s before"),
        (
            {"findings": (Finding(10, "File ended prematurely", True),)},
            "short",
            "ended prematurely",
        ),
        (
            {"findings": (Finding(3, "Error at MB: 70"),)},
            "damaged",
            "the first at packet 3 of 10: Error at MB: 70",
        ),
        ({"findings": (Finding(9, "Error at MB: 70"),)}, "damaged", "packet 9 of 10"),
        (
            {"findings": (Finding(9, "Error at MB: 70"),), "num_packets_stated": 20},
            "short",
            "states 20",
        ),
        (
            {"findings": (Finding(3, "bad"),), "num_packets_stated": 20},
            "damaged",
            "cut short: the file states 20",
        ),
        ({"num_frames_good": 7}, "damaged", "10 packets gave 7 frames"),
        ({"num_frames_good": 9, "codec": "mpeg4"}, "ok", None),
        ({"num_frames_good": 8, "codec": "mpeg4"}, "damaged", "10 packets gave 8 frames"),
        ({"num_frames_good": 8, "codec": "vp8", "num_packets_shown": 8}, "ok", None),
        (
            {"inconsistent": "a cue points at byte 7"},
            "damaged",
            "contradicts itself: a cue points at byte 7",
        ),
        (
            {"inconsistent": "x", "missing_end": "y"},
            "damaged",
            "contradicts itself: x; cut short: y",
        ),
        (
            {"inconsistent": "x", "problem": "cannot be opened"},
            "undecodable",
            "cannot be opened; the container",
        ),
        (
            {"findings": (Finding(7, "bad"),), "num_packets_stated": 20},
            "damaged",
            "packet 7 of 10: bad; cut short",
        ),
        ({"findings": (Finding(8, "bad"),), "num_packets_stated": 20}, "short", "states 20"),
    ],
)
def test_evidence_leads_to_a_verdict_with_a_reason(
    changes: dict, verdict: str, words: str | None
) -> None:
    found = judge(Evidence(**{**WHOLE.__dict__, **changes}))
    assert found.name == verdict
    assert (found.reason is None) == (words is None)
    assert words is None or words in (found.reason or "")


@given(
    st.builds(
        Evidence,
        problem=st.none() | st.just("x"),
        num_packets=st.integers(0, 20),
        num_frames_good=st.integers(0, 20),
        num_frames_bad=st.integers(0, 3),
        num_packets_stated=st.none() | st.integers(1, 20),
        findings=st.lists(
            st.builds(Finding, st.integers(-1, 20), st.just("y"), st.booleans()), max_size=3
        ).map(tuple),
    )
)
def test_only_the_verdict_ok_has_no_reason_and_only_undecodable_has_no_frames(
    evidence: Evidence,
) -> None:
    verdict = judge(evidence)
    assert verdict.name in VERDICTS
    assert (verdict.reason is None) == (verdict.name == "ok")
    if evidence.num_frames_good == 0:
        assert verdict.name == "undecodable"


def is_sound(structure: Structure) -> bool:
    return structure.missing is None and structure.inside is None


@pytest.mark.parametrize("suffix", [".avi", ".webm", ".mp4", ".mkv"])
@pytest.mark.parametrize(
    "percent",
    [10, 50, 90, 98, *(pytest.param(p, marks=pytest.mark.long) for p in range(15, 100, 5))],
)
def test_a_truncated_file_is_never_ok(tmp_path: Path, suffix: str, percent: int) -> None:
    whole = make_video(tmp_path / f"a{suffix}", frames=30)
    assert is_sound(check_container(whole))
    assert read(whole).verdict.name == "ok"
    cut = tmp_path / f"b{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * percent // 100])
    verdict = read(cut).verdict
    assert verdict.name in ("short", "undecodable")
    assert "cut short: the file has" in (verdict.reason or "")


def test_bytes_after_the_end_of_a_container_are_no_cut(tmp_path: Path) -> None:
    for suffix in (".avi", ".mp4", ".webm"):
        whole = make_video(tmp_path / f"a{suffix}")
        whole.write_bytes(whole.read_bytes() + bytes(300))
        assert is_sound(check_container(whole))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("text.mp4", b"this is a text file\n" * 50, "cannot be opened as a video"),
        ("empty.avi", b"", "the file is empty"),
        ("zeros.webm", bytes(5000), "cannot be opened as a video"),
    ],
)
def test_a_file_that_is_no_video_is_undecodable(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    video = read(tmp_path / name)
    assert video.verdict.name == "undecodable"
    assert words in (video.verdict.reason or "")
    assert video.frames == []


def test_a_file_with_sound_alone_is_undecodable(tmp_path: Path) -> None:
    assert read(make_audio(tmp_path / "a.mp4")).verdict.reason == "no video stream, only audio"


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_overwritten_bytes_in_the_middle_are_damage_and_bad_frames_are_left_out(
    tmp_path: Path, suffix: str
) -> None:
    path = make_video(tmp_path / f"a{suffix}", frames=30, size=(160, 128))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes([0xA5]) * 300
    path.write_bytes(data)
    video = read(path)
    assert video.verdict.name == "damaged"
    assert 0 < video.num_frames_decoded < 30
    assert len(video.frames) == video.num_frames_decoded
    assert video.num_decoder_errors > 0
    assert read(path) == video  # the same file gives the same verdict and frames


def test_a_broken_file_does_not_change_the_verdict_of_the_next(tmp_path: Path) -> None:
    good = make_video(tmp_path / "a.avi", frames=30)
    cut = tmp_path / "b.avi"
    cut.write_bytes(good.read_bytes()[:-3000])
    first = read(cut).verdict
    assert read(good).verdict.name == "ok"
    assert read(cut).verdict == first
