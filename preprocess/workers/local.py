"""An executor of decode processes on this machine, which are killed when a video hangs.

A worker is a new Python process with a pipe and a session of its own, so that Ctrl-C reaches the
coordinator only. It is not forked, since threads of Arrow and obstore do not survive a fork, and
it is not a `multiprocessing.Process`, which would run the caller's main module in each worker.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType

from preprocess.sources import SourceVideo
from preprocess.workers.child import READY, Decoded, DecodeOptions
from preprocess.workers.in_order import Failure
from shards.errors import ConfigError

# 10 minutes of 1080p have 300 MB and take 22 s (h264) to 54 s (VP9) of a free core.
_BYTES_PER_TIMEOUT = 100_000_000

# Time limit for the imports of a worker, which take 0.4 s on an idle machine.
_START_SECONDS = 60.0

# Workers that may be killed in a row while they start, for example by a node that shuts down.
_MAX_KILLED_STARTS = 3

_SERVE = "import sys; from preprocess.workers.child import serve; serve(int(sys.argv[1]))"
_ROOT = Path(__file__).resolve().parents[2]


def limit_seconds(video: SourceVideo, timeout_seconds: float) -> float:
    """Return the time limit of a video: the timeout, above 100 MB the timeout per 100 MB."""
    return timeout_seconds * max(1.0, video.num_bytes / _BYTES_PER_TIMEOUT)


class LocalWorkers:
    """Decodes videos in processes on this machine; as a context manager it kills them at the end.

    A worker is started when it is first needed.
    """

    def __init__(self, num_workers: int, options: DecodeOptions) -> None:
        self._num_workers = num_workers
        self._options = options
        self._workers: list[_Worker] = []
        self._num_killed_starts = 0

    def __enter__(self) -> LocalWorkers:
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

    @property
    def num_workers(self) -> int:
        """Return the number of videos that are decoded at the same time."""
        return self._num_workers

    @property
    def capacity(self) -> int:
        """Return the number of videos that may be submitted at the same time."""
        return self._num_workers

    @property
    def num_busy(self) -> int:
        """Return the number of submitted videos that have not ended."""
        return len(self._busy_workers())

    def submit(self, position: int, video: SourceVideo) -> None:
        """Start a video on an idle worker."""
        self._idle_worker().start(position, video)

    def wait(self) -> list[tuple[int, Decoded | Failure]]:
        """Wait for an answer, a death or a deadline and return the videos that have ended.

        Raises:
            ConfigError: if a worker fails to start, or if too many are killed while they start.
        """
        # Until the first message, or until the first deadline.
        busy = self._busy_workers()
        longest_wait = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        ready = set(wait([worker.connection for worker in busy], timeout=longest_wait))

        ended: list[tuple[int, Decoded | Failure]] = []
        for worker in busy:
            position = worker.position
            assert position is not None

            if worker.connection in ready and not worker.is_ready:
                self._receive_ready(worker)
            elif worker.connection in ready:
                worker.position = None
                ended.append((position, self._receive_answer(worker)))
            elif time.monotonic() >= worker.deadline:
                # Also for a worker that hangs in its imports.
                self._remove(worker)
                reason = f"the decoder did not end within {worker.limit_seconds:g} s"
                ended.append((position, Failure(reason)))
        return ended

    def _busy_workers(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.position is not None]

    def _idle_worker(self) -> _Worker:
        for worker in self._workers:
            if worker.position is None:
                return worker

        worker = _Worker(self._options)
        self._workers.append(worker)
        return worker

    def _receive_ready(self, worker: _Worker) -> None:
        """Receive a worker's first message; replace a worker that died before it.

        Raises:
            ConfigError: if it failed by itself, or if too many in a row were killed.
        """
        try:
            worker.is_ready = worker.connection.recv() == READY
        except (EOFError, OSError):
            self._start_again(worker)
            return

        # The video that waits in the pipe has its full time from now on.
        self._num_killed_starts = 0
        worker.set_deadline()

    def _start_again(self, worker: _Worker) -> None:
        """Give the video of a worker that died while it started to a new one."""
        code = self._remove(worker, is_dying=True)
        self._num_killed_starts += 1

        if code != -signal.SIGKILL or self._num_killed_starts > _MAX_KILLED_STARTS:
            raise ConfigError(
                f"{sys.executable}: a decode worker did not start ({_exit_text(code)}); its error "
                "is printed above, `pip install -e .` installs the libraries that it needs; if it "
                "was killed for lack of memory, lower --workers"
            ) from None

        assert worker.position is not None
        assert worker.video is not None
        self.submit(worker.position, worker.video)

    def _receive_answer(self, worker: _Worker) -> Decoded | Failure:
        try:
            answer: Decoded = worker.connection.recv()
        except (EOFError, OSError):
            code = self._remove(worker, is_dying=True)
            return Failure(f"the decoder process died ({_exit_text(code)})")
        return answer

    def _remove(self, worker: _Worker, *, is_dying: bool = False) -> int:
        """Kill a worker and return its exit code; the next worker is started when it is needed."""
        self._workers.remove(worker)

        if is_dying:
            # Its end of the pipe is closed. Wait, so that the code is its own and not our SIGKILL.
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=5)
        return worker.kill()


class _Worker:
    """One process and its current video; `position` is None while it is idle."""

    def __init__(self, options: DecodeOptions) -> None:
        self.options = options
        self.position: int | None = None
        self.video: SourceVideo | None = None
        self.limit_seconds = self.deadline = 0.0
        self._launch(options.timeout_seconds)

    def _launch(self, longest_seconds: float) -> None:
        """Start the process; it ends itself some time after `longest_seconds` with one video."""
        self.longest_seconds = longest_seconds
        self.is_ready = False

        self.connection, child_connection = Pipe()
        with child_connection:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(child_connection.fileno())],
                cwd=_ROOT,  # so that `-c` finds the packages of a checkout that is not installed
                pass_fds=[child_connection.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

        self._send(replace(self.options, timeout_seconds=longest_seconds))

    def start(self, position: int, video: SourceVideo) -> None:
        """Start a video; a time limit above that of the process needs a new process."""
        # The process ends itself after its own limit, in case the coordinator is gone.
        self.limit_seconds = limit_seconds(video, self.options.timeout_seconds)
        if self.limit_seconds > self.longest_seconds:
            self.kill()
            self._launch(self.limit_seconds)

        # The worker reads it as soon as it is ready.
        self.position, self.video = position, video
        self.set_deadline()
        self._send(video)

    def _send(self, message: DecodeOptions | SourceVideo) -> None:
        # If the worker has died, the next read notices it.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def set_deadline(self) -> None:
        """Set the deadline of the video; a worker that is not ready has time for its imports."""
        start_seconds = 0.0 if self.is_ready else _START_SECONDS
        self.deadline = time.monotonic() + self.limit_seconds + start_seconds

    def kill(self) -> int:
        """Kill the process and return its exit code, which is negative for a signal."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
