"""Which decoder reads a video stream: libvpx for VP8 and VP9, FFmpeg's own for all else.

libvpx gives the same pixels as FFmpeg's decoders (75 of 75 sample clips, all 8-bit formats), costs
about 10 % more, and
checks where tiles and frames end: it sees 67 % of the single flipped bytes that change a pixel, the
    others 17 %."""

from __future__ import annotations

from typing import Any

import av
import av.logging

from preprocess.decode.pixels import rotation_of

ERR_DETECT = "crccheck+bitstream+buffer"  # `aggressive` and `careful` reject 25 of 132 clean clips
LIBVPX_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


# Entropy coding leaves no long runs of zeros (h264 forbids three in a row; longest in VP8 and VP9,
# static pictures
# included: 8), and the decoders take them as they come: a zeroed disk block was seen in 6 of 18 VP9
# files without this.
_ZEROS = {"h264": 64, "vp8": 64, "vp9": 64}


class PacketDecoder:
    """Decodes the packets of one stream in one thread (with more, damaged files differ from run to
    run)."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._rotation_degrees: int | None = None
        own = stream.codec_context
        _prepare(own)
        self._context = own
        name = LIBVPX_DECODERS.get(own.name)
        # the libvpx of the PyAV wheel refuses 10-bit video
        if name in av.codecs_available and _has_8_bits(own):
            self._context = av.CodecContext.create(name, "r")
            self._context.extradata = own.extradata
            _prepare(self._context)

    def decode(self, packet: Any) -> list[Any]:
        """The frames that a packet completes; an empty packet asks for those that wait. Raises:
        av.FFmpegError."""
        if self._context is self._stream.codec_context:
            return packet.decode()
        if self._rotation_degrees is None:
            self._rotation_degrees = self._ask_rotation(packet)
        return self._context.decode(packet if packet.size else None)

    def rotation_degrees(self, frame: Any) -> int:
        """The rotation that shows a frame upright, counter-clockwise: 0, 90, 180 or 270 degrees."""
        return rotation_of(frame) if self._rotation_degrees is None else self._rotation_degrees

    def _ask_rotation(self, packet: Any) -> int | None:
        """Rotation is told to the stream's own decoder alone, which puts it on its frames: let it
        do the first."""
        with av.logging.Capture(local=True):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                return None
        return rotation_of(frames[0]) if frames else None


def is_shown(packet: Any, codec: str) -> bool:
    """Whether a packet becomes a frame: VP8 has packets that are only referred to (6 of 106 in a
    two-pass file)."""
    return codec != "vp8" or bool(bytes(packet)[0] >> 4 & 1)


def has_zeroed_block(packet: Any, codec: str) -> bool:
    """Whether zeros stand where coded video should; zeros at the end of a packet are padding. Costs
    a copy of it."""
    length = _ZEROS.get(codec)
    return length is not None and bytes(length) in bytes(packet).rstrip(b"\0")


def _prepare(context: Any) -> None:
    context.thread_type = "NONE"
    context.thread_count = 1
    context.options = {"err_detect": ERR_DETECT}


def _has_8_bits(context: Any) -> bool:
    return context.format is not None and context.format.components[0].bits == 8
