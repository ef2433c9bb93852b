"""Video file -> stored frames and facts, by one FFmpeg process a video: `--decoder ffmpeg`.

The container is read in this process (its facts, packet counts, what the demuxer says), nothing is
decoded here. The process decodes all frames with one thread and hands over the wanted ones as raw
planes, already scaled; its log is the decoder's part of the evidence. It is killed by the kernel
when this process ends, however that ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np

from preprocess.decode.decoders import ERR_DETECT, LIBVPX_DECODERS
from preprocess.decode.ffmpeg_log import DecodeLog, without_path
from preprocess.decode.ffmpeg_process import check_ffmpeg, find_ffmpeg, running
from preprocess.decode.pixels import stored_size
from preprocess.decode.pyav_reader import survey_video
from preprocess.decode.verdicts import Evidence, judge
from preprocess.decode.video import ReadVideo, Survey
from preprocess.planning import stored_indices
from shards.errors import SampleError
from shards.format import jpeg
from shards.format.schema import Encoding

# Codecs that do not say where colour samples lie. The others say `left` and the scaler keeps that
# in PyAV; FFmpeg's
# filter would move them to the centre (up to 0.35 grey levels on average).
_NO_CHROMA_PLACE = ("vp8", "vp9", "av1", "mjpeg")
_SOFTWARE_FORMATS = ("yuv420p", "yuvj420p", "yuv420p10le")  # hardware gives nv12 or p010 instead


@dataclass
class _Run:
    """What one FFmpeg process has given: its log and, by index among all frames, the kept ones as
    raw planes."""

    log: DecodeLog
    size: tuple[int, int]
    kept: dict[int, bytes] = field(default_factory=dict)
    exit_code: int = 0

    @property
    def good(self) -> list[int]:
        """Indices of the frames that decoded without an error."""
        return [
            index for index in range(len(self.log.times_seconds)) if index not in self.log.damaged
        ]


class FfmpegReader:
    """Reads one video at a time; the same frames as `preprocess.decode.pyav_reader.read_video`."""

    def __init__(self, encoding: Encoding, hwaccel: str | None = None) -> None:
        """Raises: ConfigError if there is no FFmpeg, or it cannot use that hardware here."""
        check_ffmpeg(hwaccel)
        self._encoding = encoding
        self._hwaccel = hwaccel
        self._in_software: set[str] = set()

    def read(self, path: Path) -> ReadVideo:
        """Decode a video, keep its evenly spread frames as JPEG, judge it.

        A second process only if the first decoded another number of good frames, or another size,
        than the container
        made expect. Raises: OSError, SampleError."""
        survey = survey_video(path)
        if survey.evidence.problem is not None:
            return ReadVideo(survey.stream, judge(survey.evidence))
        num_kept = self._encoding.frames_per_clip
        done = self._decode(
            path, survey, stored_indices(survey.num_frames_expected, num_kept), _size_of(survey)
        )
        wanted = stored_indices(len(done.good), num_kept)
        needed = [done.good[index] for index in wanted]
        size = done.log.size or done.size
        if not done.kept.keys() >= set(needed) or size != done.size:
            counted = done.good
            done = self._decode(path, survey, needed, size)
            if done.good != counted:
                was, now = len(counted), len(done.good)
                raise SampleError(
                    f"decoded {was} frames, then {now}: does something write this file?"
                )
        self._tell_software(done.log, survey)
        evidence = _evidence_of(survey.evidence, done, path)
        rotation = done.log.rotation_degrees if wanted else 0
        width, height = stored = stored_size(*size, short_side_px=self._encoding.short_side_px)
        return ReadVideo(
            stream=replace(survey.stream, rotation_degrees=rotation),
            verdict=judge(evidence),
            num_frames_decoded=len(done.good),
            num_decoder_errors=len(evidence.findings),
            frames=[self._encode(done.kept[index], stored, rotation) for index in needed],
            source_index=wanted,
            source_time_seconds=[round(done.log.times_seconds[index], 6) for index in needed],
            stored_size=((height, width) if rotation % 180 else stored) if wanted else None,
        )

    def _decode(
        self, path: Path, survey: Survey, wanted: Sequence[int], size: tuple[int, int]
    ) -> _Run:
        """Run one process; `size` is that of the decoded frames. Raises: OSError, SampleError."""
        run = _Run(DecodeLog(survey.stream_index), size)
        stored = stored_size(*size, short_side_px=self._encoding.short_side_px)
        command = _command(path, survey, wanted, stored, self._hwaccel)
        with running(command, run.log.feed) as process:
            assert process.stdout is not None
            num_bytes = sum(height * width for height, width in _planes(stored))
            delivered: list[bytes] = []
            while (
                len(delivered) < len(wanted)
                and len(data := process.stdout.read(num_bytes)) == num_bytes
            ):
                delivered.append(data)
            run.exit_code = process.wait()
        decoded = [index for index in wanted if index < len(run.log.times_seconds)]
        if run.exit_code < 0:
            raise SampleError(f"FFmpeg was ended by signal {-run.exit_code}")
        if run.log.num_counted != len(run.log.times_seconds):
            listed = len(run.log.times_seconds)
            raise SampleError(
                f"FFmpeg counted {run.log.num_counted} frames and its log lists {listed}"
            )
        if len(delivered) != len(decoded):
            said = without_path(run.log.last_error, path) or "it said nothing"
            raise SampleError(f"FFmpeg gave {len(delivered)} of {len(decoded)} frames: {said}")
        run.kept = dict(zip(decoded, reversed(delivered), strict=True))
        return run

    def _encode(self, data: bytes, size: tuple[int, int], rotation_degrees: int) -> bytes:
        """Cut one raw frame of (width, height) into its planes [height, width], turn it upright,
        encode it."""
        planes, start = [], 0
        for height, width in _planes(size):
            plane = np.frombuffer(data, np.uint8, height * width, start).reshape(height, width)
            planes.append(np.ascontiguousarray(np.rot90(plane, rotation_degrees // 90)))
            start += height * width
        return jpeg.encode_planes(*planes, quality=self._encoding.jpeg_quality)

    def _tell_software(self, log: DecodeLog, survey: Survey) -> None:
        """Say once a codec that the hardware that was asked for does not decode it."""
        codec = survey.stream.codec or "unknown"
        if (
            self._hwaccel is not None
            and log.pixel_format in _SOFTWARE_FORMATS
            and codec not in self._in_software
        ):
            self._in_software.add(codec)
            print(
                f"--hwaccel {self._hwaccel}: FFmpeg decodes {codec} on the CPU instead",
                file=sys.stderr,
            )


def _command(
    path: Path, survey: Survey, wanted: Sequence[int], size: tuple[int, int], hwaccel: str | None
) -> list[str]:
    """Decode everything, hand over some frames scaled to `size` (before rotation) as raw full-range
    planes."""
    reading: dict[str, Any] = {
        "hide_banner": None,
        "nostdin": None,
        "nostats": None,
        "loglevel": "repeat+level+verbose",
        "debug_ts": None,
        "copyts": None,  # times as they stand in the file
        "protocol_whitelist": "file",  # a playlist in disguise opens nothing elsewhere
        "max_error_rate": 1,
        "err_detect": ERR_DETECT,
        "threads": 1,  # with more, damaged files give different frames from run to run
        "filter_threads": 1,
        "noautorotate": None,
        "reinit_filter": 0,  # a new filter would count its frames from 0 again
    }
    if hwaccel is not None:
        reading["hwaccel"] = hwaccel
    elif survey.stream.codec in LIBVPX_DECODERS:
        reading["c:v"] = LIBVPX_DECODERS[survey.stream.codec]
    flags = "bicubic+accurate_rnd+full_chroma_int+bitexact"
    place = (
        "" if survey.stream.codec in _NO_CHROMA_PLACE else ":in_chroma_loc=left:out_chroma_loc=left"
    )
    # interl=-1: interlaced frames by their two fields, as PyAV does
    scale = f"scale={size[0]}:{size[1]}:flags={flags}:interl=-1:out_range=full:out_color_matrix=bt601{place}"
    stream = ffmpeg.input(f"file:{path}", **reading)[str(survey.stream_index)]
    raw = {
        # reversed, nothing comes out before the last frame is decoded: the description of the
        # output is printed in
        # pieces and tore a line of the decoder in 1 of 450 runs
        "vf": f"select='{_select(wanted)}',{scale},format=yuv420p,reverse",
        "fps_mode": "passthrough",  # no frame twice, none left out
        "f": "rawvideo",
    }
    return list(stream.output("pipe:1", **raw).compile(cmd=find_ffmpeg()))


def _select(indices: Sequence[int]) -> str:
    """An expression of FFmpeg that is true for ascending frame numbers; a tree, as it takes no sum
    of 999 terms."""
    if not indices:
        return "0"
    if len(indices) == 1:
        return f"eq(n,{indices[0]})"
    middle = len(indices) // 2
    return f"if(lt(n,{indices[middle]}),{_select(indices[:middle])},{_select(indices[middle:])})"


def _size_of(survey: Survey) -> tuple[int, int]:
    """(width, height) of the frames as the file states it; any other makes a second process
    necessary."""
    return survey.stream.width or 16, survey.stream.height or 16


def _planes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of the three planes of a 4:2:0 frame of (width, height)."""
    width, height = size
    chroma = ((height + 1) // 2, (width + 1) // 2)
    return [(height, width), chroma, chroma]


def _evidence_of(survey: Evidence, run: _Run, path: Path) -> Evidence:
    """What the container showed, with what FFmpeg counted and said."""
    if not run.log.has_started:
        said = without_path(run.log.last_error, path) or f"exit code {run.exit_code}"
        return replace(survey, problem=f"FFmpeg does not decode it: {said}")
    heard = {finding.text for finding in survey.findings}
    findings = (*survey.findings, *run.log.findings(heard))
    return replace(
        survey,
        num_frames_good=len(run.good),
        num_frames_bad=len(run.log.damaged),
        findings=findings,
    )
