"""Asking an endpoint: what is sent, what is tried again, what ends a run, and how fast it goes."""

from __future__ import annotations

import email.utils
import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bmpt.offline.chat import Outcome, Pace, Question, ask_all
from bmpt.offline.endpoint import Client, Endpoint, EndpointError, Reply, parse_endpoint
from shards.errors import ConfigError, SampleError
from tests.chat_server import MODEL, Asked, ChatServer, Say, Send, completion, run_chat_server

QUICK = Pace(concurrency=1, retries=2, backoff_seconds=0.01)
KEY = "sk-secret-0123456789"


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with run_chat_server() as server:
        yield server


def questions(*keys: str) -> list[Question]:
    def about(key: str) -> Question:
        return Question(
            key, lambda: [{"role": "user", "content": f"what of {key}?"}], max_tokens=20
        )

    return [about(key) for key in keys]


def ask(
    chat: ChatServer,
    *keys: str,
    pace: Pace = QUICK,
    timeout_seconds: float = 60.0,
    api_key: str | None = None,
) -> list[Outcome]:
    """The outcomes in the order of the keys."""
    client = Client(Endpoint(chat.url, MODEL, api_key, timeout_seconds))
    found = {outcome.key: outcome for outcome in ask_all(client, questions(*keys), pace)}
    return [found[key] for key in keys]


