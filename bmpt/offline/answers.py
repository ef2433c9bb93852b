"""Every answer of a model, kept in Parquet: what was answered once is never asked again.

While a command asks, answers are appended to a journal beside the Parquet file and flushed one by
one, so that a kill loses none; the next command that opens the file reads both, and closing it
makes them one."""

from __future__ import annotations

import dataclasses
import fcntl
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
from shards.files import write_file
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
Place = tuple[str, str, str]  # key, prompt version, model
HOW_TO_ASK_AGAIN = "malformed ones are kept and not asked for again but with --retry-malformed"


class MalformedError(BmptError):
    """An answer that does not have the form that was asked for; it is counted, never guessed."""


@dataclass(frozen=True)
class Asking:
    """How a command asks its questions.

    answers: Parquet file of all answers; retry_malformed: ask again for kept ones that cannot be
        used
    max_tokens: of an answer, None for what each kind of question takes"""

    endpoint: Endpoint
    pace: Pace
    answers: Path
    retry_malformed: bool = False
    max_tokens: int | None = None


def prompt_version(name: str, prompt: str) -> str:
    """`<name>-<8 hex digits>`: another wording is another version."""
    return f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


class AnswerBook:
    """The answers in one Parquet file, held by one process; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal_path = path.with_name(f".{path.name}.journal")
        self._answers: dict[Place, Reply] = {}

    def __enter__(self) -> AnswerBook:
        """Raises: ConfigError if another process holds it, FormatError for a file of another kind,
        StorageError."""
        try:
            self._made = [
                folder
                for folder in (self.path.parent, *self.path.parent.parents)
                if not folder.exists()
            ]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._journal = self._hold()
            try:
                self._read()
            except BaseException:
                self._journal.close()
                raise
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be read and written: {error.strerror or error}; give another place"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Make journal and Parquet file one, and leave no folder behind in which nothing was
        written.

        Raises: StorageError; the journal stays then."""
        with self._journal:
            if self._journal.tell() > 0:
                write_file(self.path, self._to_parquet())
            self._journal_path.unlink(missing_ok=True)
        with suppress(OSError):  # the first that holds something ends it
            for folder in self._made:
                folder.rmdir()

    def get(self, key: str, version: str, model: str) -> Reply | None:
        """What was answered, if it was."""
        return self._answers.get((key, version, model))

    def add(self, key: str, version: str, model: str, reply: Reply) -> None:
        """Keep an answer; another one to the same question is replaced. Raises: StorageError."""
        self._answers[key, version, model] = reply
        line = json.dumps([key, version, model, dataclasses.astuple(reply)]).encode() + b"\n"
        try:
            self._journal.write(line)
            self._journal.flush()
        except OSError as error:
            raise StorageError(
                f"{self._journal_path}: cannot be written: {error.strerror or error}; make room"
            ) from None

    def _hold(self) -> IO[bytes]:
        """Open the journal and lock it; the kernel lets go of it however the process ends."""
        while True:
            journal = self._journal_path.open("a+b")
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                journal.close()
                raise ConfigError(
                    f"{self.path}: another command is writing it; wait for it or give another"
                ) from None
            try:
                if self._journal_path.stat().st_ino == os.fstat(journal.fileno()).st_ino:
                    return journal
            except FileNotFoundError:
                pass
            journal.close()  # it was removed between opening and locking

    def _read(self) -> None:
        if self.path.exists():
            table = read_parquet(self.path.read_bytes(), where=str(self.path))
            if not table.schema.equals(ANSWERS_SCHEMA):
                raise FormatError(
                    f"{self.path}: holds no answers of a model; give another --answers"
                )
            for row in table.to_pylist():
                place = (row.pop("key"), row.pop("prompt_version"), row.pop("model"))
                self._answers[place] = Reply(**row)
        self._journal.seek(0)
        whole = 0
        for line in self._journal:
            if not line.endswith(b"\n"):  # the kill came while it was written
                break
            try:
                key, version, model, reply = json.loads(line)
                self._answers[key, version, model] = Reply(*reply)
            except (ValueError, TypeError):
                raise FormatError(
                    f"{self._journal_path}: is damaged at byte {whole}; remove that line, it is asked again"
                ) from None
            whole += len(line)
        self._journal.seek(whole)
        self._journal.truncate()

    def _to_parquet(self) -> bytes:
        rows = [
            dict(zip(ANSWERS_SCHEMA.names, (*place, *dataclasses.astuple(reply)), strict=True))
            for place, reply in sorted(self._answers.items())
        ]
        return to_parquet(pa.Table.from_pylist(rows, schema=ANSWERS_SCHEMA))


@dataclass
class Collected:
    """What is known of some questions after asking.

    replies, refused: by key; refused holds why there will be no answer; num_asked: of this run, the
        rest was kept"""

    replies: dict[str, Reply] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    num_asked: int = 0


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
    """Take the answers that the book has, and ask for the others.

    is_wanted: whether a kept answer will do, or is asked for again; step: its name in the progress
    Raises: EndpointError if the endpoint cannot be used or some questions found no answer, of which
        it gives the
    number; what was answered is in the book then."""
    found = Collected()
    missing = []
    for question in questions:
        kept = book.get(question.key, version, endpoint.model)
        if kept is not None and is_wanted(question.key, kept):
            found.replies[question.key] = kept
        else:
            missing.append(question)
    if not missing:
        return found
    client = Client(endpoint)
    client.check()
    unanswered: dict[str, str] = {}
    with closing(ask_all(client, missing, pace)) as outcomes:
        for outcome in outcomes:
            if outcome.reply is not None:
                book.add(outcome.key, version, endpoint.model, outcome.reply)
                found.replies[outcome.key] = outcome.reply
                found.num_asked += 1
            else:
                (found.refused if outcome.is_refused else unanswered)[outcome.key] = (
                    outcome.failure or ""
                )
            done = len(found.replies) + len(found.refused) + len(unanswered)
            failed = len(found.refused) + len(unanswered)
            note = f"{failed} failed" if failed else ""
            progress.update(step, done, len(questions), note)
    if unanswered:
        key, reason = next(iter(unanswered.items()))
        raise EndpointError(
            f"{endpoint.url}: {len(unanswered)} of {len(missing)} questions found no answer (the first: {key}: "
            f"{reason}); what was answered is in {book.path}, the same command asks for the rest"
        )
    return found
