"""The coordinator's side of the decode workers: start them, hand out videos in order, kill what
hangs.

A worker is a new Python process with a pipe and a session of its own (Ctrl-C reaches the
coordinator alone); not forked, since threads of Arrow and obstore do not survive a fork, and not
`multiprocessing.Process`, which would run the caller's main module again in each worker."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType

from preprocess.records.rows import undecodable_row
from preprocess.sources import SourceVideo
from preprocess.workers.child import READY, Decoded, DecodeOptions
from shards.errors import ConfigError

_AHEAD_PER_WORKER = (
    8  # how far decoding may run ahead of the first unfinished video; about 1 MB a video
)
_LARGE_BYTES = (
    100_000_000  # 10 minutes of 1080p have 300 MB and take 22 s (h264) to 54 s (VP9) of a free core
)
_START_SECONDS = 60.0  # for a worker's imports; 0.4 s on an idle machine
_KILLED_STARTS = 3  # one after the other: a node that goes, or no memory
_SERVE = "import sys; from preprocess.workers.child import serve; serve(int(sys.argv[1]))"
_ROOT = Path(__file__).resolve().parents[2]


def limit_seconds(video: SourceVideo, timeout_seconds: float) -> float:
    """The time that a video has: the timeout, in a file of more than 100 MB the timeout for each
    100 MB."""
    return timeout_seconds * max(1.0, video.num_bytes / _LARGE_BYTES)


class _Worker:
    """One process and what it is doing; `position` is None while it is idle."""

    def __init__(self, options: DecodeOptions) -> None:
        self.options = options
        self.position: int | None = None
        self.video: SourceVideo | None = None
        self.limit_seconds = self.deadline = 0.0
        self._launch(options.timeout_seconds)

    def _launch(self, longest_seconds: float) -> None:
        """Start the process, which ends itself some time after `longest_seconds` with one video."""
        self.longest_seconds = longest_seconds
        self.is_ready = False
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno())],
                cwd=_ROOT,  # so that `-c` finds the packages in a checkout that was never installed
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._send(replace(self.options, timeout_seconds=longest_seconds))

    def start(self, position: int, video: SourceVideo) -> None:
        """Hand out a video; a larger file than any before takes a new process."""
        self.limit_seconds = limit_seconds(video, self.options.timeout_seconds)
        if self.limit_seconds > self.longest_seconds:
            self.kill()
            self._launch(self.limit_seconds)
        self.position, self.video = position, video
        self.set_deadline()
        self._send(video)

    def _send(self, what: DecodeOptions | SourceVideo) -> None:
        with contextlib.suppress(OSError):  # it has died: the read that follows finds out
            self.connection.send(what)

    def set_deadline(self) -> None:
        """The time for one video; a worker that is not ready yet gets the time for its imports on
        top."""
        self.deadline = (
            time.monotonic() + self.limit_seconds + (0.0 if self.is_ready else _START_SECONDS)
        )

    def kill(self) -> int:
        """End the process whatever it is doing; returns its exit code, negative for a signal."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class WorkerPool:
    """Decodes videos in killable processes; a context manager, leaving it kills them.

    A video whose worker hangs or dies is tried once more alone, with nothing else running, and is
    undecodable
    after that: the reason says which."""

    def __init__(self, num_workers: int, options: DecodeOptions) -> None:
        self._num_workers = num_workers
        self._options = options
        self._workers: list[_Worker] = []
        self._killed_starts = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def decode(self, videos: Sequence[SourceVideo]) -> Generator[Decoded, None, None]:
        """Decode all videos; the answers come in the order of `videos`."""
        waiting = deque(range(len(videos)))
        alone: deque[int] = deque()
        failures: dict[int, str] = {}
        answers: dict[int, Decoded] = {}
        ahead = _AHEAD_PER_WORKER * self._num_workers
        for position in range(len(videos)):
            while position not in answers:
                self._hand_out(videos, waiting, alone, position + ahead)
                for done, answer in self._collect():
                    if isinstance(answer, Decoded):
                        answers[done] = answer
                    elif done in failures:
                        answers[done] = Decoded(undecodable_row(videos[done], answer), [])
                    else:
                        failures[done] = answer
                        alone.append(done)
            self._hand_out(
                videos, waiting, alone, position + 1 + ahead
            )  # nobody waits while this answer is written
            yield answers.pop(position)

    def _hand_out(
        self, videos: Sequence[SourceVideo], waiting: deque[int], alone: deque[int], horizon: int
    ) -> None:
        """Give idle workers the next videos; a second try waits until nothing else runs."""
        num_busy = sum(worker.position is not None for worker in self._workers)
        while waiting or alone:
            source = alone or waiting
            if (alone and num_busy) or num_busy == self._num_workers or source[0] >= horizon:
                return
            position = source.popleft()
            self._idle_worker().start(position, videos[position])
            num_busy += 1
            if source is alone:
                return

    def _idle_worker(self) -> _Worker:
        idle = next((worker for worker in self._workers if worker.position is None), None)
        if idle is None:
            idle = _Worker(self._options)
            self._workers.append(idle)
        return idle

    def _collect(self) -> Iterator[tuple[int, Decoded | str]]:
        """Wait for answers, deaths and deadlines; yields (position, answer or what went wrong)."""
        busy = [worker for worker in self._workers if worker.position is not None]
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        ready = set(wait([worker.connection for worker in busy], timeout=patience))
        for worker in busy:
            position = worker.position
            assert position is not None
            if worker.connection in ready and not worker.is_ready:
                self._greet(worker)
            elif worker.connection in ready:
                worker.position = None
                yield position, self._receive(worker)
            elif time.monotonic() >= worker.deadline:
                self._replace(worker)
                yield (
                    position,
                    f"the decoder did not end within {worker.limit_seconds:g} s, tried twice",
                )

    def _greet(self, worker: _Worker) -> None:
        """Take a worker's first message; one that was killed while it started is replaced, its
        video not blamed.

        Raises: ConfigError if it could not start by itself, or if one after the other is killed."""
        try:
            worker.is_ready = worker.connection.recv() == READY
        except (EOFError, OSError):
            self._start_again(worker)
            return
        self._killed_starts = 0
        worker.set_deadline()

    def _start_again(self, worker: _Worker) -> None:
        code = self._replace(worker, died=True)
        self._killed_starts += 1
        if code != -signal.SIGKILL or self._killed_starts > _KILLED_STARTS:
            raise ConfigError(
                f"{sys.executable}: a decode worker did not start ({_exit_text(code)}); its error stands above, "
                "`pip install -e .` installs what it needs; if it was killed for want of memory, lower --workers"
            ) from None
        assert worker.position is not None
        assert worker.video is not None
        self._idle_worker().start(worker.position, worker.video)

    def _receive(self, worker: _Worker) -> Decoded | str:
        try:
            answer: Decoded = worker.connection.recv()
        except (EOFError, OSError):
            return f"the decoder process died ({_exit_text(self._replace(worker, died=True))}), tried twice"
        return answer

    def _replace(self, worker: _Worker, *, died: bool = False) -> int:
        """Drop a worker; the next one is started when it is needed. Returns its exit code."""
        self._workers.remove(worker)
        if (
            died
        ):  # its end of the pipe is closed; wait, so that the code is its own and not our SIGKILL
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=5)
        return worker.kill()


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
