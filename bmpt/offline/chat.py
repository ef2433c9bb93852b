"""Ask one endpoint many questions: several at the same time, at a limited rate, with retries."""

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
# The longest wait that a server may request; beyond it the run ends.
_LONGEST_WAIT_SECONDS = 600.0

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Pace:
    """The load on an endpoint."""

    concurrency: int = 8
    """Requests at the same time."""
    requests_per_minute: float | None = None
    """Limit of all requests, retries included; None for no limit."""
    retries: int = 5
    """Retries per question."""
    backoff_seconds: float = 1.0
    """Wait before the first retry; it doubles with every further one."""

    def __post_init__(self) -> None:
        """Raise ConfigError, naming the option, for a value that cannot be used."""
        if self.concurrency < 1 or self.retries < 0:
            raise ConfigError(
                f"--concurrency {self.concurrency} --retries {self.retries}: give at least 1 and 0"
            )
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ConfigError(
                f"--requests-per-minute {self.requests_per_minute:g}: give more than 0, "
                "or leave it out"
            )


@dataclass(frozen=True)
class Question:
    """One question to a model."""

    key: str
    """The sample or class that it is about."""
    messages: Callable[[], Messages]
    """Makes the messages of the chat right before they are sent, in any thread."""
    max_tokens: int


@dataclass(frozen=True)
class Outcome:
    """The result of a question: a reply, or why there is none."""

    key: str
    reply: Reply | None = None
    failure: str | None = None
    is_refused: bool = False
    """No retry would help: the endpoint refuses the question, or its frames cannot be read."""
    was_asked: bool = True
    """False if the frames cannot be read, which says nothing about the endpoint."""


def ask_all(
    client: Client, questions: Iterable[Question], pace: Pace
) -> Generator[Outcome, None, None]:
    """Ask all questions and yield each outcome as it arrives, in any order.

    Closing the generator ends the open requests and closes the client.

    Raises:
        EndpointError: if the endpoint cannot be used, or 16 questions in a row have no reply.
    """
    asker = _Asker(client, pace)
    remaining = iter(questions)
    waiting: set[Future[Outcome]] = set()
    failures_in_row = 0
    executor = ThreadPoolExecutor(pace.concurrency, thread_name_prefix="ask")

    try:
        while True:
            # Twice the concurrency, so that no thread waits for the next question.
            for question in islice(remaining, 2 * pace.concurrency - len(waiting)):
                waiting.add(executor.submit(asker.ask, question))
            if not waiting:
                return

            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            # Errors last, so that no reply that has arrived is lost.
            for future in sorted(done, key=lambda future: future.exception() is not None):
                outcome = future.result()
                if outcome.was_asked:
                    failures_in_row = 0 if outcome.reply is not None else failures_in_row + 1
                yield outcome

                if failures_in_row >= _MAX_FAILURES_IN_ROW:
                    raise EndpointError(
                        f"{client.endpoint.url}: {failures_in_row} questions in a row have no "
                        f"answer (the last: {outcome.failure}); the answers so far are stored, "
                        "run the same command to continue"
                    )
    finally:
        asker.is_over.set()
        client.close()
        executor.shutdown(cancel_futures=True)


class _Asker:
    """State that the threads of one run share."""

    def __init__(self, client: Client, pace: Pace) -> None:
        self.is_over = threading.Event()
        self._client = client
        self._pace = pace
        self._lock = threading.Lock()
        # time.monotonic() of the next request.
        self._next_turn = 0.0

    def ask(self, question: Question) -> Outcome:
        """Ask until there is a reply, no retry is left, or the run is over.

        Raises:
            EndpointError: if the endpoint cannot be used.
        """
        try:
            messages = question.messages()
        except (SampleError, StorageError) as error:
            # A StorageError is not about one sample: the pool is gone.
            is_one_sample = isinstance(error, SampleError)
            return Outcome(
                question.key, failure=str(error), is_refused=True, was_asked=not is_one_sample
            )

        num_tries = 1 + self._pace.retries
        failure = ""
        for attempt in range(num_tries):
            self._wait_for_turn()
            if self.is_over.is_set():
                break
            try:
                reply = self._client.ask(messages, max_tokens=question.max_tokens)
                return Outcome(question.key, reply)
            except RefusedError as error:
                return Outcome(question.key, failure=str(error), is_refused=True)
            except UnansweredError as error:
                failure = str(error)
                if attempt < self._pace.retries:
                    self._back_off(attempt, error.retry_after_seconds)
        return Outcome(question.key, failure=f"{failure}, tries: {num_tries}")

    def _wait_for_turn(self) -> None:
        """Wait until the next request may start; the requests of a minute are evenly spread."""
        rate = self._pace.requests_per_minute
        with self._lock:
            turn = max(time.monotonic(), self._next_turn)
            self._next_turn = turn + (60.0 / rate if rate else 0.0)
        self.is_over.wait(turn - time.monotonic())

    def _back_off(self, attempt: int, requested_seconds: float | None) -> None:
        """Wait before a retry; a wait that the server requests delays all questions."""
        if requested_seconds is None:
            longest = min(_LONGEST_BACKOFF_SECONDS, self._pace.backoff_seconds * 2.0**attempt)
            # Random, so that the questions do not all return at once.
            self.is_over.wait(longest * random.uniform(0.5, 1.0))
            return

        if requested_seconds > _LONGEST_WAIT_SECONDS:
            raise EndpointError(
                f"{self._client.endpoint.url}: requests a wait of {requested_seconds:.0f} s; "
                "run the same command after it, it continues"
            )
        with self._lock:
            self._next_turn = max(self._next_turn, time.monotonic() + requested_seconds)
