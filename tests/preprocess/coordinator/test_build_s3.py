"""A pool in object storage: the bytes of a local pool, which is never complete on this disk."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import time
from pathlib import Path

import pytest
from obstore.exceptions import BaseError

from preprocess import build_shards
from preprocess.coordinator.pipeline import run_build
from preprocess.coordinator.repair import RepairOptions, repair_pool
from preprocess.coordinator.workspace import open_workspace
from preprocess.settings import BuildSettings, make_build_settings
from shards.errors import ConfigError, StorageError
from shards.maintenance.diff import diff_pools
from shards.maintenance.pool_report import report_pool
from shards.maintenance.verify import verify_pool
from tests.object_store import READER, WRITER, ObjectServer, run_object_server
from tests.preprocess.builds import (
    ENCODING,
    CallOnUpdate,
    arguments,
    build,
    build_interrupted,
    digests,
    run_killed,
)

BUCKET = "builds"


@pytest.fixture
def out(s3: ObjectServer, request: pytest.FixtureRequest) -> str:
    """Return an address that no other test writes to."""
    return f"s3://{s3.make_bucket(BUCKET)}/{request.node.name.partition('[')[0]}/a pool #1"


def remote_digests(s3: ObjectServer, out: str) -> dict[str, str]:
    objects = s3.objects(BUCKET, out.removeprefix(f"s3://{BUCKET}/"))
    return {name: hashlib.sha256(data).hexdigest() for name, data in objects.items()}


def files_below(folder: Path) -> list[Path]:
    """Return the files that a build left; an empty folder given as --scratch may stay."""
    return [path for path in folder.rglob("*") if path.is_file() or path.name.startswith("folder-")]


def test_objects_of_a_pool_in_s3_are_the_files_of_a_local_pool(
    videos: Path, reference: Path, s3: ObjectServer, out: str, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    report = build(videos, out, scratch=scratch)
    assert remote_digests(s3, out) == digests(reference)
    assert report.num_decoded == 10
    assert files_below(scratch) == []
    again = build(videos, out, scratch=scratch)
    assert (again.num_decoded, again.pool_id) == (0, report.pool_id)
    assert remote_digests(s3, out) == digests(reference)
    assert files_below(scratch) == []


@pytest.mark.parametrize(
    "at", [5, 10, *(pytest.param(at, marks=pytest.mark.long) for at in (1, 2, 3, 4, 6, 7, 8, 9))]
)
@pytest.mark.parametrize("keeps_scratch", [True, False])
def test_an_interrupted_s3_build_continues_even_on_another_machine(
    videos: Path,
    reference: Path,
    s3: ObjectServer,
    out: str,
    tmp_path: Path,
    at: int,
    keeps_scratch: bool,
) -> None:
    out = f"{out}/{at}-{keeps_scratch}"
    build_interrupted(videos, out, at=at, scratch=tmp_path / "first")
    left = remote_digests(s3, out)
    assert "pool.json" not in left
    report = build(videos, out, scratch=tmp_path / ("first" if keeps_scratch else "second"))
    assert remote_digests(s3, out) == digests(reference)
    num_received = sum(name.endswith(".parquet") for name in left)  # shards of 4, and the last of 2
    assert report.num_decoded == 10 - (at if keeps_scratch else min(10, 4 * num_received))


def test_an_s3_build_killed_during_an_upload_leaves_no_partial_object(
    videos: Path, reference: Path, s3: ObjectServer, out: str, tmp_path: Path
) -> None:
    args = [*arguments(videos, Path("x")), "--scratch", str(tmp_path / "scratch")]
    args[args.index("--out") + 1] = out
    for at in (5, 9):
        assert run_killed(args, signal=signal.SIGKILL, at=at).returncode == -signal.SIGKILL
        assert "pool.json" not in remote_digests(s3, out)
    assert build_shards.main(args) == 0
    assert remote_digests(s3, out) == digests(reference)
    assert files_below(tmp_path / "scratch") == []


def test_parts_of_two_machines_are_merged_on_a_third(
    videos: Path, reference: Path, s3: ObjectServer, out: str, tmp_path: Path
) -> None:
    for part in ("2/2", "1/2"):
        build(videos, out, part=part, scratch=tmp_path / part.replace("/", "of"))
    assert files_below(tmp_path) == []
    assert build(videos, out, merge=True, scratch=tmp_path / "merge").num_decoded == 0
    assert remote_digests(s3, out) == digests(reference)
    assert files_below(tmp_path) == []


def test_new_and_recovered_videos_are_written_as_in_a_local_pool(
    videos: Path, tree: Path, s3: ObjectServer, out: str, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    (tree / "run fast" / "d.mp4").rename(tmp_path / "d.mp4")
    for pool in (str(local), out):
        build(tree, pool, scratch=tmp_path / "scratch")
    shutil.copy(videos / "jump" / "-_a (1)#&;.avi", tree / "run fast" / "z.avi")
    (tmp_path / "d.mp4").rename(tree / "run fast" / "d.mp4")
    for pool in (str(local), out):
        build(tree, pool, scratch=tmp_path / "scratch")
    shutil.copy(videos / "jump" / "d.mp4", tree / "run fast" / "d.mp4")
    for pool in (str(local), out):
        report = build(tree, pool, retry_failed=True, scratch=tmp_path / "scratch")
        assert report.counts["undecodable"] == 0
    assert remote_digests(s3, out) == digests(local)


def test_verify_repair_diff_and_report_accept_the_address_of_a_pool(
    videos: Path,
    reference: Path,
    s3: ObjectServer,
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    build(videos, out)
    assert verify_pool(out).is_clean
    assert diff_pools(out, str(reference)).is_equal
    assert report_pool(out).counts == report_pool(reference).counts
    client = s3.client(BUCKET, out.removeprefix(f"s3://{BUCKET}/"))
    name = "shards/folder-000001.tar"
    data = bytearray(client.get(name).bytes())
    data[3000] ^= 1
    client.put(name, bytes(data))
    client.delete("manifests/few_shot/val.parquet")
    found = verify_pool(out)
    assert {finding.file for finding in found.findings} >= {name}
    repair_pool(RepairOptions(out, videos, workers=1))
    assert remote_digests(s3, out).keys() >= {name}
    assert verify_pool(out).damaged_files() == []
    assert files_below(tmp_path) == []


def test_scratch_never_holds_the_pool(videos: Path, out: str, tmp_path: Path) -> None:
    most = 0

    def look(done: int, total: int) -> None:
        nonlocal most
        most = max(most, len(list((tmp_path / "scratch").rglob("*.tar*"))))

    values = {
        "dataset": "folder",
        "videos": videos,
        "out": out,
        "workers": 1,
        "scratch": tmp_path / "scratch",
    }
    report = run_build(
        make_build_settings(values, ["videos_per_shard=1", "frames_per_clip=6"]),
        progress=CallOnUpdate(look),
    )
    assert report.num_shards == 10
    assert 1 <= most <= 5  # one open, one going up, two that wait, one that was just finished


def test_two_builds_of_one_address_are_refused_whatever_their_scratch(
    videos: Path, out: str, tmp_path: Path
) -> None:
    def settings(scratch: str, **more: str) -> BuildSettings:
        values = {
            "dataset": "folder",
            "videos": videos,
            "out": out,
            "scratch": tmp_path / scratch,
            **more,
        }
        return make_build_settings(values, ENCODING)

    one, other = settings("one"), settings("other")
    with open_workspace(one).lock(one):
        with pytest.raises(ConfigError, match="another build on this machine writes there"):
            build(videos, out, scratch=tmp_path / "other")
        with pytest.raises(ConfigError, match="another build"):
            build(videos, out, part="1/2", scratch=tmp_path / "other")
    part = settings("one", part="2/2")
    with open_workspace(part).lock(part):
        build(videos, out, part="1/2", scratch=tmp_path / "one")
        with pytest.raises(ConfigError, match="another build"):
            build(videos, out, part="2/2", scratch=tmp_path / "one")
        with pytest.raises(
            ConfigError, match=r"part 2/2 is being built there; all parts need the same N"
        ):
            build(videos, out, part="1/3", scratch=tmp_path / "one")
    with open_workspace(other).lock(other):
        pass


def test_old_files_in_scratch_do_not_change_a_closed_pool(
    tree: Path, s3: ObjectServer, out: str, tmp_path: Path
) -> None:
    build_interrupted(tree, out, at=6, scratch=tmp_path / "old")
    build(tree, out, scratch=tmp_path / "new")
    closed = remote_digests(s3, out)
    (tree / "run fast" / "e.avi").unlink()
    assert build(tree, out, scratch=tmp_path / "old").num_decoded == 0
    shards = {name: digest for name, digest in closed.items() if name.startswith("shards/")}
    assert {name: remote_digests(s3, out)[name] for name in shards} == shards
    assert files_below(tmp_path / "old") == []


def test_credentials_that_may_not_write_end_the_build_before_decoding(
    videos: Path, s3: ObjectServer, out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3.environment(READER).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"\.build\.json: cannot be written: access was refused"):
        build(videos, out, scratch=tmp_path / "scratch")
    assert list(tmp_path.rglob("*.part")) == []


def test_a_wrong_secret_is_neither_printed_nor_written(
    videos: Path,
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{WRITER[1]}-wrong")
    args = arguments(videos, Path("x"), "--scratch", str(tmp_path))
    args[args.index("--out") + 1] = out
    assert build_shards.main(args) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("error: s3://builds/")
    assert len(shown.err.splitlines()) == 1
    assert WRITER[1] not in shown.out + shown.err


def wait_for_objects(server: ObjectServer, name: str) -> None:
    """Wait for a restarted server, which finds its volumes some seconds after it answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(BaseError, OSError):
            server.client(BUCKET).get(name).bytes()
            return
    raise AssertionError(f"{name} did not come back")


@pytest.mark.long
def test_a_server_that_dies_is_named_and_the_next_run_continues(
    videos: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "objects").mkdir()
    with run_object_server(tmp_path / "objects") as server:
        server.make_bucket(BUCKET)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        build_interrupted(videos, f"s3://{BUCKET}/pool", at=5, scratch=tmp_path / "scratch")
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/pool/.*: cannot be"):
        build(videos, f"s3://{BUCKET}/pool", scratch=tmp_path / "scratch")
    with run_object_server(tmp_path / "objects") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        wait_for_objects(server, "pool/.build.json")
        build(videos, f"s3://{BUCKET}/pool", scratch=tmp_path / "scratch")
        assert remote_digests(server, f"s3://{BUCKET}/pool") == digests(reference)
