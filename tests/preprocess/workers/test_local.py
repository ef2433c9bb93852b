"""Local decode workers: time limits, decoders that hang or die, and workers that cannot start."""

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
from preprocess.workers.in_order import InOrder
from preprocess.workers.local import LocalWorkers, limit_seconds
from shards.errors import ConfigError
from shards.format.schema import Encoding
from tests.preprocess.tiny_videos import make_video
from tests.process_memory import children_of


def video_with_bytes(num_bytes: int, path: Path) -> SourceVideo:
    """Return a video with a stated size, whatever the size of its file."""
    return SourceVideo(path.stem, path, path.name, num_bytes, None)


@pytest.mark.parametrize(
    ("megabytes", "seconds"), [(0, 120.0), (1, 120.0), (100, 120.0), (150, 180.0), (505, 606.0)]
)
def test_the_time_limit_grows_with_files_of_more_than_100_mb(
    megabytes: int, seconds: float
) -> None:
    video = video_with_bytes(megabytes * 1_000_000, Path("a.avi"))
    assert limit_seconds(video, 120.0) == seconds


def test_a_large_file_has_more_time_and_its_reason_states_how_much(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.avi")  # opening it waits for a writer that never comes
    with LocalWorkers(1, DecodeOptions(Encoding(), timeout_seconds=0.4)) as workers:
        (answer,) = InOrder(workers).decode([video_with_bytes(200_000_000, tmp_path / "a.avi")])
    assert answer.row["reason"] == "the decoder did not end within 0.8 s, tried twice"


def test_a_worker_that_would_end_itself_before_the_time_limit_is_replaced(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi")
    used = []
    with LocalWorkers(1, DecodeOptions(Encoding(), timeout_seconds=60)) as workers:
        for num_bytes in (1, 300_000_000, 200_000_000, 1):
            (answer,) = InOrder(workers).decode([video_with_bytes(num_bytes, path)])
            assert answer.row["verdict"] == "ok"
            (worker,) = workers._workers
            used.append((worker.process.pid, worker.limit_seconds, worker.longest_seconds))
    assert [seconds[1:] for seconds in used] == [(60, 60), (180, 180), (120, 180), (60, 180)]
    assert len({pid for pid, *_ in used}) == 2


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


def test_a_worker_that_is_killed_while_it_starts_is_replaced_and_its_video_is_not_blamed(
    tmp_path: Path,
) -> None:
    """A cluster does this when it takes a node away."""
    path = make_video(tmp_path / "a.avi")
    killer = kill_starting_workers(3)
    with LocalWorkers(1, DecodeOptions(Encoding(), timeout_seconds=60)) as workers:
        (answer,) = InOrder(workers).decode([video_with_bytes(1, path)])
    killer.join()
    assert answer.row["verdict"] == "ok"


def test_four_workers_in_a_row_that_are_killed_while_they_start_end_the_build(
    tmp_path: Path,
) -> None:
    """The kernel does this when memory is short: no video is to blame."""
    path = make_video(tmp_path / "a.avi")
    killer = kill_starting_workers(4)
    with (
        pytest.raises(ConfigError, match=r"did not start \(SIGKILL\).*lower --workers"),
        LocalWorkers(1, DecodeOptions(Encoding(), timeout_seconds=60)) as workers,
    ):
        list(InOrder(workers).decode([video_with_bytes(1, path)]))
    killer.join()


def test_a_decoder_that_hangs_is_killed_and_only_its_video_is_lost(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.avi")  # opening it waits for a writer that never comes
    files = [make_video(tmp_path / "a.avi"), tmp_path / "b.avi", make_video(tmp_path / "c.avi")]
    # stated as 20 GB, the two others have 140 s, which is enough on a loaded machine
    videos = [video_with_bytes(0 if path.stem == "b" else 20_000_000_000, path) for path in files]
    with LocalWorkers(2, DecodeOptions(Encoding(), timeout_seconds=0.7)) as workers:
        answers = list(InOrder(workers).decode(videos))
    assert [answer.row["key"] for answer in answers] == ["a", "b", "c"]
    assert [answer.row["verdict"] for answer in answers] == ["ok", "undecodable", "ok"]
    assert answers[1].row["reason"] == "the decoder did not end within 0.7 s, tried twice"


def test_a_decoder_that_dies_loses_only_its_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.avi")
    files = [tmp_path / "a.avi", make_video(tmp_path / "b.avi")]
    ended = threading.Event()
    with LocalWorkers(1, DecodeOptions(Encoding(), timeout_seconds=60)) as workers:

        def kill_what_reads_the_fifo() -> None:
            while not ended.wait(0.05):
                for worker in list(workers._workers):
                    if worker.position == 0 and worker.is_ready:
                        worker.process.send_signal(signal.SIGSEGV)

        killer = threading.Thread(target=kill_what_reads_the_fifo)
        killer.start()
        answers = list(InOrder(workers).decode([video_with_bytes(0, path) for path in files]))
        ended.set()
        killer.join()
    assert [answer.row["verdict"] for answer in answers] == ["undecodable", "ok"]
    assert answers[0].row["reason"] == "the decoder process died (SIGSEGV), tried twice"


def test_workers_that_cannot_start_end_the_build_instead_of_blaming_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.workers.local._SERVE", "raise SystemExit(3)")
    with (
        LocalWorkers(2, DecodeOptions(Encoding(), timeout_seconds=60)) as workers,
        pytest.raises(ConfigError, match=r"a decode worker did not start \(exit code 3\)"),
    ):
        list(InOrder(workers).decode([video_with_bytes(0, make_video(tmp_path / "a.avi"))]))
