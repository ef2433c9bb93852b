"""Video file -> stored frames and facts, with PyAV: libav in this process, one decoder thread.

Every stream is demuxed, since cut audio is evidence too, but only the video stream is decoded. Two
traps of the verdict: with more decoder threads, a damaged file gives different frames from run to
run; and libav skips repeated log lines across files, so that option is turned off and lines are
captured per thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import av.logging

from preprocess.decode.containers import Structure, check_container
from preprocess.decode.decoders import PacketDecoder, has_zeroed_block, is_shown
from preprocess.decode.pixels import FrameEncoder
from preprocess.decode.pyav_container import (
    expect_frames,
    no_stream_reason,
    num_stated_frames,
    open_container,
    stream_facts,
    video_stream,
)
from preprocess.decode.verdicts import Evidence, Finding, LogLine, findings_in, judge
from preprocess.decode.video import ReadVideo, StreamFacts, Survey
from preprocess.planning import stored_indices
from shards.errors import SampleError
from shards.format.schema import Encoding

_EMPTY = Evidence(problem="the file is empty")


def set_up_logging() -> None:
    """Make libav pass its log lines to captures; call it once per process, before any file."""
    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)

    # Lines outside a capture would be printed to stderr.
    logging.getLogger("libav").setLevel(logging.CRITICAL)


def read_video(path: Path, encoder: FrameEncoder, encoding: Encoding) -> ReadVideo:
    """Decode a video, keep evenly spread frames as JPEG, and judge it.

    The frames to keep depend on the number of decoded frames, so a file whose expected number is
    wrong is decoded a second time.

    Raises:
        OSError: if the file cannot be read.
        SampleError: if two passes decode different numbers of frames.
        av.FFmpegError: if libav fails outside of demuxing and decoding.
    """
    if path.stat().st_size == 0:
        return ReadVideo(StreamFacts(), judge(_EMPTY))

    # Matroska states no number of frames, but its blocks are counted by the structural check.
    structure = check_container(path)
    num_expected = structure.num_blocks or expect_frames(path)
    expected = stored_indices(num_expected, encoding.frames_per_clip)
    state = _read_through(path, encoder, frozenset(expected))

    # Damaged frames and wrong headers change the number of frames, and with it the wanted ones.
    wanted = stored_indices(state.num_good, encoding.frames_per_clip)
    if not state.kept.keys() >= set(wanted):
        num_first = state.num_good
        state = _read_through(path, encoder, frozenset(wanted))
        if state.num_good != num_first:
            raise SampleError(
                f"decoded {num_first} frames, then {state.num_good}: does something write this "
                "file?"
            )

    rotation_degrees = state.stream.rotation_degrees
    return ReadVideo(
        stream=state.stream,
        verdict=judge(_with_counts(state, structure)),
        num_frames_decoded=state.num_good,
        num_decoder_errors=len(state.findings),
        frames=[state.kept[index][0] for index in wanted],
        source_index=wanted,
        source_time_seconds=[state.kept[index][1] for index in wanted],
        stored_size=_upright(state.size, rotation_degrees) if wanted else None,
    )


def survey_video(path: Path) -> Survey:
    """Demux a video to its end without decoding it.

    Raises:
        OSError: if the file cannot be read.
    """
    if path.stat().st_size == 0:
        return Survey(StreamFacts(), 0, 0, _EMPTY)

    structure = check_container(path)
    state = _read_through(path, None, frozenset())
    return Survey(
        stream=state.stream,
        stream_index=state.stream_index,
        num_frames_expected=state.num_stated or state.num_shown,
        evidence=_with_counts(state, structure),
    )


@dataclass
class _Pass:
    """The state of one pass over a file."""

    wanted: frozenset[int]
    """Indices among the good frames of those to keep."""

    stream_index: int = 0
    num_stated: int = 0
    stream: StreamFacts = field(default_factory=StreamFacts)
    evidence: Evidence = field(default_factory=Evidence)
    findings: list[Finding] = field(default_factory=list)

    num_packets: int = 0
    num_shown: int = 0
    last_packet_seconds: float = 0.0

    num_good: int = 0
    num_bad: int = 0
    last_frame_seconds: float | None = None

    size: tuple[int, int] | None = None
    """Stored (width, height) before rotation; None before the first good frame."""

    kept: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    """JPEG bytes and time in seconds by index among the good frames."""


def _with_counts(state: _Pass, structure: Structure) -> Evidence:
    return replace(
        state.evidence,
        missing_end=structure.missing,
        inconsistent=structure.inside,
        num_packets=state.num_packets,
        num_packets_shown=state.num_shown,
        num_frames_good=state.num_good,
        num_frames_bad=state.num_bad,
        findings=tuple(state.findings),
    )


def _read_through(path: Path, encoder: FrameEncoder | None, wanted: frozenset[int]) -> _Pass:
    """Make one pass over a file.

    Args:
        path: the video.
        encoder: for the wanted frames; None demuxes without decoding.
        wanted: indices among the good frames of those to keep.
    """
    state = _Pass(wanted)

    with av.logging.Capture(local=True) as lines:
        try:
            container = open_container(path)
        except av.FFmpegError as error:
            problem = f"cannot be opened as a video: {error.strerror}"
            state.evidence = Evidence(problem=problem)
            return state

        with container:
            stream = video_stream(container)
            if stream is None:
                state.evidence = Evidence(problem=no_stream_reason(container))
                return state

            decoder = PacketDecoder(stream) if encoder else None
            state.stream_index, state.num_stated = stream.index, num_stated_frames(stream)
            state.stream = stream_facts(container, stream)

            # While opening, only the demuxer's own lines are evidence: codecs probe the data.
            demuxer = container.format.name
            opening = [line for line in lines if line[1] == demuxer]
            state.findings += findings_in(opening, packet=-1)
            lines.clear()

            _read_packets(container.demux(), decoder, stream, state, encoder, lines)
            state.evidence = _evidence_of(container, stream, state)
    return state


def _read_packets(
    packets: Iterator[Any],
    decoder: PacketDecoder | None,
    stream: Any,
    state: _Pass,
    encoder: FrameEncoder | None,
    lines: list[LogLine],
) -> None:
    """Demux and decode to the end; a broken container ends the loop, a broken packet does not."""
    while True:
        packet = _next_packet(packets, state)
        frames: list[Any] = []
        failure: str | None = None
        if packet is not None:
            frames, failure = _decode_packet(packet, decoder, stream, state)

        findings = findings_in(lines, packet=state.num_packets)
        if failure is not None and not findings:
            # Usually the log says more about a failure than its error code.
            findings = [Finding(state.num_packets, failure)]
        state.findings += findings

        if decoder and encoder:
            for frame in frames:
                _take_frame(frame, decoder, state, encoder)

        # The lines of the scaler are no evidence.
        lines.clear()

        if packet is None:
            return
        if packet.stream.index == stream.index and packet.size:
            _count_packet(packet, state)


def _next_packet(packets: Iterator[Any], state: _Pass) -> Any:
    """Return the next packet, or None at the end and where reading fails."""
    try:
        return next(packets, None)
    except av.FFmpegError as error:
        text = f"reading failed: {error.strerror}"
        state.findings.append(Finding(state.num_packets, text, is_missing=True))
        return None


def _decode_packet(
    packet: Any, decoder: PacketDecoder | None, stream: Any, state: _Pass
) -> tuple[list[Any], str | None]:
    """Decode a packet of the video stream and note damage that the packet itself shows.

    Returns:
        The frames, and the error of the decoder or None.
    """
    # Packets that flush the decoder all have the stream index 0.
    if packet.stream.index != stream.index:
        if packet.is_corrupt:
            cut = Finding(state.num_packets, "an audio packet is cut", is_missing=True)
            state.findings.append(cut)
        return [], None

    # A marked packet is decoded anyway: its frame may be whole.
    if packet.is_corrupt:
        state.findings.append(Finding(state.num_packets, "the packet is marked corrupt"))
    if has_zeroed_block(packet, state.stream.codec or ""):
        state.findings.append(Finding(state.num_packets, "zeros stand where coded video should"))

    if decoder is None:
        return [], None
    try:
        return decoder.decode(packet), None
    except av.FFmpegError as error:
        return [], f"decoding failed: {error.strerror}"


def _count_packet(packet: Any, state: _Pass) -> None:
    state.num_packets += 1
    state.num_shown += is_shown(packet, state.stream.codec or "")

    # With B-frames, packets are not in the order of their times.
    if packet.pts is not None:
        seconds = float(packet.pts * packet.time_base)
        state.last_packet_seconds = max(state.last_packet_seconds, seconds)


def _take_frame(frame: Any, decoder: PacketDecoder, state: _Pass, encoder: FrameEncoder) -> None:
    """Count one decoded frame and keep it if it is good and wanted.

    A damaged frame is left out; no neighbour replaces it.
    """
    seconds = _seconds_of(frame, state)

    if frame.is_corrupt:
        # A frame comes out some packets after its own, so the finding has the frame's number.
        number = state.num_good + state.num_bad + 1
        state.findings.append(Finding(number, "the frame is marked corrupt"))
        state.num_bad += 1
        return

    # The first good frame decides the stored size: a later change of size is scaled to it.
    if state.size is None:
        state.size = encoder.size_of(frame)
        state.stream = replace(state.stream, rotation_degrees=decoder.rotation_degrees(frame))

    if state.num_good in state.wanted:
        data = encoder.encode(frame, state.size, state.stream.rotation_degrees)
        state.kept[state.num_good] = (data, seconds)
    state.num_good += 1


def _seconds_of(frame: Any, state: _Pass) -> float:
    """Return the presentation time of a frame in seconds.

    Where the container has none it is the decoding time, as in FFmpeg, or else one frame period
    after the last frame.
    """
    ticks = frame.dts if frame.pts is None else frame.pts
    if ticks is not None:
        seconds = float(ticks * frame.time_base)
    elif state.last_frame_seconds is None:
        seconds = 0.0
    else:
        seconds = state.last_frame_seconds + 1 / (state.stream.fps or 25.0)

    state.last_frame_seconds = seconds
    return round(seconds, 6)


def _evidence_of(container: Any, stream: Any, state: _Pass) -> Evidence:
    """Return what the container states about its end.

    Its duration is used for Matroska with a single stream only: audio may be longer than video.
    """
    gap = 0.0
    is_single_matroska = "matroska" in container.format.name and len(container.streams) == 1
    if is_single_matroska and container.duration:
        # The last frame is shown for one frame period.
        frame_seconds = 1 / state.stream.fps if state.stream.fps else 0.0
        end_seconds = state.last_packet_seconds + frame_seconds
        gap = container.duration / av.time_base - end_seconds

    return Evidence(
        codec=stream.codec_context.name,
        num_packets_stated=stream.frames or None,
        end_gap_seconds=gap,
        fps=state.stream.fps,
    )


def _upright(size: tuple[int, int] | None, rotation_degrees: int) -> tuple[int, int] | None:
    """Return (width, height) after rotation."""
    if size is None or rotation_degrees % 180 == 0:
        return size
    return size[1], size[0]
