"""What `--dry-run` estimates: exact where all videos were probed, near where some were; nothing is
written or left."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import build_shards
from preprocess.console import print_report
from preprocess.coordinator import estimate
from preprocess.coordinator.estimate import (
    Cost,
    Estimate,
    Probe,
    predict_costs,
    probe_order,
    probe_videos,
    simulate_build,
)
from preprocess.coordinator.pipeline import dry_run
from preprocess.coordinator.report import BuildReport
from preprocess.records.rows import sample_facts
from preprocess.settings import make_build_settings
from preprocess.sources import SourceVideo, open_source
from preprocess.workers.child import DecodeOptions, decode_video, open_reader
from shards.errors import ConfigError
from shards.format.schema import Encoding
from shards.format.writer import encode_sample
from tests.preprocess.builds import ENCODING, arguments, build, build_interrupted, digests
from tests.preprocess.tiny_videos import make_video
from tests.shared_data import shared_data

CLIPS = ("ucf101", "hmdb51", "kinetics400", "ssv2")


@pytest.fixture(autouse=True)
def probe_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: these trees are small."""
    monkeypatch.setattr(estimate, "PROBE_SECONDS", 60.0)


def plan(videos: Path, out: Path, **options: object) -> BuildReport:
    """A dry run of what `build()` builds."""
    values = {"dataset": "folder", "videos": videos, "out": str(out), "workers": 1, **options}
    return dry_run(make_build_settings(values, ENCODING))


def estimate_of(report: BuildReport) -> Estimate:
    """The estimate, which a dry run has."""
    assert report.estimate is not None
    return report.estimate


def tar_bytes(pool: Path) -> int:
    """The size of all shards."""
    return sum(path.stat().st_size for path in (pool / "shards").glob("*.tar"))


def source_bytes(videos: Path) -> int:
    """The size of all videos."""
    return sum(path.stat().st_size for path in videos.rglob("*") if path.is_file())


def video(num_bytes: int, name: str = "a.mp4") -> SourceVideo:
    """A video of which only the size and the file type matter."""
    return SourceVideo(name, Path(name), name, num_bytes, None)


def probe_of(costs: dict[int, Cost], cut_off: dict[int, float] | None = None) -> Probe:
    """A probe with these results."""
    return Probe(costs, cut_off or {}, start_seconds=0.0, import_seconds=0.0, seconds=2.0)


