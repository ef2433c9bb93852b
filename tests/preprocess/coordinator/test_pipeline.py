"""Whole builds: the same bytes after kills, resumes, appends and retries."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from shards.errors import ConfigError, FormatError, StorageError
from shards.reader import open_pool, read_frames
from tests.preprocess.builds import (
    PATIENCE_SECONDS,
    arguments,
    build,
    build_interrupted,
    digests,
    run_killed,
    run_python,
)
from tests.preprocess.tiny_videos import index_of, make_video


def test_every_video_has_a_row_and_every_stored_frame_is_the_right_one(
    videos: Path, reference: Path
) -> None:
    opened = open_pool(reference)
    rows = {row["key"]: row for row in opened.samples().to_pylist()}
    assert len(rows) == 10
    verdicts = {key: row["verdict"] for key, row in rows.items() if row["verdict"] != "ok"}
    assert verdicts == {"jump/c é": "short", "run fast/d": "undecodable"}
    assert opened.card.counts["samples"] == 9
    assert [entry.samples for entry in opened.card.shards] == [4, 4, 1]
    for key in ("jump/-_a (1)#&;", "run fast/e"):
        row = rows[key]
        wanted = row["source_index"]
        assert [
            index_of(image) for image in read_frames(opened.store, row, range(len(wanted)))
        ] == wanted
    assert rows["run fast/e"]["source_index"] == [0, 1, 3, 4, 6, 7]
    assert rows["run fast/d"]["source_sha256"] is not None


def test_a_pool_has_no_path_of_this_machine_and_no_temporary_file(
    videos: Path, reference: Path
) -> None:
    assert not [
        path for path in reference.rglob("*") if path.name.startswith(".") or path.name == "parts"
    ]
    for path in reference.rglob("*"):
        if path.is_file():
            assert str(videos).encode() not in path.read_bytes()


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_same_bytes(
    videos: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    build(videos, tmp_path / "pool", workers=workers)
    assert digests(tmp_path / "pool") == digests(reference)


def test_parts_in_any_order_and_a_merge_give_the_same_bytes(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pool"
    build(videos, out, part="2/2")
    with pytest.raises(ConfigError, match=r"part 1/2 is not there; run `--part I/N`"):
        build(videos, out, merge=True)
    report = build(videos, out, part="1/2")
    assert (report.num_shards, report.num_decoded) == (2, 6)
    assert sorted(path.name for path in (out / "parts").iterdir()) == [
        "1-of-2.parquet",
        "2-of-2.parquet",
    ]
    build(videos, out, merge=True)
    assert digests(out) == digests(reference)
    assert build(videos, out, merge=True).num_decoded == 0
    assert digests(out) == digests(reference)


def test_parts_of_other_videos_are_not_merged(videos: Path, tmp_path: Path) -> None:
    build(videos, tmp_path / "pool", part="1/1", limit=5)
    with pytest.raises(
        ConfigError, match=r"part 1/1 has built other videos .* run `--part 1/1` again"
    ):
        build(videos, tmp_path / "pool", merge=True)


@pytest.mark.parametrize(
    ("kill", "code"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["KILL", "INT", "TERM"],
)
def test_a_killed_build_continues_and_gives_the_same_bytes(
    videos: Path, reference: Path, tmp_path: Path, kill: signal.Signals, code: int
) -> None:
    out = tmp_path / "pool"
    killed = run_killed(arguments(videos, out), signal=kill, at=6)
    assert killed.returncode == code
    assert "Traceback" not in killed.stderr
    assert ("run the same command again" in killed.stderr) == (kill is not signal.SIGKILL)
    assert not (out / "pool.json").exists()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _orphans() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _orphans() == []
    assert build(videos, out).num_decoded == 4
    assert digests(out) == digests(reference)


@pytest.mark.long
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_build_that_is_killed_repeatedly_gives_the_same_bytes(
    videos: Path, reference: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "pool"
    for at in range(step, 10, step):
        assert run_killed(arguments(videos, out), signal=signal.SIGKILL, at=at).returncode == -9
        assert not (out / "pool.json").exists()
    build(videos, out)
    assert digests(out) == digests(reference)


def test_a_run_on_a_finished_pool_changes_nothing_and_starts_no_worker(
    videos: Path, pool: Path
) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in pool.rglob("*")
        if path.suffix in (".tar", ".json")
    }
    code = (
        "import sys; from tests.preprocess.builds import build; from pathlib import Path;"
        "import preprocess.workers.local as w; w.subprocess.Popen = None;"
        "r = build(Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(r.num_decoded, 'webdataset' in sys.modules, 'torch' in sys.modules)"
    )
    done = run_python("-c", code, str(videos), str(pool))
    assert done.stdout.split() == ["0", "False", "False"], done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_larger_limit_appends_shards_and_gives_the_pool_id_of_a_fresh_build(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pool"
    build(videos, out, limit=6)
    before = digests(out)
    report = build(videos, out)
    assert report.num_decoded == 4
    assert report.pool_id == open_pool(reference).card.pool_id
    assert {
        name: digest
        for name, digest in digests(out).items()
        if name in before and name.endswith(".tar")
    } == {name: digest for name, digest in before.items() if name.endswith(".tar")}
    assert [entry.samples for entry in open_pool(out).card.shards] == [4, 2, 3]
    assert build(videos, out).num_decoded == 0


def test_a_new_video_in_an_unfinished_build_gives_the_bytes_of_a_fresh_one(
    tree: Path, tmp_path: Path
) -> None:
    build_interrupted(tree, tmp_path / "a", at=6)
    make_video(tree / "jump" / "bb.avi")
    build(tree, tmp_path / "a")
    build(tree, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_retry_rewrites_only_the_shards_of_recovered_videos(
    videos: Path, tree: Path, pool: Path, tmp_path: Path
) -> None:
    assert (
        build(tree, pool, retry_failed=True).num_decoded == 2
    )  # both fail as before: nothing is rewritten
    before = digests(pool)
    make_video(tree / "run fast" / "d.mp4", frames=8, seed=3)
    with pytest.raises(
        ConfigError, match=r"d\.mp4: is not the file that the pool was built from .* --retry-failed"
    ):
        build(tree, pool)
    report = build(tree, pool, retry_failed=True)
    assert (report.counts["undecodable"], report.counts["short"]) == (0, 1)
    build(tree, tmp_path / "fresh")
    assert digests(pool) == digests(tmp_path / "fresh")
    tars = [name for name in before if name.endswith(".tar")]
    assert [digests(pool)[name] == before[name] for name in tars] == [True, True, False]


def test_a_killed_retry_leaves_no_finished_pool_and_continues(
    tree: Path, pool: Path, tmp_path: Path
) -> None:
    make_video(tree / "run fast" / "d.mp4", frames=8, seed=3)
    build_interrupted(tree, pool, at=9, retry_failed=True)
    with pytest.raises(FormatError, match="not a finished pool"):
        open_pool(pool)
    build(tree, pool)
    build(tree, tmp_path / "fresh")
    assert digests(pool) == digests(tmp_path / "fresh")


def test_check_sources_detects_other_bytes_of_the_same_size(tree: Path, pool: Path) -> None:
    path = tree / "jump" / "d.mp4"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert build(tree, pool).num_decoded == 0
    with pytest.raises(ConfigError, match=r"d\.mp4: is not the file"):
        build(tree, pool, check_sources=True)


def test_a_video_that_is_gone_stays_in_the_pool_with_a_warning(
    tree: Path, pool: Path, reference: Path
) -> None:
    (tree / "jump" / "d.mp4").unlink()
    report = build(tree, pool)
    assert report.counts["samples"] == 9
    assert (
        "1 videos of the pool are gone from --videos and stay in it (the first: jump/d)"
        in report.warnings
    )
    shard = pool / "shards" / "folder-000000.tar"
    shard.unlink()
    with pytest.raises(
        ConfigError, match=r"folder-000000\.tar has to be built again, but 1 of its videos are gone"
    ):
        build(tree, pool)


def test_a_shard_that_is_missing_or_cut_is_built_again(
    videos: Path, pool: Path, reference: Path
) -> None:
    os.truncate(pool / "shards" / "folder-000001.tar", 1000)
    report = build(videos, pool)
    assert report.num_decoded == 4
    assert any(
        warning.startswith("shards/folder-000001.tar was missing or cut")
        for warning in report.warnings
    )
    assert digests(pool) == digests(reference)


def test_other_settings_than_those_of_the_pool_are_an_error_with_both_values(
    videos: Path, pool: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="jpeg_quality was 80 and is now 95; use the same settings"
    ):
        build(videos, pool, "jpeg_quality=95")
    build_interrupted(videos, tmp_path / "new", at=2)
    with pytest.raises(ConfigError, match=r"\.build\.json: frames_per_clip was 6 and is now 7"):
        build(videos, tmp_path / "new", "frames_per_clip=7")


def test_a_full_disk_is_a_storage_error_and_the_next_run_continues(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(StorageError, match="make room and run the same command again"):
            build(videos, tmp_path / "pool")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    build(videos, tmp_path / "pool")
    assert digests(tmp_path / "pool") == digests(reference)


def test_a_shard_without_any_good_video_is_an_empty_tar(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "x.avi").write_text("no video")
    report = build(tmp_path / "tree", tmp_path / "pool")
    assert (report.counts["undecodable"], report.counts["samples"]) == (1, 0)
    assert build(tmp_path / "tree", tmp_path / "pool").num_decoded == 0


def _orphans() -> list[str]:
    """Return the command lines of decode workers whose coordinator is gone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if "preprocess.workers.child" in line and parent == "1":
            found.append(line)
    return found


