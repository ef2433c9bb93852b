"""Video file -> stored frames and facts, by PyAV (libav in this process): decoded once, one thread.

Demuxes every stream (cut audio counts), decodes the video stream alone. The verdict's traps: one
decoder thread (with more, damaged files give different frames from run to run), log lines captured
for this thread alone and never repeated lines skipped (libav remembers them across files)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import av.logging
from av.stream import Disposition

from preprocess.decode.containers import Structure, check_container
from preprocess.decode.decoders import ERR_DETECT, PacketDecoder, has_zeroed_block, is_shown
from preprocess.decode.pixels import FrameEncoder
from preprocess.decode.verdicts import Evidence, Finding, LogLine, findings_in, judge
from preprocess.decode.video import ReadVideo, StreamFacts, Survey
from preprocess.planning import stored_indices
from shards.errors import SampleError
from shards.format.schema import Encoding

_EMPTY = Evidence(problem="the file is empty")


@dataclass
class _Pass:
    """What one pass over a file has collected so far."""

    wanted: frozenset[int]
    stream_index: int = 0
    num_stated: int = 0
    stream: StreamFacts = field(default_factory=StreamFacts)
    evidence: Evidence = field(default_factory=Evidence)
    num_packets: int = 0
    num_shown: int = 0
    num_good: int = 0
    num_bad: int = 0
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    last_packet_seconds: float = 0.0
    last_frame_seconds: float | None = None
    kept: dict[int, tuple[bytes, float]] = field(default_factory=dict)


def set_up_logging() -> None:
    """Make libav hand over its lines; once a process, before the first file."""
    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)
    logging.getLogger("libav").setLevel(
        logging.CRITICAL
    )  # lines outside a capture would go to stderr


def read_video(path: Path, encoder: FrameEncoder, encoding: Encoding) -> ReadVideo:
    """Decode a video, keep its evenly spread frames as JPEG, judge it.

    A second pass only if the decoded count is not the expected one. Raises: OSError, SampleError,
    av.FFmpegError."""
    if path.stat().st_size == 0:
        return ReadVideo(StreamFacts(), judge(_EMPTY))
    structure = check_container(path)
    expected = structure.num_blocks or _expect_frames(path)
    done = _read_through(
        path, encoder, frozenset(stored_indices(expected, encoding.frames_per_clip))
    )
    wanted = stored_indices(done.num_good, encoding.frames_per_clip)
    if not done.kept.keys() >= set(wanted):
        counted = done.num_good
        done = _read_through(path, encoder, frozenset(wanted))
        if done.num_good != counted:
            raise SampleError(
                f"decoded {counted} frames, then {done.num_good}: does something write this file?"
            )
    return ReadVideo(
        stream=done.stream,
        verdict=judge(_with_counts(done, structure)),
        num_frames_decoded=done.num_good,
        num_decoder_errors=len(done.findings),
        frames=[done.kept[index][0] for index in wanted],
        source_index=wanted,
        source_time_seconds=[done.kept[index][1] for index in wanted],
        stored_size=_upright(done.size, done.stream.rotation_degrees) if wanted else None,
    )


def survey_video(path: Path) -> Survey:
    """Demux a video to its end and decode nothing. Raises: OSError."""
    if path.stat().st_size == 0:
        return Survey(StreamFacts(), 0, 0, _EMPTY)
    structure = check_container(path)
    done = _read_through(path, None, frozenset())
    return Survey(
        done.stream,
        done.stream_index,
        done.num_stated or done.num_shown,
        _with_counts(done, structure),
    )


def _with_counts(done: _Pass, structure: Structure) -> Evidence:
    return replace(
        done.evidence,
        missing_end=structure.missing,
        inconsistent=structure.inside,
        num_packets=done.num_packets,
        num_packets_shown=done.num_shown,
        num_frames_good=done.num_good,
        num_frames_bad=done.num_bad,
        findings=tuple(done.findings),
    )


def _open(path: Path) -> Any:
    # generated times run backwards in AVI with packed B-frames (HMDB-51)
    return av.open(
        str(path), metadata_errors="ignore", options={"err_detect": ERR_DETECT, "fflags": "-genpts"}
    )


def _expect_frames(path: Path) -> int:
    """The number of frames to expect: stated, else counted by demuxing; 0 if the file cannot be
    read."""
    try:
        with av.logging.Capture(local=True), _open(path) as container:
            stream = _video_stream(container)
            if stream is None:
                return 0
            return _stated_frames(stream) or sum(
                packet.size > 0 for packet in container.demux(stream)
            )
    except (av.FFmpegError, OSError):
        return 0  # the decoding pass says why


def _stated_frames(stream: Any) -> int:
    """The frames that a stream says it has, 0 if it does not."""
    if not stream.frames:
        return 0
    # DivX with packed B-frames (HMDB-51) states one more than there are; a wrong guess costs a pass
    return stream.frames - (stream.codec_context.codec_tag == "DX50")


def _read_through(path: Path, encoder: FrameEncoder | None, wanted: frozenset[int]) -> _Pass:
    """One pass; keeps the frames whose index among the good ones is wanted. Without an encoder
    nothing is decoded."""
    state = _Pass(wanted)
    with av.logging.Capture(local=True) as lines:
        try:
            container = _open(path)
        except av.FFmpegError as error:
            state.evidence = Evidence(problem=f"cannot be opened as a video: {error.strerror}")
            return state
        with container:
            stream = _video_stream(container)
            if stream is None:
                state.evidence = Evidence(problem=_no_stream(container))
                return state
            decoder = PacketDecoder(stream) if encoder else None
            state.stream_index, state.num_stated = stream.index, _stated_frames(stream)
            state.stream = _facts_of(container, stream)
            demuxer = container.format.name
            state.findings += findings_in([line for line in lines if line[1] == demuxer], packet=-1)
            lines.clear()
            _take_packets(container.demux(), decoder, stream, state, encoder, lines)
            state.evidence = _evidence_of(container, stream, state)
    return state


def _take_packets(
    packets: Iterator[Any],
    decoder: PacketDecoder | None,
    stream: Any,
    state: _Pass,
    encoder: FrameEncoder | None,
    lines: list[LogLine],
) -> None:
    """Demux and decode to the end; a broken packet never ends the loop, a broken container does."""
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            state.findings.append(
                Finding(state.num_packets, f"reading failed: {error.strerror}", is_missing=True)
            )
            packet = None
        frames: list[Any] = []
        failure: str | None = None
        if packet is not None:
            frames, failure = _decode_packet(packet, decoder, stream, state)
        found = findings_in(lines, packet=state.num_packets)
        if failure is not None and not found:  # mostly the log says it better
            found = [Finding(state.num_packets, failure)]
        state.findings += found
        if decoder and encoder:
            for frame in frames:
                _take_frame(frame, decoder, state, encoder)
        lines.clear()  # what the scaler said is no evidence
        if packet is None:
            return
        if packet.stream.index == stream.index and packet.size:
            _count_packet(packet, state)


def _decode_packet(
    packet: Any, decoder: PacketDecoder | None, stream: Any, state: _Pass
) -> tuple[list[Any], str | None]:
    """Decode a packet of the video stream; returns its frames and what failed, in words."""
    if packet.stream.index != stream.index:  # flushing packets all have the stream_index 0
        if packet.is_corrupt:
            state.findings.append(
                Finding(state.num_packets, "an audio packet is cut", is_missing=True)
            )
        return [], None
    if packet.is_corrupt:
        state.findings.append(Finding(state.num_packets, "the packet is marked corrupt"))
    if has_zeroed_block(packet, state.stream.codec or ""):
        state.findings.append(Finding(state.num_packets, "zeros stand where coded video should"))
    try:
        return decoder.decode(packet) if decoder else [], None
    except av.FFmpegError as error:
        return [], f"decoding failed: {error.strerror}"


def _count_packet(packet: Any, state: _Pass) -> None:
    state.num_packets += 1
    state.num_shown += is_shown(packet, state.stream.codec or "")
    if packet.pts is not None:
        state.last_packet_seconds = max(
            state.last_packet_seconds, float(packet.pts * packet.time_base)
        )


def _take_frame(frame: Any, decoder: PacketDecoder, state: _Pass, encoder: FrameEncoder) -> None:
    """Count one decoded frame and keep it if it is good and wanted; never a neighbour in its
    place."""
    time = _time_of(frame, state)
    if frame.is_corrupt:
        # a frame comes out some packets after its own, so its place is its own number
        state.findings.append(
            Finding(state.num_good + state.num_bad + 1, "the frame is marked corrupt")
        )
        state.num_bad += 1
        return
    if state.size is None:
        state.size = encoder.size_of(frame)
        state.stream = replace(state.stream, rotation_degrees=decoder.rotation_degrees(frame))
    if state.num_good in state.wanted:
        state.kept[state.num_good] = (
            encoder.encode(frame, state.size, state.stream.rotation_degrees),
            time,
        )
    state.num_good += 1


def _time_of(frame: Any, state: _Pass) -> float:
    """Seconds; where the container has no presentation times, the decoding time, as FFmpeg takes
    it."""
    ticks = frame.dts if frame.pts is None else frame.pts
    if ticks is not None:
        seconds = float(ticks * frame.time_base)
    elif state.last_frame_seconds is None:
        seconds = 0.0
    else:
        seconds = state.last_frame_seconds + 1 / (state.stream.fps or 25.0)
    state.last_frame_seconds = seconds
    return round(seconds, 6)


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a cover picture, if it has a decoder, else None."""
    streams = _moving_pictures(container)
    return streams[0] if streams and streams[0].codec_context is not None else None


