"""Estimate what a build would read, write and take, from about two seconds of decoding.

No file is written. The probe is a small build: as many workers, the same decoder, and samples
encoded one at a time by this process. Its clips come in an order of which every beginning is spread
evenly over file types and sizes. The costs of the other videos are predicted by a line through
(source bytes, cost) per file type, and the whole build is then simulated.
"""

from __future__ import annotations

import heapq
import os
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from preprocess.coordinator.job import Job
from preprocess.coordinator.resume import is_of_this_part, needs_nothing
from preprocess.planning import ShardPlan
from preprocess.records.rows import sample_facts
from preprocess.records.state import PoolState
from preprocess.settings import count_cores
from preprocess.sources import SourceVideo
from preprocess.workers.child import Decoded, DecodeOptions
from preprocess.workers.in_order import InOrder
from preprocess.workers.local import LocalWorkers, limit_seconds
from shards.format.writer import encode_sample

PROBE_SECONDS = 2.0

# Per probed video, more for a large one: a dry run must not wait minutes for a decoder that hangs.
_LONGEST_SECONDS = 30.0

_END_OF_TAR_BYTES = 1024

# 276 MB of UCF-101 samples took 0.15 s to write into their shard, and 0.22 s to flush and hash
# while everything else waits.
_APPEND_SECONDS_PER_BYTE = 0.55e-9
_FINISH_SECONDS_PER_BYTE = 0.8e-9

_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Estimate:
    """What a build would take, without the second try of failed videos by `--retry-failed`."""

    bytes_in: int
    """Size of the source files that it would decode."""

    bytes_out: int | None
    """Size of the tars that it would write; None if no probed video ended in time."""

    seconds: float | None
    """Wall time as the report of the build states it, without uploads; None as above."""

    num_workers: int
    """Workers of the build."""

    engine: str
    """Engine of the build; the probe always runs on this machine."""

    num_probed: int = 0
    """Videos that were decoded for this estimate."""

    probe_seconds: float = 0.0


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


def estimate_build(
    job: Job, videos: Sequence[SourceVideo], *, num_shards: int, planning_seconds: float
) -> Estimate:
    """Probe some of the videos that a build would decode and predict the others.

    Args:
        job: the run.
        videos: that the build would decode; without videos there is no probe.
        num_shards: shards that the build would finish.
        planning_seconds: time that this run took so far, which a build would take too.

    Raises:
        ConfigError: if no worker can start.
    """
    num_workers, engine = job.settings.workers, job.settings.engine
    bytes_in = sum(video.num_bytes for video in videos)
    if not videos:
        return Estimate(bytes_in, num_shards * _END_OF_TAR_BYTES, 0.0, num_workers, engine)

    # A cluster has more cores than this machine: each of its workers counts as fast as one here.
    num_probing = num_workers if engine == "local" else min(num_workers, count_cores())
    probe = probe_videos(
        videos, job.decode_options, num_workers=num_probing, seed=job.settings.seed
    )
    costs = predict_costs(videos, probe)
    if costs is None:
        return Estimate(bytes_in, None, None, num_workers, engine, 0, probe.seconds)

    bytes_out = round(sum(cost.tar_bytes for cost in costs)) + num_shards * _END_OF_TAR_BYTES
    build_seconds = simulate_build(costs, num_workers, probe.import_seconds)
    finish_seconds = bytes_out * _FINISH_SECONDS_PER_BYTE
    seconds = planning_seconds + probe.start_seconds + build_seconds + finish_seconds
    return Estimate(
        bytes_in, bytes_out, seconds, num_workers, engine, len(probe.costs), probe.seconds
    )


def videos_left(
    job: Job, state: PoolState, layout: Sequence[ShardPlan]
) -> tuple[list[SourceVideo], int]:
    """Return the videos that a build, or its part, would decode, and its number of open shards.

    Journals are counted, not read: a build discards one that no longer agrees with the files, the
    estimate does not.
    """
    settings, workspace = job.settings, job.workspace
    if settings.merge:
        return [], 0

    videos: list[SourceVideo] = []
    num_shards = 0
    for plan in layout:
        if not is_of_this_part(plan, settings) or needs_nothing(plan, workspace, state):
            continue
        keys = plan.keys[workspace.num_begun(plan.name) :]
        videos += [job.videos[key] for key in keys if key in job.videos]
        num_shards += bool(keys)
    return videos, num_shards


