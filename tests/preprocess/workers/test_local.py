"""How long a video may take: the timeout, and more of it for a large file."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from preprocess.sources import SourceVideo
from preprocess.workers.child import DecodeOptions
from preprocess.workers.local import WorkerPool, limit_seconds
from shards.errors import ConfigError
from shards.format.schema import Encoding
from tests.preprocess.tiny_videos import make_video
from tests.process_memory import children_of


def said_to_have(num_bytes: int, path: Path) -> SourceVideo:
    """A video of which the source says that it is as large."""
    return SourceVideo(path.stem, path, path.name, num_bytes, None)


@pytest.mark.parametrize(
    ("megabytes", "seconds"), [(0, 120.0), (1, 120.0), (100, 120.0), (150, 180.0), (505, 606.0)]
)
def test_the_limit_grows_with_files_of_more_than_100_mb(megabytes: int, seconds: float) -> None:
    assert limit_seconds(said_to_have(megabytes * 1_000_000, Path("a.avi")), 120.0) == seconds


def test_a_large_file_has_more_time_and_the_reason_says_how_much(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.avi")  # opening it waits for a writer that never comes
    with WorkerPool(1, DecodeOptions(Encoding(), timeout_seconds=0.4)) as pool:
        (answer,) = pool.decode([said_to_have(200_000_000, tmp_path / "a.avi")])
    assert answer.row["reason"] == "the decoder did not end within 0.8 s, tried twice"


def test_a_worker_that_would_end_itself_before_the_limit_is_not_used(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi")
    workers = []
    with WorkerPool(1, DecodeOptions(Encoding(), timeout_seconds=60)) as pool:
        for num_bytes in (1, 300_000_000, 200_000_000, 1):
            (answer,) = pool.decode([said_to_have(num_bytes, path)])
            assert answer.row["verdict"] == "ok"
            (worker,) = pool._workers
            workers.append((worker.process.pid, worker.limit_seconds, worker.longest_seconds))
    assert [seconds[1:] for seconds in workers] == [(60, 60), (180, 180), (120, 180), (60, 180)]
    assert len({pid for pid, *_ in workers}) == 2


def kill_starting_workers(number: int) -> threading.Thread:
    """Kill the first decode workers of this process before their imports are done."""

    def kill() -> None:
        killed: set[int] = set()
        deadline = time.monotonic() + 60
        while len(killed) < number and time.monotonic() < deadline:
            time.sleep(0.002)
            for pid in set(children_of(os.getpid())) - killed:
                with contextlib.suppress(OSError):
                    if b"preprocess.workers.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_a_worker_that_is_killed_while_it_starts_is_replaced_and_its_video_not_blamed(
    tmp_path: Path,
) -> None:
    """As a cluster does with a node that goes."""
    path = make_video(tmp_path / "a.avi")
    killer = kill_starting_workers(3)
    with WorkerPool(1, DecodeOptions(Encoding(), timeout_seconds=60)) as pool:
        (answer,) = pool.decode([said_to_have(1, path)])
    killer.join()
    assert answer.row["verdict"] == "ok"


def test_workers_that_are_killed_one_after_the_other_as_they_start_end_the_build(
    tmp_path: Path,
) -> None:
    """As the kernel does without memory: no video is to blame."""
    path = make_video(tmp_path / "a.avi")
    killer = kill_starting_workers(4)
    with (
        pytest.raises(ConfigError, match=r"did not start \(SIGKILL\).*lower --workers"),
        WorkerPool(1, DecodeOptions(Encoding(), timeout_seconds=60)) as pool,
    ):
        list(pool.decode([said_to_have(1, path)]))
    killer.join()