def _moving_pictures(container: Any) -> list[Any]:
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]


def _no_stream(container: Any) -> str:
    if _moving_pictures(container):
        return "no decoder for its video stream"
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    return "no video stream" + (f", only {' and '.join(kinds)}" if kinds else "")


def _facts_of(container: Any, stream: Any) -> StreamFacts:
    context = stream.codec_context
    duration = None
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    return StreamFacts(
        codec=context.name,
        fps=round(float(stream.average_rate), 6) if stream.average_rate else None,
        duration_seconds=round(duration, 6) if duration is not None else None,
        width=context.width or None,
        height=context.height or None,
        num_frames_stated=stream.frames or None,
    )


def _evidence_of(container: Any, stream: Any, state: _Pass) -> Evidence:
    """The counts the container states; its duration only for Matroska with one stream (audio may be
    longer)."""
    gap = 0.0
    if "matroska" in container.format.name and len(container.streams) == 1 and container.duration:
        shown = state.last_packet_seconds + (1 / state.stream.fps if state.stream.fps else 0.0)
        gap = container.duration / av.time_base - shown
    return Evidence(
        codec=stream.codec_context.name,
        num_packets_stated=stream.frames or None,
        end_gap_seconds=gap,
        fps=state.stream.fps,
    )


def _upright(size: tuple[int, int] | None, rotation_degrees: int) -> tuple[int, int] | None:
    return size if size is None or rotation_degrees % 180 == 0 else (size[1], size[0])
