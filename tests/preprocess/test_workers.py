"""How long a video may take: the timeout, and more of it for a large file."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from preprocess.decode_worker import DecodeOptions
from preprocess.sources import SourceVideo
from preprocess.workers import WorkerPool, limit_seconds
from shards.schema import Encoding
from tests.preprocess.tiny_videos import make_video
from tests.process_memory import children_of


def said_to_have(num_bytes: int, path: Path) -> SourceVideo:
    """A video of which the source says that it is as large."""
    return SourceVideo(path.stem, path, path.name, num_bytes, None)


@pytest.mark.parametrize(("megabytes", "seconds"), [(0, 120.0), (1, 120.0), (100, 120.0), (150, 180.0), (505, 606.0)])
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


def test_a_worker_that_is_killed_while_it_starts_costs_one_try(tmp_path: Path) -> None:
    """As the kernel does without memory, or a cluster with a node that goes."""
    path = make_video(tmp_path / "a.avi")
    killed: list[int] = []

    def kill_first() -> None:
        while not killed:
            for pid in children_of(os.getpid()):
                with contextlib.suppress(OSError):
                    if b"decode_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    killer = threading.Thread(target=kill_first)
    killer.start()
    with WorkerPool(1, DecodeOptions(Encoding(), timeout_seconds=60)) as pool:
        (answer,) = pool.decode([said_to_have(1, path)])
    killer.join()
    assert (answer.row["verdict"], len(killed)) == ("ok", 1)
