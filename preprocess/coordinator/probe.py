"""Decode some of the videos of a build for about two seconds and measure their costs.

The probe is a small build: as many workers, the same decoder, and samples encoded one at a time by
this process. Its clips come in an order of which every beginning is spread evenly over file types
and sizes. No file is written.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from preprocess.records.rows import sample_facts
from preprocess.sources import SourceVideo
from preprocess.workers.child import Decoded, DecodeOptions
from preprocess.workers.in_order import InOrder
from preprocess.workers.local import LocalWorkers, limit_seconds
from shards.format.writer import encode_sample

PROBE_SECONDS = 2.0

# Per probed video, more for a large one: a dry run must not wait minutes for a decoder that hangs.
_LONGEST_SECONDS = 30.0

_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Cost:
    """The cost of one video in a build."""

    decode_seconds: float
    """Time of a worker."""

    write_seconds: float
    """Time of the coordinator."""

    tar_bytes: float
    """0 if nothing of the video is stored."""


@dataclass(frozen=True)
class Probe:
    """The measurements of a probe; videos are named by position."""

    costs: dict[int, Cost]
    """Of the videos that ended."""

    cut_off: dict[int, float]
    """Seconds that each video ran which did not end in time."""

    start_seconds: float
    """Time until all workers answered."""

    import_seconds: float
    """Time of the coordinator's imports for its first sample."""

    seconds: float


def file_type(video: SourceVideo) -> str:
    """Return the suffix of a video's file in lower case."""
    return video.path.suffix.lower()


def probe_order(videos: Sequence[SourceVideo], *, seed: int) -> list[int]:
    """Return positions in an order of which every beginning has all file types and sizes.

    Multiples of the golden ratio modulo 1, shifted by a random number, are spread evenly wherever
    they are cut off. On sample clips (12 Kinetics clips in 2 s), the errors are a third of those
    of a random order.
    """
    # Neighbours in this ranking are similar, so even steps through it are a fair sample.
    ranked = sorted(
        range(len(videos)),
        key=lambda position: (file_type(videos[position]), videos[position].num_bytes),
    )
    shift = random.Random(seed).random()
    ranks = sorted(range(len(ranked)), key=lambda rank: (shift + rank * _GOLDEN_RATIO) % 1)
    return [ranked[rank] for rank in ranks]


def probe_videos(
    videos: Sequence[SourceVideo], options: DecodeOptions, *, num_workers: int, seed: int
) -> Probe:
    """Decode videos with local workers for two seconds and encode their samples.

    Videos that have begun by then are decoded to their end. Each worker has a thread of its own,
    so that each video can be timed.

    Args:
        videos: to choose from.
        options: settings of the workers.
        num_workers: workers of the probe.
        seed: of the order.

    Raises:
        ConfigError: if no worker can start.
    """
    order = probe_order(videos, seed=seed)
    num_workers = min(num_workers, len(videos))
    limited = replace(options, timeout_seconds=min(options.timeout_seconds, _LONGEST_SECONDS))
    # A build encodes one sample at a time, whatever its number of workers.
    writer = Lock()

    with ExitStack() as stack, ThreadPoolExecutor(num_workers) as threads:
        begun = time.monotonic()
        workers = []
        for _ in range(num_workers):
            workers.append(InOrder(stack.enter_context(LocalWorkers(1, limited))))
        list(threads.map(_start, workers))
        started = time.monotonic()

        # The first sample pays for the imports of the writer.
        encode_sample("", [], {})
        ready = time.monotonic()

        # Every slice of the order is spread evenly too.
        def probe_slice(number: int) -> dict[int, Cost]:
            positions = order[number::num_workers]
            own_videos = [videos[position] for position in positions]
            own_costs = _probe_in_turn(workers[number], own_videos, ready, writer)
            return dict(zip(positions, own_costs, strict=False))

        measured: dict[int, Cost] = {}
        for own_costs in threads.map(probe_slice, range(num_workers)):
            measured.update(own_costs)
        seconds = time.monotonic() - ready

    cut_off = {
        position: cost.decode_seconds
        for position, cost in measured.items()
        if _is_cut_off(cost, videos[position], options, limited)
    }
    return Probe(
        costs={position: cost for position, cost in measured.items() if position not in cut_off},
        cut_off=cut_off,
        start_seconds=started - begun,
        import_seconds=ready - started,
        seconds=seconds,
    )


def _is_cut_off(
    cost: Cost, video: SourceVideo, options: DecodeOptions, limited: DecodeOptions
) -> bool:
    """Return whether only the shorter time limit of the probe ended a video.

    A video that the build would end too costs it this time.
    """
    if limited == options:
        return False
    return cost.decode_seconds >= limit_seconds(video, limited.timeout_seconds)


def _start(worker: InOrder) -> None:
    """Start a worker; an empty file is answered at once."""
    list(worker.decode([SourceVideo("", Path(os.devnull), "", 0, None)]))


def _probe_in_turn(
    worker: InOrder, videos: Sequence[SourceVideo], ready: float, writer: Lock
) -> list[Cost]:
    """Decode and encode one video after the other, as a build does.

    The next video is decoded while a sample is encoded. The video that ends after the probe time
    counts, since leaving it out would favour short videos; the one after it is given up.

    Returns:
        The costs of the first videos.
    """
    costs = []
    begun = ready
    with closing(worker.decode(videos)) as answers:
        for answer in answers:
            # The wait for the lock is not a cost of this video.
            answered = time.monotonic()
            with writer:
                write_started = time.monotonic()
                tar_bytes = _tar_bytes(answer)
                write_seconds = time.monotonic() - write_started
            costs.append(Cost(answered - begun, write_seconds, tar_bytes))

            begun = answered
            if answered >= ready + PROBE_SECONDS:
                break
    return costs


def _tar_bytes(answer: Decoded) -> int:
    """Return the number of bytes of a sample in its tar."""
    if not answer.frames:
        return 0
    return len(encode_sample(answer.row["key"], answer.frames, sample_facts(answer.row)).data)
