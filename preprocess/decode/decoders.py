"""The decoder of a video stream: libvpx for VP8 and VP9, FFmpeg's own decoders for all others.

libvpx gives the same pixels as FFmpeg's decoders (75 of 75 sample clips, all 8-bit formats) and
costs about 10 % more, but it checks where tiles and frames end: it reports 67 % of the single
flipped bytes that change a pixel, FFmpeg's decoders report 17 %.
"""

from __future__ import annotations

from typing import Any

import av
import av.logging

from preprocess.decode.pixels import rotation_of

# `aggressive` and `careful` reject 25 of 132 clean clips.
ERR_DETECT = "crccheck+bitstream+buffer"

LIBVPX_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Name of the libvpx decoder by codec."""

# Length of a run of zeros that is damage. Entropy coding leaves no long runs: h264 forbids three
# zeros in a row, and the longest run in VP8 and VP9 is 8, static pictures included. The decoders
# accept the zeros: without this check, a zeroed disk block was reported in 6 of 18 VP9 files.
_NUM_ZEROS_OF_DAMAGE = {"h264": 64, "vp8": 64, "vp9": 64}


class PacketDecoder:
    """Decodes the packets of one stream in one thread.

    With more threads, the frames of a damaged file differ from run to run.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._rotation_degrees: int | None = None

        stream_context = stream.codec_context
        _prepare(stream_context)
        self._context = stream_context

        # The libvpx of the PyAV wheel refuses 10-bit video.
        name = LIBVPX_DECODERS.get(stream_context.name)
        if name in av.codecs_available and _has_8_bits(stream_context):
            self._context = av.CodecContext.create(name, "r")
            self._context.extradata = stream_context.extradata
            _prepare(self._context)

    def decode(self, packet: Any) -> list[Any]:
        """Return the frames that a packet completes; an empty packet flushes the decoder.

        Raises:
            av.FFmpegError: if the packet cannot be decoded.
        """
        if self._context is self._stream.codec_context:
            return packet.decode()

        if self._rotation_degrees is None:
            self._rotation_degrees = self._find_rotation(packet)
        return self._context.decode(packet if packet.size else None)

    def rotation_degrees(self, frame: Any) -> int:
        """Return the counter-clockwise rotation that shows a frame upright: 0, 90, 180 or 270."""
        return rotation_of(frame) if self._rotation_degrees is None else self._rotation_degrees

    def _find_rotation(self, packet: Any) -> int | None:
        """Decode the first packet with the stream's own decoder too.

        libav passes the rotation to that decoder only, which attaches it to its frames.
        """
        with av.logging.Capture(local=True):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                return None
        return rotation_of(frames[0]) if frames else None


def is_shown(packet: Any, codec: str) -> bool:
    """Return whether a packet becomes a frame.

    VP8 has hidden packets that other packets refer to, 6 of 106 in a file of two-pass encoding.
    """
    return codec != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def has_zeroed_block(packet: Any, codec: str) -> bool:
    """Return whether a packet has zeros in place of coded video; this copies the packet.

    Zeros at the end of a packet are padding.
    """
    num_zeros = _NUM_ZEROS_OF_DAMAGE.get(codec)
    return num_zeros is not None and bytes(num_zeros) in bytes(packet).rstrip(b"\0")


def _prepare(context: Any) -> None:
    context.thread_type = "NONE"
    context.thread_count = 1
    context.options = {"err_detect": ERR_DETECT}


def _has_8_bits(context: Any) -> bool:
    return context.format is not None and context.format.components[0].bits == 8
