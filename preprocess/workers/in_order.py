"""Decode videos on any executor and yield the answers in the order of the videos.

`InOrder` alone decides which video runs when: how far decoding may run ahead of the first
unfinished video, and that a video whose decoder hung or died is tried a second time while nothing
else runs. An `Executor` only runs the videos that it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from preprocess.records.rows import undecodable_row
from preprocess.sources import SourceVideo
from preprocess.workers.child import Decoded

# Answers wait in memory until their turn: about 1 MB per video.
_AHEAD_PER_WORKER = 8


@dataclass(frozen=True)
class Failure:
    """A try without an answer, because the decoder hung or its process died."""

    reason: str


class Executor(Protocol):
    """Runs videos on decoders; each submitted video ends exactly once, in any order."""

    @property
    def num_workers(self) -> int:
        """Return the number of videos that are decoded at the same time."""
        ...

    @property
    def capacity(self) -> int:
        """Return the number of videos that may be submitted at the same time."""
        ...

    @property
    def num_busy(self) -> int:
        """Return the number of submitted videos that have not ended."""
        ...

    def submit(self, position: int, video: SourceVideo) -> None:
        """Start a video; allowed while `num_busy` is below `capacity`.

        Args:
            position: number by which `wait` names the video.
            video: the video to decode.
        """
        ...

    def wait(self) -> list[tuple[int, Decoded | Failure]]:
        """Wait for an event and return the videos that have ended, which may be none.

        Raises:
            ConfigError: if decoders cannot work at all, so that no video is to blame.
        """
        ...


class InOrder:
    """Decodes lists of videos on one executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def decode(self, videos: Sequence[SourceVideo]) -> Generator[Decoded, None, None]:
        """Decode all videos; the answers come in the order of `videos`.

        A video without an answer after two tries is undecodable: its row has the reason.

        Raises:
            ConfigError: if the decoders cannot work at all.
        """
        run = _Run(self._executor, videos)

        for position in range(len(videos)):
            while position not in run.answers:
                run.submit(first_unfinished=position)
                run.collect()

            # Before the yield, so that the decoders work while the caller writes this answer.
            run.submit(first_unfinished=position + 1)
            yield run.answers.pop(position)


def try_once(executor: Executor, video: SourceVideo) -> Decoded | Failure:
    """Decode one video on an idle executor, without a second try.

    Raises:
        ConfigError: if the decoder cannot work at all.
    """
    executor.submit(0, video)

    # The first event may be that the worker is ready.
    while True:
        for _, result in executor.wait():
            return result


class _Run:
    """The state of one call of `InOrder.decode`: positions in `videos`, and their answers."""

    def __init__(self, executor: Executor, videos: Sequence[SourceVideo]) -> None:
        self.answers: dict[int, Decoded] = {}
        self._executor = executor
        self._videos = videos
        self._first_tries = deque(range(len(videos)))
        self._second_tries: deque[int] = deque()
        self._failed_once: set[int] = set()
        self._running_alone: int | None = None

    def submit(self, *, first_unfinished: int) -> None:
        """Submit as many videos as the executor and the look-ahead allow."""
        # A second try blocks everything else until it ends.
        if self._running_alone is not None:
            return
        if self._second_tries:
            self._submit_alone()
            return

        # Without the horizon, one slow video would let all later answers pile up in memory.
        horizon = first_unfinished + _AHEAD_PER_WORKER * self._executor.num_workers
        while self._first_tries and self._first_tries[0] < horizon:
            if self._executor.num_busy >= self._executor.capacity:
                return
            self._submit(self._first_tries.popleft())

    def collect(self) -> None:
        """Wait for the executor and sort what has ended into answers and second tries."""
        for position, result in self._executor.wait():
            if position == self._running_alone:
                self._running_alone = None

            if isinstance(result, Decoded):
                self.answers[position] = result
            elif position in self._failed_once:
                # Twice, the last time alone: the video is to blame.
                row = undecodable_row(self._videos[position], f"{result.reason}, tried twice")
                self.answers[position] = Decoded(row, [])
            else:
                self._failed_once.add(position)
                self._second_tries.append(position)

    def _submit_alone(self) -> None:
        """Start one second try once nothing else runs, so that no other video can disturb it."""
        if self._executor.num_busy == 0:
            self._running_alone = self._second_tries.popleft()
            self._submit(self._running_alone)

    def _submit(self, position: int) -> None:
        self._executor.submit(position, self._videos[position])
