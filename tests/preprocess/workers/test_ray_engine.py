"""`--engine ray` on a real cluster of two nodes on this machine: the same bytes after any loss.

A node is a raylet process. Its Ray processes are the raylet's children, and the decoders are the
children of those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocess.coordinator.pipeline import run_build
from preprocess.settings import make_build_settings
from preprocess.sources import SourceVideo
from preprocess.workers.child import DecodeOptions
from preprocess.workers.in_order import InOrder
from preprocess.workers.ray_engine import RayTasks
from shards.errors import ConfigError
from shards.format.schema import Encoding
from tests.preprocess.builds import (
    ENCODING,
    ROOT,
    arguments,
    build,
    digests,
    run_killed,
    run_python,
    run_script,
)
from tests.preprocess.tiny_videos import make_video

ray_cluster = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install -e '.[ray]'")
_NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
_PATIENCE_SECONDS = 180.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a cluster of two nodes with one CPU each."""
    with cluster_of_one_node() as cluster:
        cluster.add_node(**_NODE)
        cluster.wait_for_nodes()
        yield cluster


@contextlib.contextmanager
def cluster_of_one_node(**environment: str) -> Iterator[Any]:
    """Start a node whose processes have more environment variables than this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in environment.items():
            patch.setenv(name, value, prepend=os.pathsep if name == "PYTHONPATH" else None)
        cluster = ray_cluster.Cluster(
            initialize_head=True, head_node_args={**_NODE, "include_dashboard": False}
        )
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def third_node(cluster: Any) -> Iterator[Any]:
    """Add a node for a test that breaks it."""
    node = cluster.add_node(**_NODE)
    cluster.wait_for_nodes()
    try:
        yield node
    finally:
        if node in cluster.list_all_nodes():
            cluster.remove_node(node)


def build_on(cluster: Any, videos: Path, out: Path) -> None:
    values = {
        "dataset": "folder",
        "videos": videos,
        "out": str(out),
        "engine": "ray",
        "ray_address": cluster.address,
    }
    run_build(make_build_settings(values, ENCODING))


def tasks_of(cluster: Any, *, timeout_seconds: float = 60.0) -> RayTasks:
    return RayTasks(
        DecodeOptions(Encoding(), timeout_seconds), address=cluster.address, num_tasks=None
    )


def source_video(path: Path, *, num_bytes: int = 0) -> SourceVideo:
    return SourceVideo(path.stem, path, path.name, num_bytes, None)


def test_a_build_on_two_nodes_gives_the_bytes_of_a_local_build(
    cluster: Any, videos: Path, reference: Path, tmp_path: Path
) -> None:
    with Trap(cluster.list_all_nodes()) as trap:
        build_on(cluster, videos, tmp_path / "pool")
    assert len(trap.held) == 2, "each node had a video at once"
    assert digests(tmp_path / "pool") == digests(reference)


def test_ray_tasks_whose_process_or_node_is_lost_run_again(
    cluster: Any, videos: Path, reference: Path, tmp_path: Path
) -> None:
    ended = threading.Event()
    had_ended: list[bool] = []
    with third_node(cluster) as third:
        others = [node for node in cluster.list_all_nodes() if node is not third]

        def lose(held: list[int]) -> None:
            release(held[:1])
            had_ended.append(ended.wait(1.0))
            os.kill(parent(held[1]), signal.SIGKILL)
            cluster.remove_node(third, allow_graceful=False)
            for decoder in held[1:]:
                wait_until(
                    lambda decoder=decoder: parent(decoder) in (0, 1)
                )  # before, its death would be an answer
                with contextlib.suppress(ProcessLookupError):
                    os.kill(decoder, signal.SIGKILL)

        with Trap([*others, third], lose):
            build_on(cluster, videos, tmp_path / "pool")
            ended.set()
    assert had_ended == [False], "the build waited for what was lost"
    assert digests(tmp_path / "pool") == digests(reference)


def test_videos_that_hang_or_kill_their_decoder_or_are_gone_get_the_verdicts_of_the_local_engine(
    cluster: Any, tmp_path: Path
) -> None:
    wanted = {
        "a": None,
        "b": "the decoder did not end within 1 s, tried twice",
        "c": "cannot be read: No such file or directory",
        "d": "the decoder process died (SIGSEGV), tried twice",
        "e": None,
    }
    files = {key: tmp_path / f"{key}.avi" for key in wanted}
    os.mkfifo(files["b"])  # opening it waits for a writer that never comes
    os.mkfifo(files["d"])
    make_video(files["a"])
    make_video(files["e"])
    killer = threading.Thread(target=lambda: [kill_reader(files["d"]) for _ in range(2)])
    killer.start()
    # stated as 10 GB, all but the one that hangs have 100 s, which is enough on a loaded machine
    videos = [
        source_video(path, num_bytes=0 if key == "b" else 10_000_000_000)
        for key, path in files.items()
    ]
    with tasks_of(cluster, timeout_seconds=1) as tasks:
        answers = list(InOrder(tasks).decode(videos))
    killer.join()
    assert {answer.row["key"]: answer.row["reason"] for answer in answers} == wanted
    assert [answer.row["verdict"] for answer in answers] == ["ok", *["undecodable"] * 3, "ok"]


@pytest.mark.long
def test_a_video_that_no_node_has_the_memory_for_is_undecodable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.avi")  # stays until Ray's memory monitor comes
    with cluster_of_one_node(RAY_memory_usage_threshold="0.001") as full, tasks_of(full) as tasks:
        (answer,) = InOrder(tasks).decode([source_video(tmp_path / "a.avi")])
    assert (
        answer.row["reason"] == "the decoder process died (its node ran out of memory), tried twice"
    )


def test_a_terminated_ray_build_leaves_no_decoder_and_continues_with_the_local_engine(
    cluster: Any, videos: Path, reference: Path, tmp_path: Path
) -> None:
    more = ["--engine", "ray", "--ray-address", cluster.address]
    command = [
        sys.executable,
        str(ROOT / "preprocess/build_shards.py"),
        *arguments(videos, tmp_path / "pool", *more),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Trap(cluster.list_all_nodes(), lambda held: process.send_signal(signal.SIGTERM)):
        stdout, stderr = process.communicate(timeout=_PATIENCE_SECONDS)
    assert (process.returncode, stdout) == (143, "")
    assert stderr.splitlines()[1:] == ["terminated; run the same command again, it resumes"]
    wait_until(lambda: not any(decoders_of(node) for node in cluster.list_all_nodes()))
    build(videos, tmp_path / "pool")
    assert digests(tmp_path / "pool") == digests(reference)


def test_a_killed_ray_build_ends_its_own_cluster_and_continues_with_the_local_engine(
    videos: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = str(uuid.uuid4())
    monkeypatch.setenv("BMPT_TEST", mark)
    monkeypatch.setenv(
        "HOME", str(tmp_path)
    )  # where Ray writes a token for a cluster that it starts
    killed = run_killed(
        arguments(videos, tmp_path / "pool", "--engine", "ray"), signal=signal.SIGKILL, at=6
    )
    monkeypatch.delenv("BMPT_TEST")
    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: not [pid for pid in pids() if is_left(pid, mark.encode())])
    assert build(videos, tmp_path / "pool").num_decoded == 4
    assert digests(tmp_path / "pool") == digests(reference)


def test_a_node_that_does_not_see_the_videos_ends_the_build_instead_of_blaming_them(
    cluster: Any, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(videos.parent)
    here = Path("/proc/self/cwd") / videos.name  # another folder for each process
    with pytest.raises(
        ConfigError,
        match=r"b!!! \[2\]\.mp4|_a \(1\)#&;\.avi: node .* cannot see this file \(.*No such file",
    ):
        build_on(cluster, here, tmp_path / "pool")


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "simplejpeg-0.1.dist-info/METADATA",
            "Name: simplejpeg\nVersion: 0.1\n",
            r"simplejpeg is 0\.1 on node \S+ \(",
        ),
        (
            "av.py",
            "raise ImportError('av is broken here')",
            r"node \S+ cannot decode \(ImportError: av is broken here\)",
        ),
    ],
    ids=["another version", "not importable"],
)
def test_a_node_with_other_libraries_ends_the_build(
    videos: Path, tmp_path: Path, file: str, text: str, message: str
) -> None:
    (tmp_path / "libraries" / file).parent.mkdir(parents=True)
    (tmp_path / "libraries" / file).write_text(text)
    with (
        cluster_of_one_node(PYTHONPATH=str(tmp_path / "libraries")) as other,
        pytest.raises(ConfigError, match=message),
    ):
        build_on(other, videos, tmp_path / "pool")


def test_engine_ray_without_ray_is_one_line_that_names_the_cure(
    videos: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['ray'] = None;"
        "from preprocess.build_shards import main; sys.exit(main(sys.argv[1:]))"
    )
    done = run_python("-c", code, *arguments(videos, tmp_path / "pool", "--engine", "ray"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: --engine ray needs Ray, which is not installed: pip install -e '.[ray]'"
    )


@pytest.mark.parametrize("listens", [False, True])
def test_a_ray_address_where_no_cluster_answers_is_one_line(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setattr("preprocess.workers.ray_cluster._CLUSTER_SECONDS", 2.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        reason = "no answer within 2 s" if listens else "Connection refused"
        with pytest.raises(
            ConfigError,
            match=rf"--ray-address {address}: no Ray cluster can be joined .*\({reason}\)",
        ):
            build(videos, tmp_path / "pool", engine="ray", ray_address=address)


def release(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Trap:
    """Stops the first decoder of each node before its imports, until all nodes have one.

    So each node holds a video, however fast the others are. Then it calls `spring` with the
    processes in the order of the nodes; by default that lets them continue.
    """

    def __init__(self, nodes: list[Any], spring: Callable[[list[int]], None] = release) -> None:
        self.nodes = nodes
        self.spring = spring
        self.held: list[int] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.catch)

    def catch(self) -> None:
        caught: dict[int, int] = {}
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (
            len(caught) < len(self.nodes)
            and time.monotonic() < deadline
            and not self.ended.wait(0.01)
        ):
            for number, node in enumerate(self.nodes):
                for pid in decoders_of(node)[:1] if number not in caught else ():
                    os.kill(pid, signal.SIGSTOP)
                    caught[number] = pid
        if len(caught) == len(self.nodes):
            self.held = [caught[number] for number in sorted(caught)]
            self.spring(self.held)
        else:
            release(list(caught.values()))

    def __enter__(self) -> Trap:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()


@pytest.mark.long
def test_a_cluster_with_a_token_is_joined_with_the_token_only(
    videos: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    with (
        socket.socket() as free,
        tempfile.TemporaryDirectory(prefix="ray") as folder,
    ):  # tmp_path is too long for Ray
        free.bind(("127.0.0.1", 0))
        options = [
            f"--port={free.getsockname()[1]}",
            f"--temp-dir={folder}",
            "--num-cpus=1",
            "--include-dashboard=false",
        ]
        free.close()
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            *options,
        ]
        head = subprocess.Popen(
            command, env={**os.environ, **token}, stdout=subprocess.PIPE, text=True
        )
        assert head.stdout is not None
        try:
            said = next(line for line in head.stdout if "ray start --address=" in line)
            joined = ["--engine", "ray", "--ray-address", said.split("'")[1]]
            refused = run_script(*arguments(videos, tmp_path / "pool", *joined))
            for name, value in token.items():
                monkeypatch.setenv(name, value)
            done = run_script(*arguments(videos, tmp_path / "pool", *joined))
        finally:
            head.terminate()
            head.communicate()
    assert refused.returncode == 2
    assert (
        "it asks for its token, which Ray sends if RAY_AUTH_MODE is set to token" in refused.stderr
    )
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "pool") == digests(reference)


@pytest.mark.parametrize("address", ["ray://host:10001", "host", "local"])
def test_a_ray_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"ray_address: expected auto or host:port, .* got '{address}'"
    ):
        make_build_settings({"dataset": "folder", "engine": "ray", "ray_address": address})


def is_left(pid: int, mark: bytes) -> bool:
    """Return whether a process belongs to a marked build.

    Ray's two agents, which end about a minute later, do not count.
    """
    return mark in read(pid, "environ") and b"agent" not in read(pid, "cmdline").lower()


def kill_reader(fifo: Path) -> None:
    """Send SIGSEGV to the next process that opens a FIFO to read it."""
    writer: list[int] = []

    def has_reader() -> bool:
        with contextlib.suppress(OSError):
            writer.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writer)

    def readers() -> list[int]:
        return [pid for pid in pids() if pid != os.getpid() and str(fifo) in open_files(pid)]

    wait_until(has_reader)
    wait_until(lambda: bool(readers()))
    for reader in readers():
        os.kill(reader, signal.SIGSEGV)
    wait_until(lambda: not readers())
    os.close(writer[0])


def decoders_of(node: Any) -> list[int]:
    """Return the processes that decode on a node."""
    (raylet,) = node.all_processes["raylet"]
    found = [pid for pid in pids() if b"preprocess.workers.child" in read(pid, "cmdline")]
    return [pid for pid in found if parent(parent(pid)) == raylet.process.pid]


def parent(pid: int) -> int:
    """Return the parent of a process, 0 if the process is gone."""
    fields = read(pid, "stat").rsplit(b")", 1)[-1].split()
    return int(fields[1]) if fields else 0


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def open_files(pid: int) -> set[str]:
    try:
        return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()


def read(pid: int, name: str) -> bytes:
    """Return a file of /proc, empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
