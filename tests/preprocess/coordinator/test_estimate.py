"""The estimate of `--dry-run`: exact if all videos are probed, near if only some are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import build_shards
from preprocess.console import print_report
from preprocess.coordinator import probe
from preprocess.coordinator.estimate import Estimate, predict_costs, simulate_build
from preprocess.coordinator.pipeline import dry_run
from preprocess.coordinator.probe import Cost, Probe, probe_order
from preprocess.coordinator.report import BuildReport
from preprocess.records.rows import sample_facts
from preprocess.settings import make_build_settings
from preprocess.sources import SourceVideo, open_source
from preprocess.workers.child import DecodeOptions, decode_video, open_reader
from shards.errors import ConfigError
from shards.format.schema import Encoding
from shards.format.writer import encode_sample
from tests.preprocess.builds import ENCODING, arguments, build, build_interrupted, digests
from tests.shared_data import shared_data

CLIPS = ("ucf101", "hmdb51", "kinetics400", "ssv2")


@pytest.fixture(autouse=True)
def probe_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe all videos, however busy the machine is: these trees are small."""
    monkeypatch.setattr(probe, "PROBE_SECONDS", 60.0)


def plan(videos: Path, out: Path, **options: object) -> BuildReport:
    """Make a dry run of what `build()` builds."""
    values = {"dataset": "folder", "videos": videos, "out": str(out), "workers": 1, **options}
    return dry_run(make_build_settings(values, ENCODING))


def estimate_of(report: BuildReport) -> Estimate:
    """Return the estimate, which every dry run has."""
    assert report.estimate is not None
    return report.estimate


def tar_bytes(pool: Path) -> int:
    """Return the size of all shards."""
    return sum(path.stat().st_size for path in (pool / "shards").glob("*.tar"))


def source_bytes(videos: Path) -> int:
    """Return the size of all videos."""
    return sum(path.stat().st_size for path in videos.rglob("*") if path.is_file())


def video(num_bytes: int, name: str = "a.mp4") -> SourceVideo:
    """Return a video of which only the size and the file type matter."""
    return SourceVideo(name, Path(name), name, num_bytes, None)


def probe_of(costs: dict[int, Cost]) -> Probe:
    """Return a probe with these results."""
    return Probe(costs, {}, start_seconds=0.0, import_seconds=0.0, seconds=2.0)