def test_a_video_with_another_class_than_in_the_pool_is_an_error_with_both(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    (source / "run").mkdir(parents=True)
    video = make_video(source / "run" / "a.avi")
    build(source, tmp_path / "pool", dataset="ucf101", splits=[])
    (source / "jump").mkdir()
    video.rename(source / "jump" / "a.avi")
    with pytest.raises(ConfigError, match=r"a was stored with class 'run' and now has 'jump'"):
        build(source, tmp_path / "pool", dataset="ucf101", splits=[])


def test_missing_videos_are_one_warning_and_audited_lines_are_counted(
    videos: Path, tmp_path: Path
) -> None:
    keys = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.*"))[:2]
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text(f"{keys[0]} 0\n{keys[0]} 0\ngone/a.mp4 0\n")
    (lists / "val.txt").write_text(f"{keys[1]} 0\n")
    (lists / "classes.txt").write_text(keys[0].split("/")[0] + "\n")
    report = build(videos, tmp_path / "pool", splits=[lists])
    assert [
        text
        for text in report.warnings
        if "1 videos that lists or annotation files name are not below" in text
    ]
    assert (report.num_audited, report.num_not_audited) == (2, 1)
    infos = [manifest.info for manifest in report.manifests]
    counts = {info.path: (info.expected, info.found) for info in infos}
    assert counts["fully_supervised/train"] == (2, 1), "a repeated line counts once"


def test_a_kill_during_the_clean_up_of_a_closed_pool_is_harmless(
    tree: Path, reference: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    build_interrupted(tree, pool, at=10)
    journals = {path.name: path.read_bytes() for path in (pool / "shards").glob(".*.jsonl")}
    build(tree, pool)
    for name, data in journals.items():  # as if the kill had come before they were removed
        (pool / "shards" / name).write_bytes(data)
    (tree / "run fast" / "e.avi").unlink()
    report = build(tree, pool)
    assert report.num_decoded == 0
    assert digests(pool / "shards") == digests(reference / "shards")


def test_a_merge_killed_during_its_clean_up_can_be_repeated(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    for part in ("1/2", "2/2"):
        build(videos, pool, part=part)
    left = (pool / "parts" / "2-of-2.parquet").read_bytes()
    build(videos, pool, merge=True)
    (pool / "parts").mkdir()
    (pool / "parts" / "2-of-2.parquet").write_bytes(left)
    assert build(videos, pool, merge=True).num_decoded == 0
    assert digests(pool) == digests(reference)


def test_check_sources_covers_finished_shards_of_an_unfinished_build(
    tree: Path, tmp_path: Path
) -> None:
    build_interrupted(tree, tmp_path / "pool", at=9)
    victim = tree / "jump" / "-_a (1)#&;.avi"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    build(tree, tmp_path / "pool", check_sources=True)
    build(tree, tmp_path / "fresh")
    assert digests(tmp_path / "pool") == digests(tmp_path / "fresh")