def test_a_question_is_sent_at_temperature_0_and_its_answer_comes_back(chat: ChatServer) -> None:
    chat.decide = lambda number, asked: Say(asked.text.upper())
    (outcome,) = ask(chat, "golf", api_key=KEY)
    assert outcome == Outcome("golf", Reply("WHAT OF GOLF?", "stop", 11, 7))
    (asked,) = chat.asked
    assert asked.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "what of golf?"}],
        "temperature": 0,
        "max_tokens": 20,
        "stream": False,
    }
    assert asked.headers["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent(chat: ChatServer) -> None:
    ask(chat, "golf")
    assert "Authorization" not in chat.asked[0].headers


@pytest.mark.parametrize(
    "trouble",
    [
        Send(status=500, body=b"oops"),
        Send(status=503, body=b'{"error": {"message": "Loading model"}}'),
        Send(status=408),
        Send(status=429),
        Send(body=b"<html>nonsense</html>"),
        Send(body=b"[" * 100_000),
        Send(body=b'{"choices": []}'),
        Send(body=b'{"choices": [{"message": {"content": null}}]}'),
        Send(body=b'{"choices": "none"}'),
        Send(is_reset=True),
        Send(body=b'{"choi', headers=(("Content-Length", "9000"),)),
    ],
)
def test_a_try_that_brings_no_answer_is_followed_by_another(
    chat: ChatServer, trouble: Send
) -> None:
    chat.decide = lambda number, asked: trouble if number == 0 else Say("fine")
    (outcome,) = ask(chat, "golf")
    assert outcome.reply is not None
    assert outcome.reply.text == "fine"
    assert len(chat.asked) == 2


def test_when_all_tries_are_used_up_the_last_reason_is_given(chat: ChatServer) -> None:
    chat.decide = lambda number, asked: Send(
        status=500, body=b'{"error": {"message": "out of\\nmemory"}}'
    )
    (outcome,) = ask(chat, "golf")
    assert outcome == Outcome("golf", failure="HTTP 500: out of memory, tries: 3")
    assert len(chat.asked) == 3


@pytest.mark.parametrize(
    "silence", [Send(delay_seconds=60), Send(body=b"x" * 1000, drip_seconds=0.1)]
)
def test_a_request_ends_at_its_deadline_though_bytes_drip_in(
    chat: ChatServer, silence: Send
) -> None:
    chat.decide = lambda number, asked: silence
    started = time.monotonic()
    (outcome,) = ask(chat, "golf", pace=Pace(concurrency=1, retries=0), timeout_seconds=0.5)
    assert outcome.failure == "no answer within 0.5 s, tries: 1"
    # shorter than the silence and than 1000 bytes at 10 per second
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_question_is_not_asked_again(chat: ChatServer, status: int) -> None:
    chat.decide = lambda number, asked: (
        Send(status=status, body=b'{"detail": "too long"}') if number == 0 else Say("b")
    )
    first, second = ask(chat, "golf", "walk")
    assert first == Outcome("golf", failure=f"HTTP {status}: too long", is_refused=True)
    assert second.reply is not None
    assert len(chat.asked) == 2


@pytest.mark.parametrize(
    ("status", "says"), [(401, "refuses the key"), (403, "refuses the key"), (404, "has no model")]
)
def test_an_endpoint_that_cannot_be_used_ends_the_run(
    chat: ChatServer, status: int, says: str
) -> None:
    said = json.dumps({"error": {"message": f"no {KEY} here"}}).encode()
    chat.decide = lambda number, asked: Send(status=status, body=said)
    with pytest.raises(
        EndpointError, match=rf"{chat.url}: {says}.*HTTP {status}: no <key> here"
    ) as raised:
        ask(chat, *"abcdefgh", api_key=KEY)
    assert KEY not in str(raised.value)
    assert len(chat.asked) <= 2


def test_a_redirect_is_named(chat: ChatServer) -> None:
    chat.decide = lambda number, asked: Send(
        status=308, headers=(("Location", "http://elsewhere/v1"),)
    )
    with pytest.raises(
        EndpointError, match="answers with HTTP 308; give the address that it leads to"
    ):
        ask(chat, "golf")


def test_many_failures_in_a_row_end_the_run_and_answers_between_them_do_not(
    chat: ChatServer,
) -> None:
    chat.decide = lambda number, asked: Say("yes") if number % 10 == 0 else Send(status=400)
    keys = [f"k{index}" for index in range(40)]
    assert sum(outcome.reply is not None for outcome in ask(chat, *keys)) == 4
    chat.decide = lambda number, asked: Send(status=400, body=b"no pictures, please")
    with pytest.raises(
        EndpointError,
        match=r"16 questions in a row have no answer .*HTTP 400: no pictures, please",
    ):
        ask(chat, *keys)
    assert len(chat.asked) <= 40 + 18


def test_questions_overlap_up_to_the_concurrency_and_no_further(chat: ChatServer) -> None:
    meeting = threading.Barrier(4)  # passes only when four are being answered at the same time

    def decide(number: int, asked: Asked) -> Say:
        meeting.wait(timeout=60)
        return Say("met")

    chat.decide = decide
    outcomes = ask(chat, *"abcdefghijkl", pace=Pace(concurrency=4), timeout_seconds=60)
    assert [outcome.reply.text for outcome in outcomes if outcome.reply] == ["met"] * 12
    assert chat.most_at_once == 4


def test_requests_a_minute_are_spread_evenly_however_many_wait(chat: ChatServer) -> None:
    started = time.monotonic()
    ask(chat, *"abcdef", pace=Pace(concurrency=6, requests_per_minute=600))
    # counted from before the first request, which may itself come late on a loaded machine
    for number, asked in enumerate(chat.asked):
        assert asked.at_seconds - started >= 0.1 * number - 0.001


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_wait_that_the_server_asks_for_holds_back_all_questions(
    chat: ChatServer, form: str
) -> None:

    def decide(number: int, asked: Asked) -> Say | Send:
        if number > 0:
            return Say("b")
        # a date has whole seconds, and is at least 2 s ahead
        date = email.utils.formatdate(time.time() + 3.0, usegmt=True)
        return Send(status=429, headers=(("Retry-After", "1" if form == "seconds" else date),))

    chat.decide = decide
    assert all(outcome.reply for outcome in ask(chat, *"abc"))
    assert len(chat.asked) == 4
    assert chat.asked[1].at_seconds - chat.asked[0].at_seconds > 0.9


def test_a_server_that_asks_for_hours_ends_the_run(chat: ChatServer) -> None:
    chat.decide = lambda number, asked: Send(status=429, headers=(("Retry-After", "86400"),))
    with pytest.raises(
        EndpointError, match="requests a wait of 86400 s; run the same command after it"
    ):
        ask(chat, "golf")


def test_a_question_whose_frames_cannot_be_read_is_refused_and_not_sent(chat: ChatServer) -> None:
    def broken() -> list[dict[str, str]]:
        raise SampleError("shard: frame 3 has a wrong CRC; run `bmpt repair`")

    client = Client(Endpoint(chat.url, MODEL))
    (outcome,) = ask_all(client, [Question("clip", broken, max_tokens=9)], QUICK)
    why = "shard: frame 3 has a wrong CRC; run `bmpt repair`"
    assert outcome == Outcome("clip", failure=why, is_refused=True, was_asked=False)
    assert chat.asked == []


def test_frames_that_cannot_be_read_say_nothing_of_the_endpoint(chat: ChatServer) -> None:
    def broken() -> list[dict[str, str]]:
        raise SampleError("shard: frame 3 has a wrong CRC; run `bmpt repair`")

    many = [Question(f"clip {number}", broken, max_tokens=9) for number in range(40)]
    outcomes = list(ask_all(Client(Endpoint(chat.url, MODEL)), [*many, *questions("golf")], QUICK))
    assert len(outcomes) == 41
    assert [outcome.key for outcome in outcomes if outcome.reply is not None] == ["golf"]


def test_leaving_early_hangs_up_instead_of_waiting_for_answers(chat: ChatServer) -> None:
    chat.decide = lambda number, asked: Say("quick") if number == 0 else Send(delay_seconds=300)
    client = Client(Endpoint(chat.url, MODEL, timeout_seconds=300))
    outcomes = ask_all(client, questions(*"abcdefgh"), Pace(concurrency=4))
    assert next(outcomes).reply is not None
    started = time.monotonic()
    outcomes.close()
    assert time.monotonic() - started < 60


def test_half_a_surrogate_pair_in_an_answer_becomes_text_that_a_table_can_hold(
    chat: ChatServer,
) -> None:
    chat.decide = lambda number, asked: Send(completion(Say("a \ud83d b")))
    (outcome,) = ask(chat, "golf")
    assert outcome.reply is not None
    assert outcome.reply.text == "a ? b"


def test_an_endpoint_that_is_down_is_one_line_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(
        EndpointError,
        match=rf"{url}: no endpoint answers there \(Connection refused\); start the server",
    ):
        Client(Endpoint(url, MODEL)).check()


def test_an_endpoint_that_is_silent_is_not_waited_for(chat: ChatServer) -> None:
    chat.models = Send(delay_seconds=300)
    with pytest.raises(
        EndpointError, match=r"no endpoint answers there \(no answer within 0.5 s\)"
    ):
        Client(Endpoint(chat.url, MODEL, timeout_seconds=0.5)).check()


@pytest.mark.parametrize("api_key", [None, KEY])
def test_a_key_that_is_wanted_or_refused_is_known_by_the_first_check(
    chat: ChatServer, api_key: str | None
) -> None:
    chat.models = Send(status=401, body=b'{"error": {"message": "Unauthorized"}}')
    says = "refuses the key" if api_key else "needs a key"
    with pytest.raises(
        EndpointError, match=rf"{says} \(HTTP 401: Unauthorized\); export it, see --api-key-env"
    ):
        Client(Endpoint(chat.url, MODEL, api_key)).check()


@pytest.mark.parametrize(
    "answer", [Send(status=404), Send(status=503, body=b"Loading model"), Send(b"whatever")]
)
def test_a_server_without_a_list_of_models_or_still_loading_passes_the_check(
    chat: ChatServer, answer: Send
) -> None:
    chat.models = answer
    Client(Endpoint(chat.url, MODEL)).check()
    assert chat.num_checks == 1


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://localhost:11434", "http://localhost:11434/v1"),
        ("http://localhost:11434/", "http://localhost:11434/v1"),
        ("https://host/openai/v1/", "https://host/openai/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_is_its_base(given: str, used: str) -> None:
    assert parse_endpoint(given, MODEL, environment={}).url == used


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8000", "is not an http:// or https:// address"),
        ("ftp://host/v1", "is not an http:// or https:// address"),
        ("http://", "is not an http:// or https:// address"),
        ("http://host:port/v1", "is not an http:// or https:// address"),
        ("http://me:secret@host/v1", "has a user, a query or a fragment"),
        ("http://host/v1?key=secret", "has a user, a query or a fragment"),
    ],
)
def test_another_address_is_refused_without_repeating_its_secrets(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"--endpoint .*{expected}") as raised:
        parse_endpoint(url, MODEL, environment={})
    assert "secret" not in str(raised.value)


