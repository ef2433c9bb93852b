"""`bmpt describe`: class texts, negatives and paraphrases through a server that answers well, badly
and not at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bmpt.offline.answers import MalformedError
from bmpt.offline.describe import parse_strings
from bmpt.offline.endpoint import Reply
from bmpt.texts.class_texts import file_sentences, mapped_names, negative_sentences
from tests.bmpt.runs import ROOT, TIMEOUT_SECONDS
from tests.chat_server import MODEL, Asked, ChatServer, Say, Send, run_chat_server
from tests.complaints import complains, run

CLASSES = ["ApplyEyeMakeup", "ride_bike", "walk"]
KEY = "sk-secret-0123456789"


def action_of(asked: Asked) -> str:
    found = re.search(r'action is "([^"]+)"', asked.text)
    assert found is not None
    return found[1]


def answer_well(number: int, asked: Asked) -> Say:
    name = action_of(asked)
    if "Write" in asked.text:
        count = int(re.findall(r"JSON array of (\d+)", asked.text)[0])
        return Say(
            json.dumps([f"Someone does {name}, sentence {index}." for index in range(count)])
        )
    return Say(json.dumps([f"not {name}" if "not the same" in asked.text else f"to {name}"]))


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with run_chat_server() as server:
        server.decide = answer_well
        yield server


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    file = tmp_path / "labels.csv"
    file.write_text(
        "id,name\n" + "".join(f"{index},{name}\n" for index, name in enumerate(CLASSES))
    )
    return file


def arguments(chat: ChatServer, classes: Path, *more: str) -> list[str]:
    out = classes.parent / "texts.json"
    common = [
        "describe",
        "--endpoint",
        chat.url,
        "--model",
        MODEL,
        "--classes",
        str(classes),
        "--out",
        str(out),
    ]
    return [*common, "--retries", "0", *more]


def test_all_three_outputs_are_what_training_reads(
    chat: ChatServer, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    negatives, paraphrases = classes.parent / "negatives.txt", classes.parent / "paraphrases.txt"
    more = [
        "--sentences",
        "3",
        "--negatives",
        str(negatives),
        "--paraphrases",
        str(paraphrases),
        "--json",
    ]
    assert run(*arguments(chat, classes, *more)) == 0
    texts = file_sentences(CLASSES, classes.parent / "texts.json")
    assert texts.sentences[0] == tuple(
        f"Someone does apply eye makeup, sentence {index}." for index in range(3)
    )
    assert (texts.num_sentences, texts.notes) == (3, ())
    assert negative_sentences(CLASSES, negatives, 1).at(0)[2] == "a video of a person not walk"
    assert mapped_names(CLASSES, paraphrases, what="paraphrase")[0] == [
        "to apply eye makeup",
        "to ride bike",
        "to walk",
    ]
    done = json.loads(capsys.readouterr().out)
    assert [
        (file["kind"], file["written"], file["asked"], file["missing"]) for file in done["files"]
    ] == [
        ("texts", 3, 3, []),
        ("negatives", 3, 3, []),
        ("paraphrases", 3, 3, []),
    ]
    kept = pq.read_table(classes.parent / "texts.answers.parquet").to_pylist()
    assert len(kept) == 9
    assert {row["model"] for row in kept} == {MODEL}
    versions = {row["prompt_version"] for row in kept}
    assert sorted(version.rpartition("-")[0] for version in versions) == [
        "negatives-1",
        "paraphrases-1",
        "texts-3",
    ]


def test_the_same_command_again_asks_nothing_and_writes_the_same_file(
    chat: ChatServer, classes: Path
) -> None:
    assert run(*arguments(chat, classes)) == 0
    before = (classes.parent / "texts.json").read_bytes()
    chat.decide = lambda number, asked: Send(status=500)
    assert run(*arguments(chat, classes)) == 0
    assert (classes.parent / "texts.json").read_bytes() == before
    assert len(chat.asked) == 3


def test_the_classes_of_a_manifest_are_described(
    chat: ChatServer, toy_pool: Path, tmp_path: Path
) -> None:
    manifest = toy_pool / "manifests" / "base_to_novel" / "val_novel.parquet"
    words = [
        "--endpoint",
        chat.url,
        "--model",
        MODEL,
        "--manifest",
        str(manifest),
        "--out",
        str(tmp_path / "t.json"),
    ]
    assert run("describe", *words) == 0
    assert list(json.loads((tmp_path / "t.json").read_text())) == ["Class02", "Class03"]


def test_malformed_answers_are_counted_named_and_left_out_and_asked_again_on_request(
    chat: ChatServer, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def decide(number: int, asked: Asked) -> Say:
        return (
            Say("1. Walking.\n2. Going.")
            if action_of(asked) == "walk"
            else answer_well(number, asked)
        )

    chat.decide = decide
    assert run(*arguments(chat, classes)) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith(
        "texts.json: texts of 2 of 3 classes (3 answers of tiny-vlm, "
        "0 kept from before, 1 malformed, 0 refused)"
    )
    assert out[1] == "  no texts: walk: not JSON: '1. Walking. 2. Going.'"
    assert out[2].endswith("only asked again with --retry-malformed")
    assert list(json.loads((classes.parent / "texts.json").read_text())) == CLASSES[:2]
    chat.decide = answer_well
    assert run(*arguments(chat, classes)) == 1
    assert len(chat.asked) == 3, "the answer is kept"
    assert run(*arguments(chat, classes, "--retry-malformed", "--max-tokens", "4096")) == 0
    assert [asked.body["max_tokens"] for asked in chat.asked] == [
        *[chat.asked[0].body["max_tokens"]] * 3,
        4096,
    ]
    assert list(json.loads((classes.parent / "texts.json").read_text())) == CLASSES


def test_a_negative_or_paraphrase_that_is_the_class_itself_is_malformed(
    chat: ChatServer, classes: Path
) -> None:
    chat.decide = lambda number, asked: (
        answer_well(number, asked)
        if "Write" in asked.text
        else Say(json.dumps([action_of(asked).title()]))
    )
    negatives = classes.parent / "negatives.txt"
    assert run(*arguments(chat, classes, "--negatives", str(negatives))) == 1
    assert not negatives.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a b", "c  d\\n"]', ("a b", "c d")),
        ('  ["a", "b"]\n', ("a", "b")),
        ('```json\n["a", "b"]\n```', ("a", "b")),
        ('<think>\nshort ones: ["x", "y"]\n</think>\n\n["a", "b"]', ("a", "b")),
        ('["x", "y"] are too short.\n</think>\n["a", "b"]', ("a", "b")),
    ],
)
def test_an_array_of_strings_is_read_alone_or_fenced(text: str, expected: tuple[str, ...]) -> None:
    assert parse_strings(Reply(text), 2) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not JSON: ''"),
        ('Sure! ["a", "b"]', "not JSON"),
        ('["a", "b"', "not JSON"),
        ('<think> of ["a", "b"]', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": "b"}', "not an array of strings"),
        ('["a", 2]', "not an array of strings"),
        ('["a"]', "1 strings, expected 2"),
        ('["a", "b", "c"]', "3 strings, expected 2"),
        ('["a", " "]', "an empty or repeated string"),
        ('["Walk on", "walk_on"]', "an empty or repeated string"),
    ],
)
def test_anything_else_is_malformed(text: str, expected: str) -> None:
    with pytest.raises(MalformedError, match=expected):
        parse_strings(Reply(text), 2)


def test_an_answer_that_was_cut_is_malformed_even_if_it_can_be_read() -> None:
    with pytest.raises(MalformedError, match="truncated at the limit of tokens"):
        parse_strings(Reply('["a", "b"]', finish_reason="length"), 2)


def test_an_endpoint_that_is_down_is_one_line_and_nothing_is_written(
    chat: ChatServer, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = arguments(chat, classes)
    down[down.index(chat.url)] = "http://127.0.0.1:1/v1"
    assert "http://127.0.0.1:1/v1: no endpoint answers there (Connection refused)" in complains(
        capsys, *down, shows_progress=True
    )
    assert [path.name for path in classes.parent.iterdir()] == ["labels.csv"]


def test_unanswered_questions_are_one_line_no_output_and_asked_by_the_next_run(
    chat: ChatServer, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.decide = lambda number, asked: (
        Send(status=500) if action_of(asked) == "walk" else answer_well(number, asked)
    )
    line = complains(capsys, *arguments(chat, classes), shows_progress=True)
    assert "1 of 3 questions have no answer (the first: walk: HTTP 500, tries: 1)" in line
    assert not (classes.parent / "texts.json").exists()
    chat.decide = answer_well
    assert run(*arguments(chat, classes)) == 0
    assert [action_of(asked) for asked in chat.asked[3:]] == ["walk"]


def test_the_key_is_sent_and_stands_nowhere(
    chat: ChatServer,
    classes: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    assert run(*arguments(chat, classes, "--api-key-env", "MY_KEY")) == 0
    assert chat.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    chat.decide = lambda number, asked: Send(status=401, body=f"wrong key {KEY}".encode())
    line = complains(
        capsys,
        *arguments(chat, classes, "--api-key-env", "MY_KEY", "--sentences", "1"),
        shows_progress=True,
    )
    assert "refuses the key (HTTP 401: wrong key <key>)" in line
    for path in classes.parent.iterdir():
        assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--sentences", "0"], "--sentences 0: give at least 1"),
        (["--negatives", "FOLDER/texts.json"], "texts.json: is named for two outputs"),
        (["--answers", "FOLDER/texts.json"], "texts.json: is named for two outputs"),
        (["--paraphrases", "FOLDER"], "is a folder; name a file in it"),
        (["--manifest", "x"], "give either --classes FILE or --manifest MANIFEST"),
        (["--concurrency", "0"], "--concurrency 0"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_asked_or_written(
    chat: ChatServer,
    classes: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    expected: str,
) -> None:
    more = [word.replace("FOLDER", str(classes.parent)) for word in more]
    assert expected in complains(capsys, *arguments(chat, classes, *more))
    assert chat.asked == []
    assert [path.name for path in classes.parent.iterdir()] == ["labels.csv"]


def test_a_killed_run_goes_on_with_what_is_missing(chat: ChatServer, tmp_path: Path) -> None:
    classes = tmp_path / "labels.txt"
    names = [f"action {index:02d}" for index in range(30)]
    classes.write_text("\n".join(names))
    release = 12  # as many answers come before the kill, two more are being written then

    def decide(number: int, asked: Asked) -> Say | Send:
        return answer_well(number, asked) if number < release else Send(delay_seconds=300)

    chat.decide = decide
    words = arguments(chat, classes, "--concurrency", "2")
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    process = subprocess.Popen([sys.executable, "-m", "bmpt", *words], cwd=ROOT, env=environment)
    journal = tmp_path / ".texts.answers.parquet.journal"
    try:
        until = time.monotonic() + TIMEOUT_SECONDS
        while not journal.exists() or journal.read_bytes().count(b"\n") < release:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [journal.name, "labels.txt"]
    answered = [action_of(asked) for asked in chat.asked[:release]]
    asked_before = len(chat.asked)
    chat.decide = answer_well
    assert run(*words) == 0
    asked_now = [action_of(asked) for asked in chat.asked[asked_before:]]
    assert sorted(asked_now + answered) == names, (
        "each once, none of those that were answered again"
    )
    found: dict[str, Any] = json.loads((tmp_path / "texts.json").read_text())
    assert list(found) == names
    assert not journal.exists()
