"""Class texts, negatives and paraphrases, written by a language model.

There are three outputs: sentences that describe a class (the JSON of BDC-CLIP), the name of a
similar action that training pushes away, and the name of the same action in other words (both in
the form of BMPT's mapping files).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bmpt.offline.answers import (
    HOW_TO_ASK_AGAIN,
    AnswerBook,
    Asking,
    Collected,
    MalformedError,
    collect,
    prompt_version,
)
from bmpt.offline.chat import Question
from bmpt.offline.endpoint import Reply
from bmpt.texts.class_texts import readable
from shards.errors import ConfigError
from shards.files import one_line, write_file
from shards.format.names import fold_name, is_utf8
from shards.progress import NullProgress, Progress
from shards.reader import open_pool

Kind = Literal["texts", "negatives", "paraphrases"]

_PROMPTS: dict[Kind, str] = {
    "texts": (
        "You write captions for a model that recognises actions in videos. "
        'The action is "{name}". Write {count} '
        "different English sentences of at most 40 words that describe what is seen in a video of "
        "this action: the "
        "movements, the objects, the place. Name the action in each. Answer with nothing but a "
        "JSON array of {count} strings."
    ),
    "negatives": (
        'The action is "{name}". Name one other action that looks similar in a video but is not '
        "the same. Answer "
        "with nothing but a JSON array of one string: the name of that other action, in one to "
        "six English words."
    ),
    "paraphrases": (
        'The action is "{name}". Name the same action in other words that keep its meaning. '
        "Answer with nothing but a "
        "JSON array of one string: that name, in one to ten English words."
    ),
}
_TOKENS_PER_STRING, _EXTRA_TOKENS = 90, 60
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


@dataclass(frozen=True)
class DescribedFile:
    """One output of `bmpt describe`."""

    kind: Kind
    file: str
    written: int
    """Classes in the file."""
    asked: int
    """Answers of this run."""
    kept: int
    """Answers of earlier runs."""
    malformed: int
    refused: int
    missing: list[str]
    """Classes without a usable answer."""
    problems: list[str]
    """The reason for each missing class."""


@dataclass(frozen=True)
class Description:
    """The result of `bmpt describe`."""

    classes: int
    model: str
    answers: str
    files: list[DescribedFile]

    @property
    def is_complete(self) -> bool:
        """Return whether every class has an entry in every file."""
        return not any(file.missing for file in self.files)


def manifest_classes(address: str) -> list[str]:
    """Return the classes of the manifest POOL/manifests/PROTOCOL/NAME.parquet.

    Raises:
        ConfigError: if the address has another form.
        FormatError: if there is no such pool or manifest.
    """
    match = re.fullmatch(r"(?:(.+)/)?manifests/([\w-]+/[\w-]+)\.parquet", address)
    if match is None:
        raise ConfigError(
            f"{address}: is not a manifest of a pool; expected POOL/manifests/PROTOCOL/NAME.parquet"
        )
    return open_pool(match[1] or ".").manifest(match[2]).info.classes


def describe_classes(
    class_names: Sequence[str],
    outputs: dict[Kind, Path],
    asking: Asking,
    *,
    num_sentences: int = 2,
    progress: Progress = NullProgress(),
) -> Description:
    """Write the outputs; the report names the classes without a usable answer.

    Args:
        class_names: repeated names count once.
        outputs: file of each kind.
        asking: endpoint and stored answers.
        num_sentences: sentences per class in the texts.
        progress: shows the classes of each kind.

    Raises:
        ConfigError: for two outputs in one file, or names that are not UTF-8.
        EndpointError: if the endpoint cannot be used.
        StorageError: if a file cannot be written; each is written completely or not at all.
    """
    classes = list(dict.fromkeys(class_names))
    if num_sentences < 1:
        raise ConfigError(f"--sentences {num_sentences}: give at least 1")
    for name in classes:
        if not is_utf8(name):
            raise ConfigError(f"class {name!r} is not UTF-8; convert the class file")

    written_files = [asking.answers, *outputs.values()]
    for file in written_files:
        if file.is_dir():
            raise ConfigError(f"{file}: is a folder; name a file in it")
        if written_files.count(file) > 1:
            raise ConfigError(f"{file}: is named for two outputs; give each its own file")

    files = []
    with AnswerBook(asking.answers) as book:
        for kind, file in outputs.items():
            count = num_sentences if kind == "texts" else 1
            parse = _parser(kind, count)
            questions = [_question(kind, count, name, asking.max_tokens) for name in classes]
            collected = collect(
                asking.endpoint,
                questions,
                book,
                prompt_version(f"{kind}-{count}", _PROMPTS[kind]),
                asking.pace,
                is_wanted=_usable_by(parse) if asking.retry_malformed else lambda key, reply: True,
                step=kind,
                progress=progress,
            )
            files.append(_write(kind, file, classes, collected, parse))
    return Description(len(classes), asking.endpoint.model, str(asking.answers), files)


def description_text(done: Description) -> str:
    """Return one line per file, one per class without an entry, and one about the answers."""
    lines = []
    for file in done.files:
        lines.append(
            f"{file.file}: {file.kind} of {file.written} of {done.classes} classes "
            f"({file.asked} answers of {done.model}, {file.kept} kept from before, "
            f"{file.malformed} malformed, {file.refused} refused)"
        )
        for name, problem in zip(file.missing, file.problems, strict=True):
            lines.append(f"  no {file.kind}: {name}: {problem}")

    hint = f"; {HOW_TO_ASK_AGAIN}" if any(file.malformed for file in done.files) else ""
    return "\n".join([*lines, f"answers: {done.answers}{hint}"])


def parse_strings(reply: Reply, count: int) -> tuple[str, ...]:
    """Parse a JSON array of `count` different strings, which may be fenced as a code block.

    Raises:
        MalformedError: stating what the answer is instead.
    """
    if reply.finish_reason == "length":
        raise MalformedError("truncated at the limit of tokens")

    fenced = _FENCED.fullmatch(reply.said.strip())
    try:
        values = json.loads(fenced[1] if fenced else reply.said)
    except (ValueError, RecursionError):
        raise MalformedError(f"not JSON: {one_line(reply.said)[:60]!r}") from None

    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise MalformedError(f"not an array of strings: {str(values)[:60]!r}")
    strings = tuple(map(one_line, values))
    if len(strings) != count:
        raise MalformedError(f"{len(strings)} strings, expected {count}")
    if not all(strings) or len({fold_name(text) for text in strings}) < count:
        raise MalformedError("an empty or repeated string")
    return strings


_Parse = Callable[[str, Reply], tuple[str, ...]]


def _parser(kind: Kind, count: int) -> _Parse:
    """Return the function that parses an answer of one kind."""

    def parse(class_name: str, reply: Reply) -> tuple[str, ...]:
        strings = parse_strings(reply, count)
        if kind == "texts":
            return strings
        if "->" in strings[0]:
            raise MalformedError(f"{strings[0]!r} contains `->`")
        if fold_name(strings[0]) == fold_name(class_name):
            raise MalformedError("the class's own name")
        return strings

    return parse


def _usable_by(parse: _Parse) -> Callable[[str, Reply], bool]:
    """Return a function that tells whether an answer can be parsed."""

    def is_usable(key: str, reply: Reply) -> bool:
        try:
            parse(key, reply)
        except MalformedError:
            return False
        return True

    return is_usable


def _question(kind: Kind, count: int, class_name: str, max_tokens: int | None) -> Question:
    content = _PROMPTS[kind].format(name=readable(class_name), count=count)
    messages = [{"role": "user", "content": content}]
    default_tokens = _TOKENS_PER_STRING * count + _EXTRA_TOKENS
    return Question(class_name, lambda: messages, max_tokens or default_tokens)


def _write(
    kind: Kind, file: Path, classes: Sequence[str], collected: Collected, parse: _Parse
) -> DescribedFile:
    """Write the usable answers; without any there is no file."""
    usable: dict[str, tuple[str, ...]] = {}
    problems = dict(collected.refused)
    num_malformed = 0

    for name in classes:
        if name in collected.replies:
            try:
                usable[name] = parse(name, collected.replies[name])
            except MalformedError as error:
                problems[name] = str(error)
                num_malformed += 1

    if usable:
        if kind == "texts":
            text = json.dumps(usable, indent=2, ensure_ascii=False) + "\n"
        else:
            text = "".join(f"{name} -> {strings[0]}\n" for name, strings in usable.items())
        write_file(file.absolute(), text.encode())

    missing = [name for name in classes if name not in usable]
    return DescribedFile(
        kind=kind,
        file=str(file),
        written=len(usable),
        asked=collected.num_asked,
        kept=len(collected.replies) - collected.num_asked,
        malformed=num_malformed,
        refused=len(collected.refused),
        missing=missing,
        problems=[problems[name] for name in missing],
    )
