"""The answers of a model in a Parquet file: no question is asked twice.

A running command appends each answer to a journal beside the Parquet file and flushes it, so that a
killed process loses none. The next command reads both files, and merges them when it ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

import pyarrow as pa

from bmpt.offline.chat import Pace, Question, ask_all
from bmpt.offline.endpoint import Client, Endpoint, EndpointError, Reply
from shards.errors import BmptError, ConfigError, FormatError, StorageError
from shards.files import os_error_text, try_lock, write_file
from shards.format.parquet import read_parquet, to_parquet
from shards.progress import NullProgress, Progress

ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
    ]
)
# Key, prompt version, model.
AnswerKey = tuple[str, str, str]
HOW_TO_ASK_AGAIN = "malformed answers are stored, and only asked again with --retry-malformed"


class MalformedError(BmptError):
    """An answer does not have the requested form; it is counted, never guessed."""


@dataclass(frozen=True)
class Asking:
    """The settings of a command for its questions."""

    endpoint: Endpoint
    pace: Pace
    answers: Path
    """Parquet file of all answers."""
    retry_malformed: bool = False
    """Whether to ask again where the stored answer cannot be used."""
    max_tokens: int | None = None
    """Tokens per answer; None for the default of each kind of question."""


def prompt_version(name: str, prompt: str) -> str:
    """Return `<name>-<8 hex digits>`, which changes with the wording of the prompt."""
    return f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


class AnswerBook:
    """The answers in one Parquet file, locked by one process; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal_path = path.with_name(f".{path.name}.journal")
        self._answers: dict[AnswerKey, Reply] = {}

    def __enter__(self) -> AnswerBook:
        """Lock and read the files.

        Raises:
            ConfigError: if another process holds the lock.
            FormatError: for a file of another kind.
            StorageError: naming the file.
        """
        try:
            folders = (self.path.parent, *self.path.parent.parents)
            self._new_folders = [folder for folder in folders if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)

            self._journal = self._lock_journal()
            try:
                self._read()
            except BaseException:
                self._journal.close()
                raise
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be read and written: {os_error_text(error)}; "
                "give another --answers"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Merge the journal into the Parquet file, and delete new folders that are empty.

        Raises:
            StorageError: the journal is still there.
        """
        with self._journal:
            if self._journal.tell() > 0:
                write_file(self.path, self._to_parquet())
            self._journal_path.unlink(missing_ok=True)

        # Stop at the first folder that is not empty.
        with suppress(OSError):
            for folder in self._new_folders:
                folder.rmdir()

    def get(self, key: str, version: str, model: str) -> Reply | None:
        """Return the stored answer to a question, or None."""
        return self._answers.get((key, version, model))

    def add(self, key: str, version: str, model: str, reply: Reply) -> None:
        """Store an answer in place of an earlier one to the same question.

        Raises:
            StorageError: naming the journal.
        """
        self._answers[key, version, model] = reply
        line = json.dumps([key, version, model, dataclasses.astuple(reply)]).encode() + b"\n"
        try:
            self._journal.write(line)
            self._journal.flush()
        except OSError as error:
            raise StorageError(
                f"{self._journal_path}: cannot be written: {os_error_text(error)}; make room"
            ) from None

    def _lock_journal(self) -> IO[bytes]:
        """Open and lock the journal."""
        while True:
            journal = self._journal_path.open("a+b")
            try:
                is_locked = try_lock(journal.fileno())
            except OSError:
                journal.close()
                raise
            if not is_locked:
                journal.close()
                raise ConfigError(
                    f"{self.path}: another command is writing it; wait for it or give another "
                    "--answers"
                )

            # The last holder may have deleted the file between open and lock: then the lock is of
            # a file that no other process sees.
            with suppress(FileNotFoundError):
                if self._journal_path.stat().st_ino == os.fstat(journal.fileno()).st_ino:
                    return journal
            journal.close()

    def _read(self) -> None:
        """Read the Parquet file, then the journal, and drop an incomplete last line."""
        if self.path.exists():
            table = read_parquet(self.path.read_bytes(), where=str(self.path))
            if not table.schema.equals(ANSWERS_SCHEMA):
                raise FormatError(f"{self.path}: is not a file of answers; give another --answers")
            for row in table.to_pylist():
                answer_key = (row.pop("key"), row.pop("prompt_version"), row.pop("model"))
                self._answers[answer_key] = Reply(**row)

        self._journal.seek(0)
        num_bytes = 0
        for line in self._journal:
            # The process was killed while it wrote this line.
            if not line.endswith(b"\n"):
                break
            try:
                key, version, model, reply = json.loads(line)
                self._answers[key, version, model] = Reply(*reply)
            except (ValueError, TypeError):
                raise FormatError(
                    f"{self._journal_path}: is damaged at byte {num_bytes}; "
                    "delete that line, and the question is asked again"
                ) from None
            num_bytes += len(line)

        self._journal.seek(num_bytes)
        self._journal.truncate()

    def _to_parquet(self) -> bytes:
        rows = []
        for answer_key, reply in sorted(self._answers.items()):
            values = (*answer_key, *dataclasses.astuple(reply))
            rows.append(dict(zip(ANSWERS_SCHEMA.names, values, strict=True)))
        return to_parquet(pa.Table.from_pylist(rows, schema=ANSWERS_SCHEMA))


@dataclass
class Collected:
    """The answers to some questions."""

    replies: dict[str, Reply] = field(default_factory=dict)
    """By key."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why there will be no answer, by key."""
    num_asked: int = 0
    """Replies of this run; the others were stored before."""


def collect(
    endpoint: Endpoint,
    questions: Sequence[Question],
    book: AnswerBook,
    version: str,
    pace: Pace,
    *,
    is_wanted: Callable[[str, Reply], bool] = lambda key, reply: True,
    step: str = "questions",
    progress: Progress = NullProgress(),
) -> Collected:
    """Return the stored answers, and ask for the others.

    Args:
        endpoint: the model and where it is.
        questions: with different keys.
        book: where answers are stored.
        version: of the prompt.
        pace: the load on the endpoint.
        is_wanted: whether a stored answer can be used; otherwise the question is asked again.
        step: name of the step in the progress.
        progress: shows the questions that are answered.

    Raises:
        EndpointError: if the endpoint cannot be used, or some questions have no answer. The answers
            so far are in the book.
    """
    collected = Collected()
    missing = []
    for question in questions:
        stored = book.get(question.key, version, endpoint.model)
        if stored is not None and is_wanted(question.key, stored):
            collected.replies[question.key] = stored
        else:
            missing.append(question)
    if not missing:
        return collected

    client = Client(endpoint)
    client.check()
    unanswered: dict[str, str] = {}

    with closing(ask_all(client, missing, pace)) as outcomes:
        for outcome in outcomes:
            if outcome.reply is not None:
                book.add(outcome.key, version, endpoint.model, outcome.reply)
                collected.replies[outcome.key] = outcome.reply
                collected.num_asked += 1
            elif outcome.is_refused:
                collected.refused[outcome.key] = outcome.failure or ""
            else:
                unanswered[outcome.key] = outcome.failure or ""

            num_failed = len(collected.refused) + len(unanswered)
            note = f"{num_failed} failed" if num_failed else ""
            progress.update(step, len(collected.replies) + num_failed, len(questions), note)

    if unanswered:
        key, reason = next(iter(unanswered.items()))
        raise EndpointError(
            f"{endpoint.url}: {len(unanswered)} of {len(missing)} questions have no answer "
            f"(the first: {key}: {reason}); the answers are in {book.path}, the same command asks "
            "for the rest"
        )
    return collected
