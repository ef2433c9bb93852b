"""The book of answers: what is kept, what is asked again, and what a kill leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bmpt.offline.answers import ANSWERS_SCHEMA, AnswerBook, collect, prompt_version
from bmpt.offline.chat import Pace, Question
from bmpt.offline.endpoint import Endpoint, EndpointError, Reply
from shards.errors import ConfigError, FormatError, StorageError
from tests.chat_server import MODEL, Asked, ChatServer, Say, Send, run_chat_server
from tests.updates import Updates

PACE = Pace(concurrency=2, retries=0)


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with run_chat_server() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "a.answers.parquet"


def about(*keys: str) -> list[Question]:
    return [
        Question(key, lambda key=key: [{"role": "user", "content": key}], max_tokens=9)
        for key in keys
    ]  # type: ignore[misc]


def names_asked(chat: ChatServer) -> list[str]:
    return sorted(asked.text for asked in chat.asked)


def test_answers_are_kept_in_parquet_with_version_and_model(path: Path, chat: ChatServer) -> None:
    chat.decide = lambda number, asked: Say(f"about {asked.text}")
    endpoint = Endpoint(chat.url, MODEL)
    with AnswerBook(path) as book:
        found = collect(endpoint, about("b", "a"), book, "v-1", PACE)
    assert found.num_asked == 2
    assert pq.read_table(path).to_pylist() == [
        {
            "key": key,
            "prompt_version": "v-1",
            "model": MODEL,
            "text": f"about {key}",
            "finish_reason": "stop",
            "prompt_tokens": 11,
            "completion_tokens": 7,
        }
        for key in ("a", "b")
    ]
    assert [each.name for each in path.parent.iterdir()] == [path.name], "no journal is left"


def test_only_what_is_missing_is_asked_and_another_version_or_model_is_another_question(
    path: Path, chat: ChatServer
) -> None:
    endpoint = Endpoint(chat.url, MODEL)
    with AnswerBook(path) as book:
        collect(endpoint, about("a", "b"), book, "v-1", PACE)
    with AnswerBook(path) as book:
        found = collect(endpoint, about("a", "b", "c"), book, "v-1", PACE)
    assert (len(found.replies), found.num_asked) == (3, 1)
    assert names_asked(chat) == ["a", "b", "c"]
    with AnswerBook(path) as book:
        assert collect(endpoint, about("a"), book, "v-2", PACE).num_asked == 1
        assert collect(Endpoint(chat.url, "other"), about("a"), book, "v-1", PACE).num_asked == 1
    assert pq.read_table(path).num_rows == 5


def test_where_nothing_is_missing_no_endpoint_is_needed(path: Path, chat: ChatServer) -> None:
    with AnswerBook(path) as book:
        collect(Endpoint(chat.url, MODEL), about("a"), book, "v", PACE)
    before = path.read_bytes()
    with AnswerBook(path) as book:
        found = collect(Endpoint("http://127.0.0.1:1/v1", MODEL), about("a"), book, "v", PACE)
    assert found.replies["a"].text == "hello"
    assert path.read_bytes() == before


def test_folders_made_for_answers_that_did_not_come_are_gone(path: Path) -> None:
    deep = path.parent / "deeper" / path.name
    with pytest.raises(EndpointError, match="no endpoint answers there"), AnswerBook(deep) as book:
        collect(Endpoint("http://127.0.0.1:1/v1", MODEL), about("a"), book, "v", PACE)
    assert not path.parent.exists()
    assert path.parent.parent.exists()


def test_an_answer_that_is_not_wanted_is_asked_for_again_and_replaced(
    path: Path, chat: ChatServer
) -> None:
    endpoint = Endpoint(chat.url, MODEL)
    with AnswerBook(path) as book:
        collect(endpoint, about("a", "b"), book, "v", PACE)
        chat.decide = lambda number, asked: Say("better")
        found = collect(
            endpoint, about("a", "b"), book, "v", PACE, is_wanted=lambda key, reply: key == "b"
        )
    assert {key: reply.text for key, reply in found.replies.items()} == {
        "a": "better",
        "b": "hello",
    }
    assert pq.read_table(path)["text"].to_pylist() == ["better", "hello"]


def test_answers_are_kept_although_others_fail_and_the_failed_are_asked_again(
    path: Path, chat: ChatServer
) -> None:
    def decide(number: int, asked: Asked) -> Say | Send:
        return {"a": Send(status=500, body=b"oops"), "b": Send(status=400, body=b"no")}.get(
            asked.text, Say("yes")
        )

    chat.decide = decide
    endpoint = Endpoint(chat.url, MODEL)
    with (
        pytest.raises(
            EndpointError,
            match=r"1 of 4 questions have no answer \(the first: a: HTTP 500: oops, tries: 1\)",
        ),
        AnswerBook(path) as book,
    ):
        collect(endpoint, about("a", "b", "c", "d"), book, "v", PACE)
    assert pq.read_table(path)["key"].to_pylist() == ["c", "d"]
    chat.decide = lambda number, asked: Say("yes") if asked.text == "a" else decide(number, asked)
    with AnswerBook(path) as book:
        found = collect(endpoint, about("a", "b", "c", "d"), book, "v", PACE)
    assert found.refused == {"b": "HTTP 400: no"}
    assert found.num_asked == 1
    assert names_asked(chat) == ["a", "a", "b", "b", "c", "d"]


def test_progress_counts_kept_answers_as_done(path: Path, chat: ChatServer) -> None:
    progress = Updates()
    endpoint = Endpoint(chat.url, MODEL)
    with AnswerBook(path) as book:
        collect(endpoint, about("a", "b"), book, "v", PACE)
        chat.decide = lambda number, asked: Send(status=400)
        keys = about("a", "b", "c")
        collect(endpoint, keys, book, "v", PACE, progress=progress)
    assert progress.all == [("questions", 3, 3, "1 failed")]


def test_a_journal_that_a_kill_left_torn_is_read_up_to_its_last_whole_line(path: Path) -> None:
    with AnswerBook(path) as book:
        book.add("a", "v", MODEL, Reply("kept", "stop", 1, 2))
    with AnswerBook(path) as book:
        book.add("b", "v", MODEL, Reply("journalled"))
        (journal,) = path.parent.glob("*.journal")
        left = journal.read_bytes()
    journal.write_bytes(left + left[:20])
    with AnswerBook(path) as book:
        assert book.get("a", "v", MODEL) == Reply("kept", "stop", 1, 2)
        assert book.get("b", "v", MODEL) == Reply("journalled")
        book.add("c", "v", MODEL, Reply("new\nline \u2028"))
    with AnswerBook(path) as book:
        assert book.get("c", "v", MODEL) == Reply("new\nline \u2028")
    assert pq.read_table(path)["key"].to_pylist() == ["a", "b", "c"]


def test_a_book_that_another_command_holds_is_refused(path: Path) -> None:
    with (
        AnswerBook(path),
        pytest.raises(ConfigError, match=r"a\.answers\.parquet: another command is writing it"),
        AnswerBook(path),
    ):
        pass


def test_a_file_that_is_no_book_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"key": ["a"]}), other)
    text = tmp_path / "text.parquet"
    text.write_text("hello")
    for file, expected in ((other, "is not a file of answers"), (text, "is not Parquet")):
        before = file.read_bytes()
        with pytest.raises(FormatError, match=expected), AnswerBook(file):
            pass
        assert file.read_bytes() == before


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            StorageError,
            match=r"a\.parquet: cannot be read and written: (Not a directory|File exists)",
        ),
        AnswerBook(tmp_path / "file" / "a.parquet"),
    ):
        pass


def test_another_wording_is_another_version() -> None:
    assert prompt_version("texts-2", "Write {count}") == prompt_version("texts-2", "Write {count}")
    assert prompt_version("texts-2", "Write {count}") != prompt_version("texts-2", "Write  {count}")
    assert prompt_version("texts-2", "Write {count}").startswith("texts-2-")


def test_the_columns_are_those_that_users_may_rely_on() -> None:
    assert ANSWERS_SCHEMA.names[:4] == ["key", "prompt_version", "model", "text"]