def test_the_key_comes_from_the_named_variable_else_from_the_usual_one() -> None:
    environment = {"OPENAI_API_KEY": "usual", "OTHER": " other\n"}
    assert parse_endpoint("http://h", MODEL, environment=environment).api_key == "usual"
    assert (
        parse_endpoint("http://h", MODEL, api_key_env="OTHER", environment=environment).api_key
        == "other"
    )
    assert parse_endpoint("http://h", MODEL, environment={}).api_key is None
    with pytest.raises(ConfigError, match="--api-key-env ABSENT: the variable is not set"):
        parse_endpoint("http://h", MODEL, api_key_env="ABSENT", environment=environment)


def test_a_key_is_in_no_repr_and_in_no_message_about_it() -> None:
    endpoint = parse_endpoint("http://h", MODEL, environment={"OPENAI_API_KEY": KEY})
    assert endpoint.api_key == KEY
    assert KEY not in repr(endpoint)
    with pytest.raises(ConfigError, match=re.escape("$OPENAI_API_KEY: is not a key")) as raised:
        parse_endpoint("http://h", MODEL, environment={"OPENAI_API_KEY": f"{KEY}\nX-Other: 1"})
    assert KEY not in str(raised.value)


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="--model is empty"):
        parse_endpoint("http://h", " ", environment={})


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        ({"concurrency": 0}, "--concurrency 0 --retries 5"),
        ({"retries": -1}, "--concurrency 8 --retries -1"),
        ({"requests_per_minute": 0.0}, "--requests-per-minute 0: give more than 0"),
        ({"requests_per_minute": float("nan")}, "--requests-per-minute nan"),
    ],
)
def test_a_pace_that_asks_nothing_is_refused(pace: dict[str, float], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Pace(**pace)  # type: ignore[arg-type]