def probe_order(videos: Sequence[SourceVideo], *, seed: int) -> list[int]:
    """Return positions in an order of which every beginning has all file types and sizes.

    Multiples of the golden ratio modulo 1, shifted by a random number, are spread evenly wherever
    they are cut off. On sample clips (12 Kinetics clips in 2 s), the errors are a third of those
    of a random order.
    """
    ranked = sorted(
        range(len(videos)),
        key=lambda position: (_file_type(videos[position]), videos[position].num_bytes),
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
    writer = Lock()  # a build encodes one sample at a time

    with ExitStack() as stack, ThreadPoolExecutor(num_workers) as threads:
        begun = time.monotonic()
        workers = [
            InOrder(stack.enter_context(LocalWorkers(1, limited))) for _ in range(num_workers)
        ]
        list(threads.map(_start, workers))
        started = time.monotonic()

        # The first sample pays for the imports of the writer.
        encode_sample("", [], {})
        ready = time.monotonic()

        def probe_slice(number: int) -> dict[int, Cost]:
            positions = order[number::num_workers]
            own_videos = [videos[position] for position in positions]
            own_costs = _probe_in_turn(workers[number], own_videos, ready, writer)
            return dict(zip(positions, own_costs, strict=False))

        measured: dict[int, Cost] = {}
        for own_costs in threads.map(probe_slice, range(num_workers)):
            measured.update(own_costs)
        seconds = time.monotonic() - ready

    return Probe(
        costs={
            position: cost
            for position, cost in measured.items()
            if not _is_cut_off(cost, videos[position], options, limited)
        },
        cut_off={
            position: cost.decode_seconds
            for position, cost in measured.items()
            if _is_cut_off(cost, videos[position], options, limited)
        },
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


def predict_costs(videos: Sequence[SourceVideo], probe: Probe) -> list[Cost] | None:
    """Return the costs of all videos: measured, or predicted from size and file type.

    A file type that the probe has not seen counts like all others together.

    Returns:
        The costs in the order of `videos`; None if nothing was measured.
    """
    if not probe.costs:
        return None

    all_lines = _CostLines.fit(videos, probe.costs)
    lines_of_type = {}
    for file_type in {_file_type(videos[position]) for position in probe.costs}:
        own_costs = {
            position: cost
            for position, cost in probe.costs.items()
            if _file_type(videos[position]) == file_type
        }
        lines_of_type[file_type] = _CostLines.fit(videos, own_costs)

    costs = []
    for position, video in enumerate(videos):
        cost = probe.costs.get(position)
        if cost is None:
            cost = lines_of_type.get(_file_type(video), all_lines).at(video.num_bytes)
            known_seconds = probe.cut_off.get(position, 0.0)
            cost = replace(cost, decode_seconds=max(cost.decode_seconds, known_seconds))
        costs.append(cost)
    return costs


def simulate_build(costs: Iterable[Cost], num_workers: int, import_seconds: float) -> float:
    """Return the seconds from the start of the workers until the last sample is written.

    The coordinator takes an answer, gives that worker the next video, and then writes. Its imports
    delay the first sample.

    Args:
        costs: of the videos in order.
        num_workers: workers of the build.
        import_seconds: time of the coordinator's imports.
    """
    # Of each running video: when it will be decoded, and for how long it is written then.
    running: list[tuple[float, float]] = []
    now = 0.0

    for cost in costs:
        write_seconds = 0.0
        if len(running) == num_workers:
            decoded, write_seconds = heapq.heappop(running)
            now = max(now, decoded)

        append_seconds = cost.tar_bytes * _APPEND_SECONDS_PER_BYTE
        own_write_seconds = cost.write_seconds + append_seconds + import_seconds
        import_seconds = 0.0
        heapq.heappush(running, (now + cost.decode_seconds, own_write_seconds))
        now += write_seconds

    for decoded, write_seconds in sorted(running):
        now = max(now, decoded) + write_seconds
    return now


def _file_type(video: SourceVideo) -> str:
    return video.path.suffix.lower()


@dataclass(frozen=True)
class _CostLines:
    """Each part of a cost as a line (cost at 0 bytes, cost per byte), neither of them negative."""

    decode: tuple[float, float]
    write: tuple[float, float]
    tar: tuple[float, float]

    @staticmethod
    def fit(videos: Sequence[SourceVideo], costs: dict[int, Cost]) -> _CostLines:
        """Fit the lines to the measured costs of some videos."""
        sizes = [videos[position].num_bytes for position in costs]
        return _CostLines(
            _fit_line(sizes, [cost.decode_seconds for cost in costs.values()]),
            _fit_line(sizes, [cost.write_seconds for cost in costs.values()]),
            _fit_line(sizes, [cost.tar_bytes for cost in costs.values()]),
        )

    def at(self, num_bytes: int) -> Cost:
        """Return the cost of a video of this size."""
        lines = (self.decode, self.write, self.tar)
        return Cost(*(base + slope * num_bytes for base, slope in lines))


def _fit_line(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Fit a line by weighted least squares.

    The result is always between a constant and a value in proportion to the size, whatever a few
    clips suggest. The weights are 1/size: the costs of large files vary more, by length,
    resolution and content.
    """
    weights = [1 / max(size, 1) for size in sizes]
    terms = list(zip(weights, sizes, values, strict=True))

    total = sum(weights)
    mean_size = sum(weight * size for weight, size, _ in terms) / total
    mean = sum(weight * value for weight, _, value in terms) / total

    variance = sum(weight * (size - mean_size) ** 2 for weight, size, _ in terms)
    covariance = sum(weight * (size - mean_size) * (value - mean) for weight, size, value in terms)
    if variance:
        slope = min(max(covariance / variance, 0.0), mean / max(mean_size, 1))
    else:
        slope = 0.0
    return mean - slope * mean_size, slope
