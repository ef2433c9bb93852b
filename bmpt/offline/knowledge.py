"""Knowledge texts: triples that a vision-language model writes about the frames of a clip.

Source: the annotation scripts of BMPT, with four frames per video, lines of the form `Entity: X
relation: Y Entity: Z`, and CLIP text features. The scripts keep only the first word of an entity;
here entities are complete.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from bmpt.clip.backbone import Backbone
from bmpt.offline.answers import (
    HOW_TO_ASK_AGAIN,
    AnswerBook,
    Asking,
    MalformedError,
    collect,
    prompt_version,
)
from bmpt.offline.chat import Messages, Question
from bmpt.offline.endpoint import Reply
from bmpt.texts.class_texts import truncation_warning
from bmpt.texts.knowledge_file import KnowledgeRow, write_knowledge
from bmpt.texts.text_features import FloatArray, check_target, encode_unit_texts
from shards.errors import ConfigError
from shards.files import one_line
from shards.progress import NullProgress, Progress
from shards.reader import Manifest, Pool, read_frame_bytes

NUM_FRAMES = 4
PROMPT = (
    "State what is seen in this frame of a video as relations between two entities, at most eight "
    "lines, strictly in "
    "this form and nothing else:\nEntity: X relation: Y Entity: Z"
)
_MAX_TOKENS = 320
# Words up to the next label.
_WORDS = r"((?:(?!\b(?:entity|relation)\s*:).)+?)"
_TRIPLE = re.compile(
    rf"(?:[-*•]\s*|\d+[.)]\s*)?"
    rf"entity\s*:\s*{_WORDS}[\s,;]*"
    rf"\brelation\s*:\s*{_WORDS}[\s,;]*"
    rf"\bentity\s*:\s*{_WORDS}[\s.,;]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class KnowledgeReport:
    """The result of `bmpt knowledge`."""

    file: str
    answers: str
    model: str
    expected: int
    """Samples of the manifest."""
    written: int
    """Samples in the file."""
    frames: int
    asked: int
    """Answers of this run."""
    kept: int
    """Answers of earlier runs."""
    malformed: int
    """Frames whose answer has no triple."""
    refused: int
    """Frames without an answer."""
    other_lines: int
    """Lines of answers that are not triples; they are left out."""
    missing: list[str]
    """Keys of samples without a triple."""
    warning: str | None
    """Lines that CLIP truncates, or None."""
    first_malformed: str | None
    """A frame and the problem of its answer, or None."""

    @property
    def is_complete(self) -> bool:
        """Return whether every sample of the manifest has a knowledge text."""
        return not self.missing


def describe_clips(
    pool: Pool,
    manifest: Manifest,
    asking: Asking,
    backbone: Backbone,
    file: Path,
    *,
    progress: Progress = NullProgress(),
) -> KnowledgeReport:
    """Ask about four frames of every sample, and write the CLIP text features of the answers.

    The report names the samples without a triple, which are not in the file.

    Raises:
        ConfigError: for an empty manifest, or one file for features and answers.
        EndpointError: if the endpoint cannot be used.
        FormatError: if a file of answers has another form.
        StorageError: if the file cannot be written; it is written completely or not at all.
    """
    check_target(file)
    if file == asking.answers:
        raise ConfigError(
            f"{file}: is named for the features and for the answers; give each its own file"
        )
    if len(manifest) == 0:
        raise ConfigError(
            f"{manifest.info.path}: has no sample to describe; build the pool with its videos"
        )

    rows = manifest.table.select(["key", "source_index", "num_frames_decoded"]).to_pylist()
    frames_of = [_frames_to_show(row) for row in rows]
    questions = _questions(pool, manifest, frames_of, asking.max_tokens or _MAX_TOKENS)
    version = prompt_version("triples", PROMPT)
    with AnswerBook(asking.answers) as book:
        collected = collect(
            asking.endpoint,
            questions,
            book,
            version,
            asking.pace,
            is_wanted=_has_triples if asking.retry_malformed else lambda key, reply: True,
            step="frames",
            progress=progress,
        )

    parsed = _parse_all(collected.replies)
    lines_of: dict[str, list[str]] = {}
    for row, frames in zip(rows, frames_of, strict=True):
        lines = parsed.lines(frames)
        if lines:
            lines_of[row["key"]] = lines

    if lines_of:
        described = _knowledge_rows(backbone, lines_of, asking.endpoint.model, version)
        write_knowledge(file, described, manifest, backbone)

    malformed = [f"{name}: {problem}" for name, problem in parsed.malformed.items()]
    return KnowledgeReport(
        file=str(file),
        answers=str(asking.answers),
        model=asking.endpoint.model,
        expected=len(manifest),
        written=len(lines_of),
        frames=len(questions),
        asked=collected.num_asked,
        kept=len(collected.replies) - collected.num_asked,
        malformed=len(malformed),
        first_malformed=malformed[0] if malformed else None,
        refused=len(collected.refused),
        other_lines=parsed.num_other_lines,
        missing=[row["key"] for row in rows if row["key"] not in lines_of],
        warning=truncation_warning(
            backbone, chain.from_iterable(lines_of.values()), what="knowledge lines"
        ),
    )


def _questions(
    pool: Pool, manifest: Manifest, frames_of: Sequence[Mapping[str, int]], max_tokens: int
) -> list[Question]:
    """Return one question per frame; `frames_of` has the frames of each row, by question key."""
    questions = []
    for index, frames in enumerate(frames_of):
        for name, position in frames.items():
            messages = partial(_messages, pool, manifest, index, position)
            questions.append(Question(name, messages, max_tokens))
    return questions


def _knowledge_rows(
    backbone: Backbone, lines_of: Mapping[str, Sequence[str]], model: str, version: str
) -> list[KnowledgeRow]:
    """Return the rows of the file: the lines of each sample and their feature."""
    features = encode_knowledge(backbone, lines_of)
    rows = []
    for key, lines in lines_of.items():
        rows.append(KnowledgeRow(key, features[key], "\n".join(lines), model, version))
    return rows


def knowledge_text(done: KnowledgeReport) -> str:
    """Return the counts of samples and frames, and where the answers are."""
    first = f", the first {done.missing[0]}" if done.missing else ""
    lines = [
        f"{done.file}: knowledge texts of {done.written} of {done.expected} samples "
        f"({len(done.missing)} without{first})",
        f"{done.frames} frames: {done.asked} answers of {done.model}, {done.kept} kept from "
        f"before, {done.malformed} malformed, {done.refused} refused; {done.other_lines} lines "
        "without a triple left out",
    ]

    hint = ""
    if done.first_malformed is not None:
        lines.append(f"  malformed: {done.first_malformed}")
        hint = f"; {HOW_TO_ASK_AGAIN}"
    return "\n".join([*lines, f"answers: {done.answers}{hint}"])


def parse_triples(reply: Reply) -> tuple[list[str], int]:
    """Return `subject relation object` of every line with a triple, and the number of others.

    Raises:
        MalformedError: for an answer that is truncated or has no triple.
    """
    if reply.finish_reason == "length":
        raise MalformedError("truncated at the limit of tokens")

    lines = [line.strip() for line in reply.said.splitlines() if line.strip()]
    matches = [_TRIPLE.fullmatch(line) for line in lines]
    triples = [one_line(" ".join(match.groups())) for match in matches if match]
    if not triples:
        raise MalformedError(
            f"no line `Entity: X relation: Y Entity: Z`: {one_line(reply.said)[:60]!r}"
        )
    return triples, len(lines) - len(triples)


def encode_knowledge(
    backbone: Backbone, lines_of: Mapping[str, Sequence[str]]
) -> dict[str, FloatArray]:
    """Return the feature [D] of each key: the normalised mean of its lines' unit features.

    A repeated line is encoded once, and counts as often as it occurs.
    """
    unique = list(dict.fromkeys(chain.from_iterable(lines_of.values())))
    row_of = {line: row for row, line in enumerate(unique)}
    units_LD = encode_unit_texts(backbone, unique)

    features = {}
    for key, lines in lines_of.items():
        mean_D = units_LD[[row_of[line] for line in lines]].mean(dim=0)
        features[key] = F.normalize(mean_D, dim=0).numpy()
    return features


def frame_positions(source_index: Sequence[int], num_frames: int) -> list[int]:
    """Return the positions of the stored frames nearest to floor(n*(i+1)/5), i = 0..3.

    Args:
        source_index: of each stored frame, ascending.
        num_frames: n, the frames of the source.

    Returns:
        Each position once, ascending.
    """
    stored = np.asarray(source_index)
    wanted = [num_frames * (i + 1) // (NUM_FRAMES + 1) for i in range(NUM_FRAMES)]
    return sorted({int(np.abs(stored - frame).argmin()) for frame in wanted})


@dataclass(frozen=True)
class _Parsed:
    """The parsed answers, by the key of their question."""

    triples: dict[str, list[str]]
    malformed: dict[str, str]
    """Why an answer has no triple."""
    num_other_lines: int

    def lines(self, names: Iterable[str]) -> list[str]:
        """Return the triples of some questions, in their order."""
        return [line for name in names for line in self.triples.get(name, ())]


def _parse_all(replies: Mapping[str, Reply]) -> _Parsed:
    triples: dict[str, list[str]] = {}
    malformed: dict[str, str] = {}
    num_other_lines = 0
    for name, reply in replies.items():
        try:
            triples[name], num_other = parse_triples(reply)
        except MalformedError as error:
            malformed[name] = str(error)
        else:
            num_other_lines += num_other
    return _Parsed(triples, malformed, num_other_lines)


def _frames_to_show(row: Mapping[str, Any]) -> dict[str, int]:
    """Return positions by the key of the question: the sample's key and the source index."""
    positions = frame_positions(row["source_index"], row["num_frames_decoded"])
    return {f"{row['key']}#{row['source_index'][position]}": position for position in positions}


def _messages(pool: Pool, manifest: Manifest, index: int, position: int) -> Messages:
    """Return the prompt with one frame as the stored JPEG.

    Raises:
        SampleError: if the frame is damaged.
        StorageError: if the pool cannot be read.
    """
    (frame,) = read_frame_bytes(pool.store, manifest.row(index), [position])
    picture = f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}"
    content = [
        {"type": "text", "text": PROMPT},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    return [{"role": "user", "content": content}]


def _has_triples(key: str, reply: Reply) -> bool:
    try:
        parse_triples(reply)
    except MalformedError:
        return False
    return True
