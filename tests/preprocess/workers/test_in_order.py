"""The laws of `InOrder`, whatever order an executor finishes videos in and whichever it loses."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from preprocess.sources import SourceVideo
from preprocess.workers.child import Decoded
from preprocess.workers.in_order import Failure, InOrder, try_once

_LOOK_AHEAD = 8  # videos per worker


class RandomExecutor:
    """Ends one submitted video per `wait`, in random order; some videos lose their decoder.

    `num_losses` is the number of tries without an answer, by key.
    """

    def __init__(self, num_workers: int, capacity: int, num_losses: dict[str, int]) -> None:
        self.num_workers = num_workers
        self.capacity = capacity
        self.rng = random.Random(0)
        self.num_losses = dict(num_losses)
        self.running: dict[int, SourceVideo] = {}
        self.tries: list[str] = []
        self.lost: set[str] = set()
        self.largest_position = -1

    @property
    def num_busy(self) -> int:
        return len(self.running)

    def submit(self, position: int, video: SourceVideo) -> None:
        assert self.num_busy < self.capacity
        second_tries = self.lost & {other.key for other in self.running.values()}
        assert not second_tries, "a second try runs alone"
        assert video.key not in self.lost or not self.running, "a second try runs alone"
        self.running[position] = video
        self.tries.append(video.key)
        self.largest_position = max(self.largest_position, position)

    def wait(self) -> list[tuple[int, Decoded | Failure]]:
        if self.rng.random() < 0.3:
            return []  # an event that ends no video, such as a worker that is ready
        position = self.rng.choice(sorted(self.running))
        video = self.running.pop(position)
        if self.num_losses.get(video.key, 0) > 0:
            self.num_losses[video.key] -= 1
            self.lost.add(video.key)
            return [(position, Failure("the decoder process died (SIGSEGV)"))]
        return [(position, Decoded({"key": video.key, "reason": None}, [b"frame"]))]


def make_videos(number: int) -> list[SourceVideo]:
    return [SourceVideo(f"{index:03d}", Path("a.avi"), "a.avi", 0, None) for index in range(number)]


@given(
    num_losses=st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), max_size=60),
    num_workers=st.integers(1, 4),
    tasks_per_worker=st.integers(1, 2),
)
def test_in_order_answers_every_video_once_and_tries_a_lost_one_again_alone(
    num_losses: list[int], num_workers: int, tasks_per_worker: int
) -> None:
    videos = make_videos(len(num_losses))
    losses = {video.key: number for video, number in zip(videos, num_losses, strict=True)}
    executor = RandomExecutor(num_workers, num_workers * tasks_per_worker, losses)
    answers = list(InOrder(executor).decode(videos))
    assert [answer.row["key"] for answer in answers] == [video.key for video in videos]
    for video, number, answer in zip(videos, num_losses, answers, strict=True):
        assert executor.tries.count(video.key) == (1 if number == 0 else 2)
        reason = "the decoder process died (SIGSEGV), tried twice" if number == 2 else None
        assert answer.row["reason"] == reason
        assert bool(answer.frames) == (number < 2)
    assert executor.running == {}


@given(number=st.integers(1, 60), num_workers=st.integers(1, 3))
def test_in_order_runs_eight_videos_per_worker_ahead_of_the_first_unfinished_one(
    number: int, num_workers: int
) -> None:
    executor = RandomExecutor(num_workers, num_workers, {})
    decoded = InOrder(executor).decode(make_videos(number))
    for position, _ in enumerate(decoded):
        # when an answer is handed out, its video counts as finished
        assert executor.largest_position <= position + _LOOK_AHEAD * num_workers
        assert executor.num_busy or executor.largest_position == min(
            number - 1, position + _LOOK_AHEAD * num_workers
        )


def test_try_once_returns_the_answer_or_the_failure_of_one_try() -> None:
    (video,) = make_videos(1)
    answer = try_once(RandomExecutor(1, 1, {}), video)
    assert isinstance(answer, Decoded)
    assert answer.row["key"] == video.key
    lost = try_once(RandomExecutor(1, 1, {video.key: 1}), video)
    assert lost == Failure("the decoder process died (SIGSEGV)")
