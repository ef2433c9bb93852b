"""Test `--expect-sources`: a file that differs from the good one gets a verdict that states it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.records.expected import SourceCheck, differs, is_settled, mark, read_expected
from preprocess.sources.records import ExpectedSource
from shards.errors import ConfigError, FormatError
from shards.files import hash_file
from shards.reader import open_pool
from tests.preprocess.builds import arguments, build, build_interrupted, digests, run_script
from tests.preprocess.tiny_videos import make_video

DIGEST = "ab" * 32
ROW = {"key": "a", "verdict": "ok", "reason": None, "source_bytes": 7, "source_sha256": DIGEST}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(4):
        make_video(tmp_path / "videos" / "run" / f"{number}.avi", frames=4, seed=number)
    return tmp_path / "videos"


def verdicts(pool: Path) -> dict[str, tuple[str, str | None]]:
    rows = open_pool(str(pool)).samples().select(["key", "verdict", "reason"]).to_pylist()
    return {row["key"]: (row["verdict"], row["reason"]) for row in rows}


def write_csv(path: Path, videos: Path, *, wrong: str) -> Path:
    """The first three videos, one of them with another sha256."""
    lines = ["key,size,sha256"]
    for file in sorted(videos.rglob("*.avi"))[:3]:
        key = f"run/{file.stem}"
        lines.append(f"{key},{file.stat().st_size},{DIGEST if key == wrong else hash_file(file)}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (None, None),
        (ExpectedSource(None, None), None),
        (ExpectedSource(7, DIGEST), None),
        (ExpectedSource(8, DIGEST), "the file has 7 bytes, --expect-sources states 8"),
        (ExpectedSource(None, "cd" * 32), "sha256 is not the one"),
    ],
)
def test_a_source_file_differs_only_by_size_or_sha256(
    expected: ExpectedSource | None, words: str | None
) -> None:
    found = differs(ROW, expected)
    assert (found is None) == (words is None)
    assert words is None or words in (found or "")
    assert is_settled(ROW, expected) == (words is None)


def test_a_different_file_turns_ok_into_damaged_and_keeps_other_verdicts() -> None:
    other = ExpectedSource(8, None)
    assert mark(ROW, other)["verdict"] == "damaged"
    short = mark({**ROW, "verdict": "short", "reason": "cut"}, other)
    assert (short["verdict"], short["reason"]) == (
        "short",
        "cut; the file has 7 bytes, --expect-sources states 8",
    )
    assert is_settled(short, other)
    assert mark(ROW, ExpectedSource(7, DIGEST)) == ROW


def test_a_csv_of_expected_sources_may_have_a_header_and_empty_fields(tmp_path: Path) -> None:
    for head in ("key,size,sha256\n", "", "\ufeffkey,size,sha256\r\n"):
        (tmp_path / "x.csv").write_text(
            f'{head}a,7,{DIGEST.upper()}\n"b, c",,{DIGEST}\nd,9,\n', encoding="utf-8"
        )
        wanted = {
            "a": ExpectedSource(7, DIGEST),
            "b, c": ExpectedSource(None, DIGEST),
            "d": ExpectedSource(9, None),
        }
        assert read_expected(tmp_path / "x.csv") == wanted


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"key,size,sha256\na,1,xyz\n", "line 2: 'a,1,xyz' is not of the form"),
        (b"a,1\n", "line 1: 'a,1' is not of the form"),
        (b"a,1,\na,2,\n", "line 2: a was stated before"),
        (b"\xff\xfe\n", "neither Parquet nor CSV"),
        (b"PAR1 and nothing more", "is not Parquet"),
    ],
)
def test_an_unreadable_list_of_expected_sources_is_refused(
    tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises((ConfigError, FormatError), match=words):
        read_expected(tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_expected(tmp_path / "absent.csv")


def test_a_build_marks_different_videos_and_counts_unnamed_ones(
    videos: Path, tmp_path: Path
) -> None:
    expected = write_csv(tmp_path / "good.csv", videos, wrong="run/1")
    report = build(videos, tmp_path / "pool", expect_sources=expected)
    assert report.expected_sources == SourceCheck(num_compared=3, num_different=1, num_not_named=1)
    found = verdicts(tmp_path / "pool")
    assert [found[f"run/{number}"][0] for number in range(4)] == ["ok", "damaged", "ok", "ok"]
    assert "sha256 is not the one that --expect-sources states" in (found["run/1"][1] or "")
    assert [video.key for video in report.failed] == ["run/1"]
    again = build(videos, tmp_path / "pool", expect_sources=expected)
    assert (again.num_decoded, again.pool_id) == (0, report.pool_id)
    assert again.expected_sources == report.expected_sources


def test_samples_parquet_of_an_equal_pool_agrees_with_every_file(
    videos: Path, tmp_path: Path
) -> None:
    build(videos, tmp_path / "first")
    report = build(
        videos, tmp_path / "second", expect_sources=tmp_path / "first" / "samples.parquet"
    )
    assert report.expected_sources == SourceCheck(4, 0, 0)
    assert report.failed == []
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_a_finished_pool_is_marked_only_with_retry_failed(videos: Path, tmp_path: Path) -> None:
    expected = write_csv(tmp_path / "good.csv", videos, wrong="run/1")
    build(videos, tmp_path / "fresh", expect_sources=expected)
    build(videos, tmp_path / "pool")
    with pytest.raises(
        ConfigError, match=r"1.avi: is ok in the pool and not the file that .*good.csv states"
    ):
        build(videos, tmp_path / "pool", expect_sources=expected)
    build(videos, tmp_path / "pool", expect_sources=expected, retry_failed=True)
    assert digests(tmp_path / "pool") == digests(tmp_path / "fresh")
    build(videos, tmp_path / "pool", retry_failed=True)  # without the list they are ok again
    assert {verdict for verdict, _ in verdicts(tmp_path / "pool").values()} == {"ok"}


def test_a_build_resumed_with_expected_sources_equals_an_undisturbed_one(
    videos: Path, tmp_path: Path
) -> None:
    expected = write_csv(tmp_path / "good.csv", videos, wrong="run/1")
    build(videos, tmp_path / "fresh", expect_sources=expected)
    build_interrupted(videos, tmp_path / "pool", at=3)
    build(videos, tmp_path / "pool", expect_sources=expected)
    assert digests(tmp_path / "pool") == digests(tmp_path / "fresh")


def test_the_command_prints_the_number_of_compared_sources(videos: Path, tmp_path: Path) -> None:
    expected = write_csv(tmp_path / "good.csv", videos, wrong="run/2")
    done = run_script(*arguments(videos, tmp_path / "pool", "--expect-sources", str(expected)))
    assert done.returncode == 0, done.stderr
    assert "sources: 3 compared with --expect-sources, 1 differ, 1 not named there" in done.stdout
    asked = run_script(
        *arguments(
            videos, tmp_path / "pool", "--expect-sources", str(expected), "--json", "--strict"
        )
    )
    assert asked.returncode == 1
    check = json.loads(asked.stdout)["expected_sources"]
    assert check == {"num_compared": 3, "num_different": 1, "num_not_named": 1}
