"""Knowledge texts: what a vision-language model sees in the frames of a training clip, as triples.

Source: BMPT's annotation scripts: four frames a video, `Entity: X relation: Y Entity: Z` lines,
    CLIP text features.
There entities of several words are cut to the first; here they stay whole."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from bmpt.texts.class_texts import cut_warning
from bmpt.texts.knowledge_file import KnowledgeRow, write_knowledge
from bmpt.texts.text_features import FloatArray, check_target, encode_unit_texts
from shards.errors import ConfigError
from shards.progress import NullProgress, Progress
from shards.reader import Manifest, Pool, read_frame_bytes

NUM_FRAMES = 4
PROMPT = (
    "State what is seen in this frame of a video as relations between two entities, at most eight lines, strictly in "
    "this form and nothing else:\nEntity: X relation: Y Entity: Z"
)
_MAX_TOKENS = 320
_WORDS = r"((?:(?!\b(?:entity|relation)\s*:).)+?)"
_TRIPLE = re.compile(
    rf"(?:[-*•]\s*|\d+[.)]\s*)?entity\s*:\s*{_WORDS}[\s,;]*\brelation\s*:\s*{_WORDS}[\s,;]*\bentity\s*:\s*{_WORDS}[\s.,;]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class KnowledgeReport:
    """What `bmpt knowledge` has done.

    asked: answers of this run; kept: those that an earlier one had; malformed, refused: frames
        without a triple, and
    those that were not answered; other_lines: lines of answers that are no triple, left out
    missing: keys of samples without any triple; warning: sentences that CLIP cuts, or None
    first_malformed: a frame and what is wrong with its answer, or None"""

    file: str
    answers: str
    model: str
    expected: int
    written: int
    frames: int
    asked: int
    kept: int
    malformed: int
    refused: int
    other_lines: int
    missing: list[str]
    warning: str | None
    first_malformed: str | None

    @property
    def is_complete(self) -> bool:
        """Whether every sample of the manifest has its knowledge text."""
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
    """Ask about four frames of every sample, and write the CLIP text features of what is answered.

    A sample without a single triple is left out of the file and named.
    Raises: ConfigError, EndpointError, FormatError, StorageError; the file is written whole or not
        at all."""
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
    questions = [
        Question(
            name,
            partial(_messages, pool, manifest, index, position),
            asking.max_tokens or _MAX_TOKENS,
        )
        for index, frames in enumerate(frames_of)
        for name, position in frames.items()
    ]
    version = prompt_version("triples", PROMPT)
    with AnswerBook(asking.answers) as book:
        found = collect(
            asking.endpoint,
            questions,
            book,
            version,
            asking.pace,
            is_wanted=_has_triples if asking.retry_malformed else lambda key, reply: True,
            step="frames",
            progress=progress,
        )
    parsed = _parse_all(found.replies)
    lines_of = {
        row["key"]: parsed.lines(frames) for row, frames in zip(rows, frames_of, strict=True)
    }
    lines_of = {key: lines for key, lines in lines_of.items() if lines}
    if lines_of:
        features = encode_knowledge(backbone, lines_of)
        described = [
            KnowledgeRow(key, features[key], "\n".join(lines), asking.endpoint.model, version)
            for key, lines in lines_of.items()
        ]
        write_knowledge(file, described, manifest, backbone)
    return KnowledgeReport(
        file=str(file),
        answers=str(asking.answers),
        model=asking.endpoint.model,
        expected=len(manifest),
        written=len(lines_of),
        frames=len(questions),
        asked=found.num_asked,
        kept=len(found.replies) - found.num_asked,
        malformed=len(parsed.malformed),
        first_malformed=next((f"{name}: {why}" for name, why in parsed.malformed.items()), None),
        refused=len(found.refused),
        other_lines=parsed.num_other_lines,
        missing=[row["key"] for row in rows if row["key"] not in lines_of],
        warning=cut_warning(
            backbone, (x for lines in lines_of.values() for x in lines), what="knowledge lines"
        ),
    )


def knowledge_text(done: KnowledgeReport) -> str:
    """The outcome for people."""
    first = f", the first {done.missing[0]}" if done.missing else ""
    malformed, again = "", ""
    if done.first_malformed is not None:
        malformed, again = f"  malformed: {done.first_malformed}\n", f"; {HOW_TO_ASK_AGAIN}"
    return (
        f"{done.file}: knowledge texts of {done.written} of {done.expected} samples "
        f"({len(done.missing)} without{first})\n"
        f"{done.frames} frames: {done.asked} answers of {done.model}, {done.kept} kept from before, {done.malformed} "
        f"malformed, {done.refused} refused; {done.other_lines} lines that are no triple left out\n"
        f"{malformed}answers: {done.answers}{again}"
    )


def parse_triples(reply: Reply) -> tuple[list[str], int]:
    """The `subject relation object` of every line of the form, and the number of other lines.

    Raises: MalformedError for an answer without such a line, or one that was cut."""
    if reply.finish_reason == "length":
        raise MalformedError("cut at the limit of tokens")
    lines = [line.strip() for line in reply.said.splitlines() if line.strip()]
    matches = [_TRIPLE.fullmatch(line) for line in lines]
    triples = [" ".join(" ".join(match.groups()).split()) for match in matches if match]
    if not triples:
        raise MalformedError(
            f"no line `Entity: X relation: Y Entity: Z`: {' '.join(reply.said.split())[:60]!r}"
        )
    return triples, len(lines) - len(triples)


def encode_knowledge(
    backbone: Backbone, lines_of: Mapping[str, Sequence[str]]
) -> dict[str, FloatArray]:
    """Features [D] of each key's lines: the mean of the lines' unit features, at unit length again.

    A line that comes again is encoded once, and counts as often as it comes."""
    unique = {
        line: index
        for index, line in enumerate(dict.fromkeys(x for lines in lines_of.values() for x in lines))
    }
    units_LD = encode_unit_texts(backbone, list(unique))
    return {
        key: F.normalize(units_LD[[unique[line] for line in lines]].mean(dim=0), dim=0).numpy()
        for key, lines in lines_of.items()
    }


def frame_positions(source_index: Sequence[int], num_frames: int) -> list[int]:
    """Positions of the stored frames nearest to floor(n*(i+1)/5), i = 0..3, each once, ascending.

    source_index: of each stored frame, ascending; num_frames: n, the frames of the source"""
    stored = np.asarray(source_index)
    wanted = [num_frames * (i + 1) // (NUM_FRAMES + 1) for i in range(NUM_FRAMES)]
    return sorted({int(np.abs(stored - frame).argmin()) for frame in wanted})


@dataclass(frozen=True)
class _Parsed:
    """triples: lines by the question's name; malformed: why there are none, likewise"""

    triples: dict[str, list[str]]
    malformed: dict[str, str]
    num_other_lines: int

    def lines(self, names: Iterable[str]) -> list[str]:
        """The triples of some questions, in their order."""
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
    """Position by the name of the question: the sample's key and the frame's source index."""
    positions = frame_positions(row["source_index"], row["num_frames_decoded"])
    return {f"{row['key']}#{row['source_index'][position]}": position for position in positions}


def _messages(pool: Pool, manifest: Manifest, index: int, position: int) -> Messages:
    """The prompt with one frame, its JPEG bytes as they are stored. Raises: SampleError,
    StorageError."""
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
