"""What FFmpeg's log tells of one decoding: each frame with its time, which are damaged, what the
decoder said.

At level `verbose` with `-debug_ts` the decoder's thread prints a line a frame, so that its
complaints stand between the frames they belong to. Other threads print in between in any order:
only the decoder's own lines are looked at. (At level `debug` a filter prints in pieces, which tears
the lines of others.)"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.decode.verdicts import Finding, findings_in

_LINE = re.compile(r"((?:\[[^\[\]]+ @ 0x[0-9a-f]+\] )*)\[([a-z]+)\] (.*)")
_CONTEXT = re.compile(r"\[([^\[\]]+) @ (0x[0-9a-f]+)\]")
_FRAME = re.compile(r"decoder -> pts:(-?\d+) .* time_base:(\d+)/(\d+)")
_FIRST_FRAME = re.compile(r"w:(\d+) h:(\d+) pixfmt:(\w+)")
_ROTATION = re.compile(r"isplay ?[Mm]atrix: rotation of (-?[\d.]+) degrees")
_LEVELS = {"panic": 0, "fatal": 8, "error": 16, "warning": 24, "info": 32}
_COUNT = re.compile(r"Input stream #0:\d+ \(video\): .* (\d+) frames decoded;")
_DAMAGED_FRAME = "corrupt decoded frame"
_MARK, _REFUSAL = (
    "mark",
    "refusal",
)  # of the thread around the decoder; other speakers are memory addresses
_NO_FRAME = ("Error submitting packet to decoder: ", "Decoding error: ")


@dataclass
class DecodeLog:
    """Fed line by line; the rest is read once the process has ended.

    times_seconds: of every decoded frame
    damaged: indices of the frames that are marked corrupt
    rotation_degrees: of the stream, counter-clockwise
    size, pixel_format: (width, height) of the frames and their layout, None before the first
    has_started: whether the decoder began at all; last_error: the last line at level `error`,
        whoever printed it"""

    stream_index: int
    times_seconds: list[float] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)
    rotation_degrees: int = 0
    size: tuple[int, int] | None = None
    pixel_format: str | None = None
    has_started: bool = False
    num_counted: int = 0
    last_error: str = ""
    _dumped_stream: int | None = None
    _decoder_name: str = ""
    _complaints: list[tuple[int, str, str]] = field(
        default_factory=list
    )  # (position, speaker, text)
    _num_refused: int = 0
    _num_before_flush: int | None = None

    def feed(self, line: str) -> None:
        """Take one line of FFmpeg's standard error."""
        match = _LINE.match(line)
        if match is None:
            return
        level, text = _LEVELS.get(match[2], 40), match[3]
        name, address = (_CONTEXT.findall(match[1]) or [("", "")])[-1]
        if level <= _LEVELS["error"]:
            self.last_error = text
        if count := _COUNT.search(text):
            self.num_counted = int(count[1])
        if name.startswith("dec:"):
            self._decoder_name = name.removeprefix("dec:")
            self._take_step(text)
        elif not self.has_started:
            self._take_header(text)
        elif name == self._decoder_name:
            told = findings_in([(level, name, text)], packet=0)
            self._complaints += [(self._position, address, finding.text) for finding in told]
        elif self.size is None and name.startswith("graph") and (first := _FIRST_FRAME.match(text)):
            self.size, self.pixel_format = (int(first[1]), int(first[2])), first[3]

    def findings(self, heard: Collection[str]) -> list[Finding]:
        """What the decoder complained about, in order; a damaged frame has its own number, counted
        from 1.

        heard: what the demuxing in this process has brought up; the parser there says it under the
            decoder's name,
        at any moment here, so a speaker who has nothing to add is left out"""
        delay = 0
        if (
            self._num_before_flush is not None
        ):  # so many packets go in before the first frame comes out
            delay = len(self.times_seconds) - self._num_before_flush
        texts: dict[str, set[str]] = {}
        for _, speaker, text in self._complaints:
            texts.setdefault(speaker, set()).add(text)
        found: list[Finding] = []
        last_told = -1
        for position, speaker, text in self._complaints:
            if speaker == _MARK:
                found.append(Finding(position, text))
            elif speaker == _REFUSAL:
                if position != last_told:  # mostly the decoder itself says it better
                    found.append(Finding(position + delay, text))
            elif not texts[speaker] <= set(heard):
                found.append(Finding(position + delay, text))
                last_told = position
        return found

    def _take_header(self, text: str) -> None:
        """The description of the input; only it tells how a stream is turned."""
        if stream := re.match(r"\s*Stream #0:(\d+)", text):
            self._dumped_stream = int(stream[1])
        elif self._dumped_stream == self.stream_index and (rotation := _ROTATION.search(text)):
            self.rotation_degrees = round(float(rotation[1]) / 90) * 90 % 360

    def _take_step(self, text: str) -> None:
        """A line of the thread around the decoder."""
        if text == "Starting thread...":
            self.has_started = True
        elif frame := _FRAME.match(text):
            pts, numerator, denominator = frame.groups()
            self.times_seconds.append(int(pts) * int(numerator) / int(denominator))
        elif text == _DAMAGED_FRAME:
            index = len(self.times_seconds)
            self.damaged.add(index)
            self._complaints.append((index + 1, _MARK, "the frame is marked corrupt"))
        elif text.startswith("Decoder thread received EOF"):
            self._num_before_flush = len(self.times_seconds)
        elif text.startswith(_NO_FRAME):
            self._complaints.append(
                (self._position, _REFUSAL, f"decoding failed: {text.split(': ', 1)[1]}")
            )
            self._num_refused += 1

    @property
    def _position(self) -> int:
        return len(self.times_seconds) + self._num_refused


def without_path(text: str, path: Path) -> str:
    """A message of FFmpeg that names no folder of this machine."""
    return text.replace(f"file:{path}", path.name).replace(str(path), path.name)