def children() -> list[str]:
    """Return the processes that this one has started and that have not ended."""
    return [
        pid
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_estimated_bytes_are_exact_if_all_videos_were_probed(
    videos: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    report = plan(videos, tmp_path / "pool", workers=workers)
    estimate = estimate_of(report)
    assert (report.num_to_decode, estimate.num_probed, estimate.num_workers) == (10, 10, workers)
    assert estimate.bytes_in == source_bytes(videos)
    assert estimate.bytes_out == tar_bytes(reference), "an undecodable video needs no bytes"
    assert estimate.seconds is not None
    assert estimate.seconds > 0


def test_a_dry_run_writes_nothing_and_leaves_no_process(
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


def test_the_estimate_of_a_finished_pool_is_zero_without_a_probe(videos: Path, pool: Path) -> None:
    report = plan(videos, pool)
    assert report.num_to_decode == 0
    assert report.estimate == Estimate(
        bytes_in=0, bytes_out=0, seconds=0.0, num_workers=1, engine="local"
    )


def test_the_estimate_of_a_begun_build_covers_the_rest_and_changes_no_file(
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
    estimate = estimate_of(report)
    assert (report.num_to_decode, estimate.num_probed) == (4, 4)
    assert estimate.bytes_out == tar_bytes(reference) - written
    assert estimate.bytes_in < source_bytes(videos)
    assert build(videos, out).num_decoded == report.num_to_decode


def test_the_estimate_of_a_part_covers_its_shards_and_that_of_a_merge_nothing(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pool"
    parts = [plan(videos, out, part=f"{part}/2") for part in (1, 2)]
    assert [report.num_to_decode for report in parts] == [6, 4]
    assert sum(estimate_of(report).bytes_in for report in parts) == source_bytes(videos)
    assert sum(estimate_of(report).bytes_out or 0 for report in parts) == tar_bytes(reference)
    build(videos, out, part="1/2")
    assert [plan(videos, out, part=f"{part}/2").num_to_decode for part in (1, 2)] == [0, 4]
    assert estimate_of(plan(videos, out, merge=True)).seconds == 0.0


def test_the_estimate_respects_a_limit(videos: Path, tmp_path: Path) -> None:
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
    text = capsys.readouterr().out
    assert re.search(r"with 64 workers \(from 2 videos decoded on this machine alone in ", text)


def test_a_dry_run_prints_the_estimate_in_one_line_and_in_json(
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
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    assert estimate["bytes_in"] == source_bytes(videos)
    assert estimate.keys() == set(Estimate.__dataclass_fields__)


@pytest.mark.parametrize(
    ("estimate", "line"),
    [
        (
            Estimate(84_100_000, 61_250_000, 12.04, 2, "local", 23, 2.03),
            "would read 84.1 MB, write 61.2 MB, take about 12.0 s with 2 workers "
            "(from 23 videos decoded in 2.0 s)",
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
    estimate: Estimate, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(BuildReport("dry run", "folder", "pool", None, {}, estimate=estimate))
    assert capsys.readouterr().out.splitlines()[2] == f"  {line}"


def test_workers_that_cannot_start_end_a_dry_run(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.workers.local._SERVE", "raise SystemExit(3)")
    with pytest.raises(ConfigError, match=r"a decode worker did not start \(exit code 3\)"):
        plan(videos, tmp_path / "pool", workers=2)


def test_costs_on_a_line_are_predicted_exactly_per_file_type() -> None:
    videos = [
        video(size, f"{size}{suffix}")
        for suffix in (".avi", ".mp4")
        for size in (100, 200, 400, 800)
    ]
    seconds_per_byte = {".avi": 1e-3, ".mp4": 4e-3}
    truth = [
        Cost(0.1 + one.num_bytes * seconds_per_byte[one.path.suffix], 0.01, 5000 + one.num_bytes)
        for one in videos
    ]
    costs = predict_costs(
        videos, probe_of({position: truth[position] for position in (0, 3, 4, 7)})
    )
    assert costs is not None
    for cost, expected in zip(costs, truth, strict=True):
        assert cost.decode_seconds == pytest.approx(expected.decode_seconds)
        assert cost.write_seconds == pytest.approx(expected.write_seconds)
        assert cost.tar_bytes == pytest.approx(expected.tar_bytes)


def test_predicted_costs_neither_fall_with_the_size_nor_begin_below_zero() -> None:
    """Whatever a few clips suggest."""
    videos = [video(size) for size in (100, 200, 50, 1000)]
    falling = predict_costs(videos, probe_of({0: Cost(2.0, 0.0, 0.0), 1: Cost(1.0, 0.0, 0.0)}))
    rising = predict_costs(videos, probe_of({0: Cost(1.0, 0.0, 0.0), 1: Cost(9.0, 0.0, 0.0)}))
    assert falling is not None
    assert rising is not None
    assert falling[2].decode_seconds == falling[3].decode_seconds
    assert rising[3].decode_seconds == pytest.approx(20 * rising[2].decode_seconds)


def test_a_file_type_that_was_not_probed_costs_as_much_as_the_others() -> None:
    videos = [video(100, "a.avi"), video(100, "b.webm")]
    costs = predict_costs(videos, probe_of({0: Cost(1.0, 0.5, 2000.0)}))
    assert costs is not None
    assert costs[1] == costs[0]


def test_a_simulated_build_of_one_worker_decodes_while_it_writes() -> None:
    costs = [Cost(1.0, 0.25, 0.0)] * 4
    assert simulate_build(costs, 1, import_seconds=0.0) == 4.25
    assert simulate_build(costs, 1, import_seconds=0.5) == 4.25, "imports fit into the second video"
    assert simulate_build(costs[:1], 1, import_seconds=0.5) == 1.75
    assert simulate_build([], 1, import_seconds=0.5) == 0.0


def test_a_simulated_build_is_bounded_by_its_coordinator_and_its_slowest_video() -> None:
    assert simulate_build([Cost(1.0, 1.0, 0.0)] * 10, 10, import_seconds=0.0) == 11.0
    slow_last = [Cost(1.0, 0.0, 0.0)] * 4 + [Cost(5.0, 0.0, 0.0)]
    assert simulate_build(slow_last, 2, import_seconds=0.0) == 7.0
    assert simulate_build(slow_last, 99, import_seconds=0.0) == 5.0


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=30), st.integers(1, 8))
def test_a_simulated_build_takes_no_longer_than_its_steps_in_sequence(
    seconds: list[tuple[float, float]], workers: int
) -> None:
    costs = [Cost(decode, write, 0.0) for decode, write in seconds]
    decode = sum(cost.decode_seconds for cost in costs)
    write = sum(cost.write_seconds for cost in costs)
    taken = simulate_build(costs, workers, import_seconds=0.0)
    assert max(decode / workers, write) - 1e-6 <= taken <= decode + write + 1e-6


def measure(names: tuple[str, ...], root: Path) -> list[tuple[SourceVideo, Cost]]:
    """Return all clips with the bytes that they need in a tar; no times."""
    read = open_reader(DecodeOptions(Encoding(), timeout_seconds=60))
    measured = []
    for name in names:
        for clip in open_source("folder", root / name, None).videos:
            answer = decode_video(clip, read)
            size = len(encode_sample(clip.key, answer.frames, sample_facts(answer.row)).data)
            measured.append((clip, Cost(0.0, 0.0, size)))
    return measured


def test_estimated_bytes_of_the_sample_clips_are_off_by_less_than_a_quarter() -> None:
    """Each clip counts thirty times, and the probe has as many as a worker decodes in 2 s."""
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
