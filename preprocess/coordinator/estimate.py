"""What a build would read, write and take, from clips decoded for about two seconds; no file is
made.

The probe is a build in small: as many workers, the same decoder, samples encoded one at a time by
    this process. Its
clips come in an order of which every beginning is spread evenly over file types and sizes. The
others are predicted by a line through (source bytes, cost) for each file type, and a build of all
of them is played through in numbers."""

from __future__ import annotations

import heapq
import itertools
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
from preprocess.planning import ShardPlan, part_of
from preprocess.records.rows import sample_facts
from preprocess.records.state import PoolState
from preprocess.settings import count_cores
from preprocess.sources import SourceVideo
from preprocess.workers.child import Decoded, DecodeOptions
from preprocess.workers.in_order import InOrder
from preprocess.workers.local import LocalWorkers, limit_seconds
from shards.format.writer import encode_sample

PROBE_SECONDS = 2.0
# for one probed video (a large one: more): a dry run waits no minutes for a decoder that hangs
_LONGEST_SECONDS = 30.0
_END_OF_TAR_BYTES = 1024
# 276 MB of UCF-101 samples took 0.15 s to write into their shard, and 0.22 s, with all else
# waiting, to flush and hash
_APPEND_SECONDS_PER_BYTE, _FINISH_SECONDS_PER_BYTE = 0.55e-9, 0.8e-9
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Estimate:
    """What a build would take, without `--retry-failed`'s second look at failed videos.

    bytes_in: source files that it would decode
    bytes_out: tars that it would write; None if no probed video ended in time
    seconds: wall time, as the report of the build states it, without uploads; None likewise
    num_workers, engine: that it would decode with; the probe is always local
    num_probed, probe_seconds: videos decoded for this, and for how long"""

    bytes_in: int
    bytes_out: int | None
    seconds: float | None
    num_workers: int
    engine: str
    num_probed: int = 0
    probe_seconds: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What one video costs a build.

    decode_seconds: of a worker; write_seconds: of the coordinator; tar_bytes: 0 if nothing of it is
        stored"""

    decode_seconds: float
    write_seconds: float
    tar_bytes: float


@dataclass(frozen=True)
class Probe:
    """Costs of the probed videos by their position.

    cut_off: seconds that videos ran which did not end in time, by position
    start_seconds: until all workers answered; import_seconds: of what the coordinator needs for its
        first sample"""

    costs: dict[int, Cost]
    cut_off: dict[int, float]
    start_seconds: float
    import_seconds: float
    seconds: float


def estimate_build(
    job: Job, videos: Sequence[SourceVideo], *, num_shards: int, planning_seconds: float
) -> Estimate:
    """Probe some of the videos that a build would decode and predict the rest; no videos, no probe.

    num_shards: that would be finished; planning_seconds: what this run took so far, a build takes
        it too.
    Raises: ConfigError if no worker can start."""
    num_workers, engine = job.settings.workers, job.settings.engine
    bytes_in = sum(video.num_bytes for video in videos)
    if not videos:
        return Estimate(bytes_in, num_shards * _END_OF_TAR_BYTES, 0.0, num_workers, engine)
    # a cluster has more cores than this machine: each of its workers is taken to be as fast as one
    # that has a core
    here = num_workers if engine == "local" else min(num_workers, count_cores())
    probe = probe_videos(videos, job.decode_options, num_workers=here, seed=job.settings.seed)
    costs = predict_costs(videos, probe)
    if costs is None:
        return Estimate(bytes_in, None, None, num_workers, engine, 0, probe.seconds)
    bytes_out = round(sum(cost.tar_bytes for cost in costs)) + num_shards * _END_OF_TAR_BYTES
    seconds = (
        planning_seconds
        + probe.start_seconds
        + play_build(costs, num_workers, probe.import_seconds)
    )
    seconds += bytes_out * _FINISH_SECONDS_PER_BYTE
    return Estimate(
        bytes_in, bytes_out, seconds, num_workers, engine, len(probe.costs), probe.seconds
    )


def videos_left(
    job: Job, state: PoolState, layout: Sequence[ShardPlan]
) -> tuple[list[SourceVideo], int]:
    """The videos that a build, or its part, would decode, and the number of shards that it would
    finish.

    Journals are counted, not read: one that no longer agrees with the files is dropped by a build,
        not here."""
    settings, workspace = job.settings, job.workspace
    videos: list[SourceVideo] = []
    num_shards = 0
    for plan in layout:
        is_other_part = (
            settings.part is not None
            and part_of(plan.index, settings.num_parts) != settings.part_index
        )
        is_begun = workspace.is_begun(plan.name)
        stands = state.is_closed(plan.name) or (plan.name in state.whole and not is_begun)
        if settings.merge or is_other_part or stands:
            continue
        keys = plan.keys[workspace.num_begun(plan.name) :]
        videos += [job.videos[key] for key in keys if key in job.videos]
        num_shards += bool(keys)
    return videos, num_shards


def probe_order(videos: Sequence[SourceVideo], *, seed: int) -> list[int]:
    """A seeded order of positions of which every beginning is spread evenly over file types and
    sizes.

    Multiples of the golden ratio modulo 1, shifted by a random number, fall evenly wherever they
    are cut off. On sample clips (12 Kinetics clips in 2 s) errors are a third of those of a random
    order."""
    ranked = sorted(
        range(len(videos)),
        key=lambda position: (_file_type(videos[position]), videos[position].num_bytes),
    )
    shift = random.Random(seed).random()
    ranks = sorted(range(len(ranked)), key=lambda rank: (shift + rank * _GOLDEN) % 1)
    return [ranked[rank] for rank in ranks]


def probe_videos(
    videos: Sequence[SourceVideo], options: DecodeOptions, *, num_workers: int, seed: int
) -> Probe:
    """Decode videos with local workers for two seconds, and to the end those that have begun;
    encode their samples.

    Each worker has a thread of its own, so that each video can be timed. Raises: ConfigError if
    none can start."""
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
        encode_sample("", [], {})
        ready = time.monotonic()

        def probe_share(number: int) -> list[tuple[int, Cost]]:
            share = order[number::num_workers]
            costs = _probe_in_turn(
                workers[number], [videos[position] for position in share], ready, writer
            )
            return list(zip(share, costs, strict=False))

        costs = dict(itertools.chain.from_iterable(threads.map(probe_share, range(num_workers))))
        seconds = time.monotonic() - ready
    cut_off = {  # only by the shorter limit here: what the build would end too costs it this time
        position: cost.decode_seconds
        for position, cost in costs.items()
        if limited != options
        and cost.decode_seconds >= limit_seconds(videos[position], limited.timeout_seconds)
    }
    return Probe(
        costs={position: cost for position, cost in costs.items() if position not in cut_off},
        cut_off=cut_off,
        start_seconds=started - begun,
        import_seconds=ready - started,
        seconds=seconds,
    )


def predict_costs(videos: Sequence[SourceVideo], probe: Probe) -> list[Cost] | None:
    """The costs of all videos: those measured, and for the others those of their size and file
    type.

    Returns: None if nothing was measured. A file type that the probe has not seen is taken to be
        like all others."""
    if not probe.costs:
        return None
    by_type: dict[str | None, list[int]] = {None: list(probe.costs)}
    for position in probe.costs:
        by_type.setdefault(_file_type(videos[position]), []).append(position)
    lines = {
        file_type: _CostLines.fit(
            [(videos[position].num_bytes, probe.costs[position]) for position in positions]
        )
        for file_type, positions in by_type.items()
    }
    costs = []
    for position, video in enumerate(videos):
        cost = probe.costs.get(position)
        if cost is None:
            cost = lines.get(_file_type(video), lines[None]).at(video.num_bytes)
            cost = replace(
                cost, decode_seconds=max(cost.decode_seconds, probe.cut_off.get(position, 0.0))
            )
        costs.append(cost)
    return costs


def play_build(costs: Iterable[Cost], num_workers: int, import_seconds: float) -> float:
    """Seconds from the moment that the workers are ready until the last sample is written.

    The coordinator takes an answer, hands that worker the next video, then writes; imports delay
    its first sample."""
    running: list[
        tuple[float, float]
    ] = []  # when a video will be decoded, and for how long it is written then
    now = 0.0
    for cost in costs:
        write_seconds = 0.0
        if len(running) == num_workers:
            decoded, write_seconds = heapq.heappop(running)
            now = max(now, decoded)
        own_write_seconds = (
            cost.write_seconds + cost.tar_bytes * _APPEND_SECONDS_PER_BYTE + import_seconds
        )
        heapq.heappush(running, (now + cost.decode_seconds, own_write_seconds))
        import_seconds = 0.0
        now += write_seconds
    for decoded, write_seconds in sorted(running):
        now = max(now, decoded) + write_seconds
    return now


def _start(worker: InOrder) -> None:
    """Have the worker start; an empty file is answered at once."""
    list(worker.decode([SourceVideo("", Path(os.devnull), "", 0, None)]))


def _probe_in_turn(
    worker: InOrder, videos: Sequence[SourceVideo], ready: float, writer: Lock
) -> list[Cost]:
    """Decode and encode one after the other, as a build does: the next video is decoded while a
    sample is encoded.

    Returns: costs of the first videos. The one that ends after the time counts: to leave it out
        would favour short
    ones; the one behind it is given up."""
    costs = []
    begun = ready
    with closing(worker.decode(videos)) as answers:
        for answer in answers:
            answered = time.monotonic()
            with writer:
                taken = time.monotonic()
                tar_bytes = _tar_bytes(answer)
                costs.append(Cost(answered - begun, time.monotonic() - taken, tar_bytes))
            begun = answered
            if answered >= ready + PROBE_SECONDS:
                break
    return costs


def _tar_bytes(answer: Decoded) -> int:
    if not answer.frames:
        return 0
    return len(encode_sample(answer.row["key"], answer.frames, sample_facts(answer.row)).data)


def _file_type(video: SourceVideo) -> str:
    return video.path.suffix.lower()


@dataclass(frozen=True)
class _CostLines:
    """Each part of a cost as a line (at 0 bytes, for each byte), neither of them below 0."""

    decode: tuple[float, float]
    write: tuple[float, float]
    tar: tuple[float, float]

    @staticmethod
    def fit(measured: Sequence[tuple[int, Cost]]) -> _CostLines:
        sizes = [num_bytes for num_bytes, _ in measured]
        return _CostLines(
            _fit_line(sizes, [cost.decode_seconds for _, cost in measured]),
            _fit_line(sizes, [cost.write_seconds for _, cost in measured]),
            _fit_line(sizes, [cost.tar_bytes for _, cost in measured]),
        )

    def at(self, num_bytes: int) -> Cost:
        return Cost(
            *(base + slope * num_bytes for base, slope in (self.decode, self.write, self.tar))
        )


def _fit_line(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Weighted least squares; between a constant and proportion to the size, whatever few clips
    seem to say.

    Weights are 1/size: costs of large files are spread wider, by length, resolution and content."""
    weights = [1 / max(size, 1) for size in sizes]
    total = sum(weights)
    mean_size = sum(weight * size for weight, size in zip(weights, sizes, strict=True)) / total
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    terms = list(zip(weights, sizes, values, strict=True))
    spread = sum(weight * (size - mean_size) ** 2 for weight, size, _ in terms)
    common = sum(weight * (size - mean_size) * (value - mean) for weight, size, value in terms)
    slope = min(max(common / spread, 0.0), mean / max(mean_size, 1)) if spread else 0.0
    return mean - slope * mean_size, slope