def children() -> list[str]:
    """Processes that this one has started and that have not ended."""
    return [
        pid
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_are_exact_where_all_videos_were_probed(
    videos: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    report = plan(videos, tmp_path / "pool", workers=workers)
    found = estimate_of(report)
    assert (report.num_to_decode, found.num_probed, found.num_workers) == (10, 10, workers)
    assert found.bytes_in == source_bytes(videos)
    assert found.bytes_out == tar_bytes(reference), "the video that cannot be read takes no bytes"
    assert found.seconds is not None
    assert found.seconds > 0


def test_nothing_is_written_anywhere_and_no_process_is_left(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    before = digests(videos), children()
    plan(videos, tmp_path / "pool", workers=2)
    assert (digests(videos), children()) == before
    assert list(tmp_path.rglob("*")) == [tmp_path / "work", tmp_path / "temporary"]


def test_a_finished_pool_takes_no_time_and_no_probe(videos: Path, pool: Path) -> None:
    report = plan(videos, pool)
    assert report.num_to_decode == 0
    assert report.estimate == Estimate(
        bytes_in=0, bytes_out=0, seconds=0.0, num_workers=1, engine="local"
    )


def test_of_a_begun_build_only_the_rest_is_estimated_and_its_files_stay_as_they_are(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pool"
    build_interrupted(videos, out, at=6)
    written = sum(path.stat().st_size for path in (out / "shards").glob("*.tar*"))
    for torn in (*(out / "shards").glob(".*.tar.part"), out / "shards" / ".folder-000001.jsonl"):
        with torn.open("ab") as file:
            file.write(b'{"a torn end')
    before = digests(out)
    report = plan(videos, out)
    assert digests(out) == before
    found = estimate_of(report)
    assert (report.num_to_decode, found.num_probed) == (4, 4)
    assert found.bytes_out == tar_bytes(reference) - written
    assert found.bytes_in < source_bytes(videos)
    assert build(videos, out).num_decoded == report.num_to_decode


def test_a_part_is_estimated_alone_and_a_merge_decodes_nothing(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    parts = [plan(videos, tmp_path / "pool", part=f"{part}/2") for part in (1, 2)]
    assert [report.num_to_decode for report in parts] == [6, 4]
    assert sum(estimate_of(report).bytes_in for report in parts) == source_bytes(videos)
    assert sum(estimate_of(report).bytes_out or 0 for report in parts) == tar_bytes(reference)
    build(videos, tmp_path / "pool", part="1/2")
    assert [plan(videos, tmp_path / "pool", part=f"{part}/2").num_to_decode for part in (1, 2)] == [
        0,
        4,
    ]
    assert estimate_of(plan(videos, tmp_path / "pool", merge=True)).seconds == 0.0


def test_a_limit_is_respected(videos: Path, tmp_path: Path) -> None:
    report = plan(videos, tmp_path / "pool", limit=3)
    assert (report.num_to_decode, estimate_of(report).num_probed) == (3, 3)
    build(videos, tmp_path / "pool", limit=3)
    assert plan(videos, tmp_path / "pool", limit=3).num_to_decode == 0
    assert plan(videos, tmp_path / "pool").num_to_decode == 7


def test_with_ray_the_probe_is_local_and_the_text_says_so(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = plan(videos, tmp_path / "pool", engine="ray", workers=64, limit=2)
    assert estimate_of(report).num_workers == 64
    print_report(report)
    assert re.search(
        r"with 64 workers \(from 2 videos decoded on this machine alone in ",
        capsys.readouterr().out,
    )


def test_the_command_prints_one_line_and_json_has_the_same(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(videos, tmp_path / "pool", "--dry-run")
    assert build_shards.main(args) == 0
    printed = capsys.readouterr().out
    line = (
        r"  would read [\d.]+ kB, write [\d.]+ kB, take about [\d.]+ s with 2 workers "
        r"\(from 10 videos decoded in [\d.]+ s\)"
    )
    assert re.search(f"^{line}$", printed, flags=re.MULTILINE), printed
    assert build_shards.main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert found["bytes_in"] == source_bytes(videos)
    assert found.keys() == set(Estimate.__dataclass_fields__)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            Estimate(84_100_000, 61_250_000, 12.04, 2, "local", 23, 2.03),
            "would read 84.1 MB, write 61.2 MB, take about 12.0 s with 2 workers (from 23 videos decoded in 2.0 s)",
        ),
        (
            Estimate(2_400_000_000_000, 999_960_000, 29_000.0, 64, "local", 5_120, 2.0),
            "would read 2.4 TB, write 1.0 GB, take about 8 h 3 min with 64 workers "
            "(from 5,120 videos decoded in 2.0 s)",
        ),
        (
            Estimate(0, 1024, 0.0, 1, "local"),
            "would read 0 bytes, write 1.0 kB, take about 0.0 s with 1 worker",
        ),
        (
            Estimate(84_100_000, None, None, 2, "local", 0, 60.4),
            "would read 84.1 MB; no video could be decoded within 60.4 s, so no more can be said",
        ),
    ],
)
def test_an_estimate_in_words(
    found: Estimate, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(BuildReport("dry run", "folder", "pool", None, {}, estimate=found))
    assert capsys.readouterr().out.splitlines()[2] == f"  {line}"


def test_a_video_that_does_not_end_in_time_is_predicted_like_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_LONGEST_SECONDS", 0.5)
    os.mkfifo(tmp_path / "hangs.avi")  # opening it waits for a writer that never comes
    good = make_video(tmp_path / "good.avi")
    videos = [
        replace(video(1000), key=path.stem, path=path) for path in (tmp_path / "hangs.avi", good)
    ]
    probe = probe_videos(
        videos, DecodeOptions(Encoding(), timeout_seconds=60), num_workers=2, seed=0
    )
    assert list(probe.costs) == [1]
    assert 1.0 <= probe.cut_off[0] < 60
    costs = predict_costs(videos, probe)
    assert costs is not None
    expected = replace(costs[1], decode_seconds=probe.cut_off[0])
    assert astuple(costs[0]) == pytest.approx(
        astuple(expected), rel=1e-12
    )  # it went through a line of one point
    assert predict_costs(videos[:1], probe_of({}, probe.cut_off)) is None


def test_a_video_that_the_build_would_give_up_costs_its_time_and_no_bytes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.avi")
    videos = [replace(video(1000), path=tmp_path / "hangs.avi")]
    probe = probe_videos(
        videos, DecodeOptions(Encoding(), timeout_seconds=0.4), num_workers=1, seed=0
    )
    assert probe.cut_off == {}
    assert probe.costs[0].tar_bytes == 0
    assert probe.costs[0].decode_seconds >= 0.8


def test_workers_that_cannot_start_are_an_error(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.workers.local._SERVE", "raise SystemExit(3)")
    with pytest.raises(ConfigError, match=r"a decode worker did not start \(exit code 3\)"):
        plan(videos, tmp_path / "pool", workers=2)


_SIZES = st.lists(
    st.tuples(st.integers(0, 10**7), st.sampled_from([".avi", ".mp4", ".webm"])),
    min_size=1,
    max_size=60,
)


@given(_SIZES, st.integers(0, 99))
def test_each_video_stands_once_in_the_order(sizes: list[tuple[int, str]], seed: int) -> None:
    videos = [video(size, f"a{suffix}") for size, suffix in sizes]
    assert sorted(probe_order(videos, seed=seed)) == list(range(len(videos)))
    assert probe_order(videos, seed=seed) == probe_order(videos, seed=seed)


@given(st.integers(0, 999), st.integers(10, 200))
def test_every_beginning_of_the_order_is_spread_over_types_and_sizes(
    seed: int, num_first: int
) -> None:
    videos = [video(1 + number, "a.avi") for number in range(600)] + [
        video(7, "b.mp4") for _ in range(200)
    ]
    first = probe_order(videos, seed=seed)[:num_first]
    thirds = Counter(position // 200 for position in first)
    assert all(abs(thirds[third] - num_first / 4) <= 3 for third in range(4)), thirds


def test_costs_on_a_line_are_predicted_exactly_for_each_file_type() -> None:
    videos = [
        video(size, f"{size}{suffix}")
        for suffix in (".avi", ".mp4")
        for size in (100, 200, 400, 800)
    ]
    truth = {
        position: Cost(
            0.1 + one.num_bytes * (1e-3 if one.path.suffix == ".avi" else 4e-3),
            0.01,
            5000 + one.num_bytes,
        )
        for position, one in enumerate(videos)
    }
    costs = predict_costs(
        videos, probe_of({position: truth[position] for position in (0, 3, 4, 7)})
    )
    assert costs is not None
    for position, cost in enumerate(costs):
        assert (cost.decode_seconds, cost.write_seconds, cost.tar_bytes) == pytest.approx(
            (truth[position].decode_seconds, 0.01, truth[position].tar_bytes)
        )


def test_few_clips_can_claim_neither_that_larger_files_cost_less_nor_that_the_smallest_cost_nothing() -> (
    None
):
    videos = [video(size) for size in (100, 200, 50, 1000)]
    falling = predict_costs(videos, probe_of({0: Cost(2.0, 0.0, 0.0), 1: Cost(1.0, 0.0, 0.0)}))
    rising = predict_costs(videos, probe_of({0: Cost(1.0, 0.0, 0.0), 1: Cost(9.0, 0.0, 0.0)}))
    assert falling is not None
    assert rising is not None
    assert falling[2].decode_seconds == falling[3].decode_seconds
    assert rising[3].decode_seconds == pytest.approx(20 * rising[2].decode_seconds)


def test_a_file_type_that_was_not_probed_is_like_all_others() -> None:
    videos = [video(100, "a.avi"), video(100, "b.webm")]
    costs = predict_costs(videos, probe_of({0: Cost(1.0, 0.5, 2000.0)}))
    assert costs is not None
    assert costs[1] == costs[0]


def test_a_build_of_one_worker_decodes_while_it_writes() -> None:
    costs = [Cost(1.0, 0.25, 0.0)] * 4
    assert simulate_build(costs, 1, import_seconds=0.0) == 4.25
    assert simulate_build(costs, 1, import_seconds=0.5) == 4.25, "imports fit into the second video"
    assert simulate_build(costs[:1], 1, import_seconds=0.5) == 1.75
    assert simulate_build([], 1, import_seconds=0.5) == 0.0


def test_a_build_is_no_faster_than_its_coordinator_and_ends_with_its_slowest_video() -> None:
    assert simulate_build([Cost(1.0, 1.0, 0.0)] * 10, 10, import_seconds=0.0) == 11.0
    slow_last = [Cost(1.0, 0.0, 0.0)] * 4 + [Cost(5.0, 0.0, 0.0)]
    assert simulate_build(slow_last, 2, import_seconds=0.0) == 7.0
    assert simulate_build(slow_last, 99, import_seconds=0.0) == 5.0


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=30), st.integers(1, 8))
def test_a_build_takes_no_longer_than_one_thing_after_the_other(
    seconds: list[tuple[float, float]], workers: int
) -> None:
    costs = [Cost(decode, write, 0.0) for decode, write in seconds]
    decode, write = (sum(times) for times in zip(*seconds, strict=True)) if seconds else (0.0, 0.0)
    taken = simulate_build(costs, workers, import_seconds=0.0)
    assert max(decode / workers, write) - 1e-6 <= taken <= decode + write + 1e-6


def measure(names: tuple[str, ...], root: Path) -> list[tuple[SourceVideo, Cost]]:
    """All clips with the bytes that they take in a tar; no times."""
    read = open_reader(DecodeOptions(Encoding(), timeout_seconds=60))
    measured = []
    for name in names:
        for clip in open_source("folder", root / name, None).videos:
            answer = decode_video(clip, read)
            size = len(encode_sample(clip.key, answer.frames, sample_facts(answer.row)).data)
            measured.append((clip, Cost(0.0, 0.0, size)))
    return measured


def test_bytes_out_of_the_sample_clips_are_off_by_less_than_a_quarter() -> None:
    """Each clip thirty times, of which the probe sees as many as a worker decodes in 2 s; ten
    seeds."""
    root = shared_data() / "clips"
    by_name = {name: measure((name,), root) for name in CLIPS}
    by_name["all"] = [clip for name in CLIPS for clip in by_name[name]]
    num_probed = {"ucf101": 70, "hmdb51": 70, "kinetics400": 12, "ssv2": 50, "all": 40}
    for name, measured in by_name.items():
        videos = [clip for clip, _ in measured] * 30
        truth = [cost for _, cost in measured] * 30
        real = sum(cost.tar_bytes for cost in truth)
        for seed in range(10):
            first = probe_order(videos, seed=seed)[: num_probed[name]]
            costs = predict_costs(
                videos, probe_of({position: truth[position] for position in first})
            )
            assert costs is not None
            error = sum(cost.tar_bytes for cost in costs) / real - 1
            assert abs(error) < 0.25, f"{name}, seed {seed}: {error:+.0%}"
