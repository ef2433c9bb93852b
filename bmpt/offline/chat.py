"""Ask many questions of one endpoint: several at a time, no faster than allowed, again where
another try may help."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bmpt.offline.endpoint import Client, EndpointError, RefusedError, Reply, UnansweredError
from shards.errors import ConfigError, SampleError, StorageError

_MAX_FAILURES_IN_ROW = 16
_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 600.0  # that a server may ask for; beyond it the run ends and says so

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Pace:
    """How hard an endpoint is asked.

    concurrency: questions at a time; requests_per_minute: of all of them, further tries counted;
        None: no limit
    retries: further tries of a question; backoff_seconds: before the first of them, doubled for
        each next one"""

    concurrency: int = 8
    requests_per_minute: float | None = None
    retries: int = 5
    backoff_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Raises: ConfigError naming the option."""
        if self.concurrency < 1 or self.retries < 0:
            raise ConfigError(
                f"--concurrency {self.concurrency} --retries {self.retries}: give at least 1 and 0"
            )
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ConfigError(
                f"--requests-per-minute {self.requests_per_minute:g}: give more than 0, or leave it out"
            )


@dataclass(frozen=True)
class Question:
    """key: what it is about; messages: makes the chat's messages when its turn has come, in any
    thread"""

    key: str
    messages: Callable[[], Messages]
    max_tokens: int


@dataclass(frozen=True)
class Outcome:
    """What became of a question: a reply, or why there is none.

    is_refused: no later try would help: the endpoint refuses it, or its frames cannot be read
    was_asked: false where the frames cannot be read, which says nothing of the endpoint"""

    key: str
    reply: Reply | None = None
    failure: str | None = None
    is_refused: bool = False
    was_asked: bool = True


def ask_all(
    client: Client, questions: Iterable[Question], pace: Pace
) -> Generator[Outcome, None, None]:
    """Ask, and give each outcome as it comes, in any order.

    Closing the generator ends the open exchanges and closes the client.
    Raises: EndpointError if the endpoint turns out unusable, or 16 questions in a row bring no
        reply."""
    asker = _Asker(client, pace)
    remaining = iter(questions)
    waiting: set[Future[Outcome]] = set()
    failures_in_row = 0
    executor = ThreadPoolExecutor(pace.concurrency, thread_name_prefix="ask")
    try:
        while True:
            for question in islice(remaining, 2 * pace.concurrency - len(waiting)):
                waiting.add(executor.submit(asker.ask, question))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(
                done, key=lambda one: one.exception() is not None
            ):  # what has come is not lost
                outcome = future.result()
                if outcome.was_asked:
                    failures_in_row = 0 if outcome.reply is not None else failures_in_row + 1
                yield outcome
                if failures_in_row >= _MAX_FAILURES_IN_ROW:
                    raise EndpointError(
                        f"{client.endpoint.url}: {failures_in_row} questions in a row brought no answer (the last: "
                        f"{outcome.failure}); what was answered is kept, the same command goes on"
                    )
    finally:
        asker.is_over.set()
        client.close()
        executor.shutdown(cancel_futures=True)


class _Asker:
    """What the threads of one run share."""

    def __init__(self, client: Client, pace: Pace) -> None:
        self.is_over = threading.Event()
        self._client = client
        self._pace = pace
        self._lock = threading.Lock()
        self._next_turn = 0.0  # time.monotonic() of the next request

    def ask(self, question: Question) -> Outcome:
        """Ask until there is a reply, tries are used up, or the run is over. Raises:
        EndpointError."""
        try:
            messages = question.messages()
        except (SampleError, StorageError) as error:
            is_one_sample = isinstance(error, SampleError)  # else the pool is gone
            return Outcome(
                question.key, failure=str(error), is_refused=True, was_asked=not is_one_sample
            )
        failure = ""
        for attempt in range(1 + self._pace.retries):
            self._wait_for_turn()
            if self.is_over.is_set():
                break
            try:
                return Outcome(
                    question.key, self._client.ask(messages, max_tokens=question.max_tokens)
                )
            except RefusedError as error:
                return Outcome(question.key, failure=str(error), is_refused=True)
            except UnansweredError as error:
                failure = str(error)
                if attempt < self._pace.retries:
                    self._back_off(attempt, error.retry_after_seconds)
        return Outcome(question.key, failure=f"{failure}, tries: {1 + self._pace.retries}")

    def _wait_for_turn(self) -> None:
        """Wait until the next request may start; a minute's requests are spread evenly over it."""
        rate = self._pace.requests_per_minute
        with self._lock:
            turn = max(time.monotonic(), self._next_turn)
            self._next_turn = turn + (60.0 / rate if rate else 0.0)
        self.is_over.wait(turn - time.monotonic())

    def _back_off(self, attempt: int, asked_for_seconds: float | None) -> None:
        """Wait; a wait that the server asks for holds all questions back."""
        if asked_for_seconds is None:
            longest = min(_LONGEST_BACKOFF_SECONDS, self._pace.backoff_seconds * 2.0**attempt)
            self.is_over.wait(
                longest * random.uniform(0.5, 1.0)
            )  # apart, so that they do not all come back at once
            return
        if asked_for_seconds > _LONGEST_WAIT_SECONDS:
            raise EndpointError(
                f"{self._client.endpoint.url}: asks to wait {asked_for_seconds:.0f} s; run the same command then, it "
                "goes on"
            )
        with self._lock:
            self._next_turn = max(self._next_turn, time.monotonic() + asked_for_seconds)
