"""Video file -> stored frames and facts, with one FFmpeg process per video: `--decoder ffmpeg`.

The container is read in this process (its facts, packet counts and the demuxer's messages), but
nothing is decoded here. FFmpeg decodes all frames with one thread and writes the wanted ones to a
pipe as raw planes, already scaled; its log is the decoder's part of the evidence. The kernel kills
FFmpeg when this process ends, however it ends.
"""

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

# Codecs that do not state the position of colour samples. The others state `left`, which the
# scaler keeps in PyAV; FFmpeg's filter would move the samples to the centre, up to 0.35 grey
# levels on average.
_NO_CHROMA_POSITION = ("vp8", "vp9", "av1", "mjpeg")

# Hardware decoders return nv12 or p010 instead.
_SOFTWARE_FORMATS = ("yuv420p", "yuvj420p", "yuv420p10le")


@dataclass
class _Run:
    """The result of one FFmpeg process."""

    log: DecodeLog

    size: tuple[int, int]
    """(width, height) of the decoded frames that was assumed."""

    kept: dict[int, bytes] = field(default_factory=dict)
    """Raw planes of the wanted frames, by index among all decoded frames."""

    exit_code: int = 0

    @property
    def good(self) -> list[int]:
        """Indices of the frames that were decoded without an error."""
        num_frames = len(self.log.times_seconds)
        return [index for index in range(num_frames) if index not in self.log.damaged]


