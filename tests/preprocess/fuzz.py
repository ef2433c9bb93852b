"""Damage a video file in known ways and judge the copies; used by tests and by scripts/bench."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.logging
import numpy as np

from preprocess.decode.decoders import ERR_DETECT, PacketDecoder
from preprocess.decode.pixels import FrameEncoder
from preprocess.decode.pyav_reader import read_video
from preprocess.decode.verdicts import Verdict
from shards.format.schema import Encoding

# Flips are after the header, in small files after the first tenth.
HEADER_BYTES = 4096

# Only the verdict is tested, not the frames.
_ENCODING = Encoding(frames_per_clip=1)

# Fraction of the single flipped bytes that change a pixel which must be detected; changed values of
# coefficients stay invisible.
MIN_FRACTION_OF_SINGLE_FLIPS = {"mpeg4": 0.60, "h264": 0.75, "vp9": 0.45}

# Of fewer flips, the fraction is chance: vp9 gave 7 of 16 once and 143 of 199 in all.
FEWEST_SINGLE_FLIPS = 30


@dataclass(frozen=True)
class Damage:
    """A way to damage a file."""

    kind: str
    """cut, flip or zero."""

    amount: int
    """Per cent of the file that a cut keeps; bytes that are flipped; consecutive zero bytes."""

    def apply(self, data: bytes, rng: np.random.Generator) -> bytes:
        """Return a damaged copy, a different one for each state of `rng`."""
        if self.kind == "cut":
            return data[: len(data) * self.amount // 100]

        damaged = bytearray(data)
        first = min(HEADER_BYTES, len(data) // 10)
        if self.kind == "zero":
            start = int(rng.integers(first, len(data) - self.amount))
            damaged[start : start + self.amount] = bytes(self.amount)
        else:
            for position in rng.choice(np.arange(first, len(data)), self.amount, replace=False):
                damaged[position] ^= int(rng.integers(1, 256))
        return bytes(damaged)


@dataclass(frozen=True)
class Outcome:
    """The result for one damaged copy."""

    group: str
    """Folder of the clip."""

    clip: str
    codec: str
    damage: Damage

    has_changed: bool
    """Whether a decoded pixel or the number of frames has changed."""

    verdict: Verdict

    @property
    def is_flagged(self) -> bool:
        return self.verdict.name != "ok"


def judge_file(path: Path) -> tuple[str, Verdict]:
    """Return the codec and the verdict of a file."""
    read = read_video(path, FrameEncoder(_ENCODING), _ENCODING)
    return read.stream.codec or "none", read.verdict


def hash_pixels(path: Path) -> str:
    """Hash every frame that is decoded from a file, damaged ones too; errors are skipped."""
    digest = hashlib.sha256()
    with av.logging.Capture(local=True):
        try:
            options = {"err_detect": ERR_DETECT}
            with av.open(str(path), metadata_errors="ignore", options=options) as container:
                stream = container.streams.video[0]
                for frame in _frames(container, stream):
                    for plane in frame.planes:
                        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
                        digest.update(np.ascontiguousarray(rows[: plane.height, : plane.width]))
        except (av.FFmpegError, IndexError, AttributeError):
            digest.update(b"cannot be opened")
    return digest.hexdigest()


def try_damages(
    clip: Path, damages: Iterable[Damage], *, scratch: Path, seed: int, group: str = ""
) -> Iterator[Outcome]:
    """Damage a clip in each way and judge the copies.

    Raises:
        AssertionError: if the clip itself is not ok.
    """
    codec, verdict = judge_file(clip)
    assert verdict.name == "ok", f"{clip.name}: {verdict.reason}"

    pixels, data = hash_pixels(clip), clip.read_bytes()
    clip_seed = int.from_bytes(hashlib.sha256(clip.name.encode()).digest()[:8], "big")
    copy = scratch / f"damaged{clip.suffix}"
    for number, damage in enumerate(damages):
        copy.write_bytes(damage.apply(data, np.random.default_rng([seed, number, clip_seed])))
        has_changed = hash_pixels(copy) != pixels
        yield Outcome(group, clip.name, codec, damage, has_changed, judge_file(copy)[1])


def count_flagged(outcomes: Iterable[Outcome]) -> dict[tuple[str, Damage], tuple[int, int, int]]:
    """Return three counts by codec and damage.

    They are all copies, the copies whose pixels have changed, and those of them that are flagged.
    """
    copies: Counter[tuple[str, Damage]] = Counter()
    changed: Counter[tuple[str, Damage]] = Counter()
    flagged: Counter[tuple[str, Damage]] = Counter()
    for outcome in outcomes:
        row = (outcome.codec, outcome.damage)
        copies[row] += 1
        changed[row] += outcome.has_changed
        flagged[row] += outcome.has_changed and outcome.is_flagged
    return {row: (copies[row], changed[row], flagged[row]) for row in copies}


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    decoder = PacketDecoder(stream)
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        try:
            yield from decoder.decode(packet)
        except av.FFmpegError:
            continue
