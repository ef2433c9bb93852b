"""FFmpeg's log of one decoding: every frame with its time, damaged frames, the decoder's errors.

At level `verbose` with `-debug_ts`, the thread around the decoder prints one line per frame, so
that the decoder's error messages appear between the frames that they belong to. Other threads print
in between in any order, so only the lines of that thread and of the decoder are used. (At level
`debug`, a filter prints its lines in pieces, which tears the lines of others.)
"""

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
_STREAM = re.compile(r"\s*Stream #0:(\d+)")
_ROTATION = re.compile(r"isplay ?[Mm]atrix: rotation of (-?[\d.]+) degrees")
_COUNT = re.compile(r"Input stream #0:\d+ \(video\): .* (\d+) frames decoded;")

_LEVELS = {"panic": 0, "fatal": 8, "error": 16, "warning": 24, "info": 32}
_OTHER_LEVEL = 40

_DAMAGED_FRAME = "corrupt decoded frame"
_NO_FRAME = ("Error submitting packet to decoder: ", "Decoding error: ")

# Sources of messages from the thread around the decoder; all other sources are memory addresses.
_MARK = "mark"
_REFUSAL = "refusal"


@dataclass(frozen=True)
class _Message:
    """An error message during decoding."""

    position: int
    """Number of frames that were decoded or refused before it."""

    source: str
    """Address of the component in memory, _MARK or _REFUSAL."""

    text: str


@dataclass
class DecodeLog:
    """Collects facts from the log, line by line; they are complete when the process has ended."""

    stream_index: int
    """Index of the decoded stream in its container."""

    times_seconds: list[float] = field(default_factory=list)
    """Presentation time of every decoded frame."""

    damaged: set[int] = field(default_factory=set)
    """Indices of the frames that are marked corrupt."""

    rotation_degrees: int = 0
    """Counter-clockwise rotation that shows the frames upright: 0, 90, 180 or 270."""

    size: tuple[int, int] | None = None
    """(width, height) of the first frame; None before it."""

    pixel_format: str | None = None
    """Pixel format of the first frame; None before it."""

    has_started: bool = False
    """Whether the decoder has started."""

    num_counted: int = 0
    """Number of decoded frames by FFmpeg's own statistics."""

    last_error: str = ""
    """The last line at level `error`, whoever printed it."""

    _dumped_stream: int | None = None
    _decoder_name: str = ""
    _messages: list[_Message] = field(default_factory=list)
    _num_refused: int = 0
    _num_before_flush: int | None = None

    def feed(self, line: str) -> None:
        """Use one line of FFmpeg's standard error."""
        match = _LINE.match(line)
        if match is None:
            return

        # The last of nested contexts is the component that printed the line.
        level, text = _LEVELS.get(match[2], _OTHER_LEVEL), match[3]
        contexts = _CONTEXT.findall(match[1]) or [("", "")]
        name, address = contexts[-1]

        if level <= _LEVELS["error"]:
            self.last_error = text
        if count := _COUNT.search(text):
            self.num_counted = int(count[1])

        # Before the decoder starts, components of its name only probe the file.
        if name.startswith("dec:"):
            self._decoder_name = name.removeprefix("dec:")
            self._feed_decoder_thread(text)
        elif not self.has_started:
            self._feed_header(text)
        elif name == self._decoder_name:
            for finding in findings_in([(level, name, text)], packet=0):
                self._messages.append(_Message(self._position, address, finding.text))
        elif self.size is None and name.startswith("graph") and (first := _FIRST_FRAME.match(text)):
            self.size, self.pixel_format = (int(first[1]), int(first[2])), first[3]

    def findings(self, demuxer_texts: Collection[str]) -> list[Finding]:
        """Return the decoder's errors in order; a damaged frame has its own number, from 1.

        Args:
            demuxer_texts: messages from demuxing in this process. The parser there logs under the
                decoder's name, and in FFmpeg at any moment. A component all of whose messages are
                among them is that parser, so it is left out.
        """
        # A frame that is marked has its own number; errors have the packet that was decoded then.
        delay = self._decoder_delay()
        texts: dict[str, set[str]] = {}
        for message in self._messages:
            texts.setdefault(message.source, set()).add(message.text)

        findings: list[Finding] = []
        last_position = -1
        for message in self._messages:
            packet = message.position + delay
            if message.source == _MARK:
                findings.append(Finding(message.position, message.text))
            elif message.source == _REFUSAL:
                # Usually the decoder's own message says more than the refusal.
                if message.position != last_position:
                    findings.append(Finding(packet, message.text))
            elif not texts[message.source] <= set(demuxer_texts):
                findings.append(Finding(packet, message.text))
                last_position = message.position
        return findings

    def _decoder_delay(self) -> int:
        """Return how many packets the decoder takes before it returns its first frame."""
        if self._num_before_flush is None:
            return 0
        return len(self.times_seconds) - self._num_before_flush

    def _feed_header(self, text: str) -> None:
        """Read the rotation from the description of the input, the only place that has it."""
        if stream := _STREAM.match(text):
            self._dumped_stream = int(stream[1])
        elif self._dumped_stream == self.stream_index and (rotation := _ROTATION.search(text)):
            self.rotation_degrees = round(float(rotation[1]) / 90) * 90 % 360

    def _feed_decoder_thread(self, text: str) -> None:
        """Use a line of the thread around the decoder."""
        if text == "Starting thread...":
            self.has_started = True
        elif frame := _FRAME.match(text):
            pts, numerator, denominator = frame.groups()
            self.times_seconds.append(int(pts) * int(numerator) / int(denominator))
        elif text == _DAMAGED_FRAME:
            # This line precedes the line of the frame itself.
            index = len(self.times_seconds)
            self.damaged.add(index)
            self._messages.append(_Message(index + 1, _MARK, "the frame is marked corrupt"))
        elif text.startswith("Decoder thread received EOF"):
            self._num_before_flush = len(self.times_seconds)
        elif text.startswith(_NO_FRAME):
            # A refused packet gives no frame, but counts in the position of later errors.
            reason = f"decoding failed: {text.split(': ', 1)[1]}"
            self._messages.append(_Message(self._position, _REFUSAL, reason))
            self._num_refused += 1

    @property
    def _position(self) -> int:
        return len(self.times_seconds) + self._num_refused


def without_path(text: str, path: Path) -> str:
    """Return a message of FFmpeg with the file's name instead of its path on this machine."""
    return text.replace(f"file:{path}", path.name).replace(str(path), path.name)