class FfmpegReader:
    """Reads one video at a time; the same frames as `preprocess.decode.pyav_reader.read_video`."""

    def __init__(self, encoding: Encoding, hwaccel: str | None = None) -> None:
        """Check FFmpeg.

        Args:
            encoding: how frames are chosen, scaled and encoded.
            hwaccel: FFmpeg's name of a hardware decoder.

        Raises:
            ConfigError: if there is no FFmpeg, or it cannot use the hardware decoder.
        """
        check_ffmpeg(hwaccel)
        self._encoding = encoding
        self._hwaccel = hwaccel
        self._software_codecs: set[str] = set()

    def read(self, path: Path) -> ReadVideo:
        """Decode a video, keep evenly spread frames as JPEG, and judge it.

        A second process is needed only if the first one decoded another number of good frames, or
        another size, than the container made expect.

        Raises:
            OSError: if the file cannot be read.
            SampleError: if FFmpeg fails, or two processes decode different frames.
        """
        survey = survey_video(path)
        if survey.evidence.problem is not None:
            return ReadVideo(survey.stream, judge(survey.evidence))

        run, wanted = self._decode_wanted(path, survey)
        self._report_software_decoding(run.log, survey)

        # Stored indices count the good frames, FFmpeg's counts all of them.
        needed = [run.good[index] for index in wanted]
        evidence = _evidence_of(survey.evidence, run, path)
        rotation = run.log.rotation_degrees if wanted else 0
        size = stored_size(*run.size, short_side_px=self._encoding.short_side_px)
        upright = size if rotation % 180 == 0 else size[::-1]

        return ReadVideo(
            stream=replace(survey.stream, rotation_degrees=rotation),
            verdict=judge(evidence),
            num_frames_decoded=len(run.good),
            num_decoder_errors=len(evidence.findings),
            frames=[self._encode(run.kept[index], size, rotation) for index in needed],
            source_index=wanted,
            source_time_seconds=[round(run.log.times_seconds[index], 6) for index in needed],
            stored_size=upright if wanted else None,
        )

    def _decode_wanted(self, path: Path, survey: Survey) -> tuple[_Run, list[int]]:
        """Decode until the wanted frames are known and kept.

        Returns:
            The last process, and the indices of the wanted frames among its good ones.
        """
        num_kept = self._encoding.frames_per_clip
        expected = stored_indices(survey.num_frames_expected, num_kept)
        run = self._decode(path, survey, expected, _size_of(survey))

        wanted = stored_indices(len(run.good), num_kept)
        needed = [run.good[index] for index in wanted]
        size = run.log.size or run.size
        if run.kept.keys() >= set(needed) and size == run.size:
            return run, wanted

        # Now the number of good frames and the size are known.
        first_good = run.good
        run = self._decode(path, survey, needed, size)
        if run.good != first_good:
            raise SampleError(
                f"decoded {len(first_good)} frames, then {len(run.good)}: does something write "
                "this file?"
            )
        return run, wanted

    def _decode(
        self, path: Path, survey: Survey, wanted: Sequence[int], size: tuple[int, int]
    ) -> _Run:
        """Run one FFmpeg process.

        Args:
            path: the video.
            survey: of the video.
            wanted: indices of the frames to keep among all decoded frames, ascending.
            size: (width, height) of the decoded frames.

        Raises:
            SampleError: if FFmpeg is killed, or gives other frames than its log lists.
        """
        run = _Run(DecodeLog(survey.stream_index), size)
        stored = stored_size(*size, short_side_px=self._encoding.short_side_px)
        num_bytes = sum(height * width for height, width in _planes(stored))

        command = _command(path, survey, wanted, stored, self._hwaccel)
        with running(command, run.log.feed) as process:
            assert process.stdout is not None
            delivered: list[bytes] = []
            while len(delivered) < len(wanted):
                data = process.stdout.read(num_bytes)
                if len(data) < num_bytes:
                    break
                delivered.append(data)
            run.exit_code = process.wait()

        _check_run(run)
        num_listed = len(run.log.times_seconds)
        decoded = [index for index in wanted if index < num_listed]
        if len(delivered) != len(decoded):
            reason = without_path(run.log.last_error, path) or "it said nothing"
            raise SampleError(f"FFmpeg gave {len(delivered)} of {len(decoded)} frames: {reason}")

        # FFmpeg writes the frames in reverse order, see `_command`.
        run.kept = dict(zip(decoded, reversed(delivered), strict=True))
        return run

    def _encode(self, data: bytes, size: tuple[int, int], rotation_degrees: int) -> bytes:
        """Encode one raw frame of (width, height) as an upright JPEG."""
        planes = []
        start = 0
        for height, width in _planes(size):
            plane = np.frombuffer(data, np.uint8, height * width, start).reshape(height, width)
            planes.append(np.ascontiguousarray(np.rot90(plane, rotation_degrees // 90)))
            start += height * width
        return jpeg.encode_planes(*planes, quality=self._encoding.jpeg_quality)

    def _report_software_decoding(self, log: DecodeLog, survey: Survey) -> None:
        """Print, once per codec, that the requested hardware does not decode it."""
        codec = survey.stream.codec or "unknown"
        if self._hwaccel is None or log.pixel_format not in _SOFTWARE_FORMATS:
            return
        if codec not in self._software_codecs:
            self._software_codecs.add(codec)
            print(
                f"--hwaccel {self._hwaccel}: FFmpeg decodes {codec} on the CPU instead",
                file=sys.stderr,
            )


def _check_run(run: _Run) -> None:
    """Check that FFmpeg ended by itself and that its log is complete.

    Raises:
        SampleError: if not.
    """
    if run.exit_code < 0:
        raise SampleError(f"FFmpeg was ended by signal {-run.exit_code}")

    num_listed = len(run.log.times_seconds)
    if run.log.num_counted != num_listed:
        raise SampleError(
            f"FFmpeg counted {run.log.num_counted} frames and its log lists {num_listed}"
        )


def _command(
    path: Path, survey: Survey, wanted: Sequence[int], size: tuple[int, int], hwaccel: str | None
) -> list[str]:
    """Return the command that decodes everything and writes the wanted frames as raw planes.

    Args:
        path: the video.
        survey: of the video.
        wanted: indices of the frames to write among all decoded frames, ascending.
        size: (width, height) to scale them to, before rotation.
        hwaccel: FFmpeg's name of a hardware decoder.
    """
    reading: dict[str, Any] = {
        "hide_banner": None,
        "nostdin": None,
        "nostats": None,
        "loglevel": "repeat+level+verbose",
        "debug_ts": None,
        "copyts": None,  # times as the file states them
        "protocol_whitelist": "file",  # a playlist in disguise opens nothing elsewhere
        "max_error_rate": 1,
        "err_detect": ERR_DETECT,
        "threads": 1,  # with more, a damaged file gives different frames from run to run
        "filter_threads": 1,
        "noautorotate": None,
        "reinit_filter": 0,  # a new filter would count its frames from 0 again
    }
    if hwaccel is not None:
        reading["hwaccel"] = hwaccel
    elif survey.stream.codec in LIBVPX_DECODERS:
        reading["c:v"] = LIBVPX_DECODERS[survey.stream.codec]

    stream = ffmpeg.input(f"file:{path}", **reading)[str(survey.stream_index)]
    writing = {
        # `reverse` holds all frames back until the last one is decoded. Otherwise the description
        # of the output is printed in pieces and tore a line of the decoder in 1 of 450 runs.
        "vf": f"select='{_select(wanted)}',{_scale(survey, size)},format=yuv420p,reverse",
        "fps_mode": "passthrough",  # no frame is repeated or dropped
        "f": "rawvideo",
    }
    return list(stream.output("pipe:1", **writing).compile(cmd=find_ffmpeg()))


def _scale(survey: Survey, size: tuple[int, int]) -> str:
    """Return the filter that scales to (width, height) and to full-range BT.601."""
    options = [
        f"{size[0]}:{size[1]}",
        "flags=bicubic+accurate_rnd+full_chroma_int+bitexact",
        "interl=-1",  # interlaced frames by their two fields, as in PyAV
        "out_range=full",
        "out_color_matrix=bt601",
    ]
    if survey.stream.codec not in _NO_CHROMA_POSITION:
        options.append("in_chroma_loc=left:out_chroma_loc=left")
    return f"scale={':'.join(options)}"


def _select(indices: Sequence[int]) -> str:
    """Return an expression of FFmpeg that is true for these ascending frame numbers.

    It is a binary tree, since FFmpeg rejects a sum of 999 terms.
    """
    if not indices:
        return "0"
    if len(indices) == 1:
        return f"eq(n,{indices[0]})"
    middle = len(indices) // 2
    return f"if(lt(n,{indices[middle]}),{_select(indices[:middle])},{_select(indices[middle:])})"


def _size_of(survey: Survey) -> tuple[int, int]:
    """Return (width, height) of the frames as the file states it; it may be wrong."""
    return survey.stream.width or 16, survey.stream.height or 16


def _planes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (height, width) of the three planes of a 4:2:0 frame of (width, height)."""
    width, height = size
    chroma = ((height + 1) // 2, (width + 1) // 2)
    return [(height, width), chroma, chroma]


def _evidence_of(survey: Evidence, run: _Run, path: Path) -> Evidence:
    """Return the evidence of the container with FFmpeg's counts and messages."""
    if not run.log.has_started:
        reason = without_path(run.log.last_error, path) or f"exit code {run.exit_code}"
        return replace(survey, problem=f"FFmpeg does not decode it: {reason}")

    demuxer_texts = {finding.text for finding in survey.findings}
    return replace(
        survey,
        num_frames_good=len(run.good),
        num_frames_bad=len(run.log.damaged),
        findings=(*survey.findings, *run.log.findings(demuxer_texts)),
    )
