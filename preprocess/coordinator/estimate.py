"""Estimate what a build would read, write and take, from about two seconds of decoding.

Some of the videos are probed. The costs of the others are predicted by a line through (source
bytes, cost) per file type, and the whole build is then simulated.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from preprocess.coordinator.job import Job
from preprocess.coordinator.probe import Cost, Probe, file_type, probe_videos
from preprocess.coordinator.resume import is_of_this_part, needs_nothing
from preprocess.planning import ShardPlan
from preprocess.records.state import PoolState
from preprocess.settings import count_cores
from preprocess.sources import SourceVideo

_END_OF_TAR_BYTES = 1024

# 276 MB of UCF-101 samples took 0.15 s to write into their shard, and 0.22 s to flush and hash
# while everything else waits.
_APPEND_SECONDS_PER_BYTE = 0.55e-9
_FINISH_SECONDS_PER_BYTE = 0.8e-9


@dataclass(frozen=True)
class Estimate:
    """The size and duration of a build, without the second try of `--retry-failed`."""

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

    # Each tar ends with two zero blocks.
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


def predict_costs(videos: Sequence[SourceVideo], probe: Probe) -> list[Cost] | None:
    """Return the costs of all videos: measured, or predicted from size and file type.

    A file type that the probe has not seen counts like all others together.

    Returns:
        The costs in the order of `videos`; None if nothing was measured.
    """
    if not probe.costs:
        return None

    by_type: dict[str, dict[int, Cost]] = {}
    for position, cost in probe.costs.items():
        by_type.setdefault(file_type(videos[position]), {})[position] = cost

    all_lines = _CostLines.fit(videos, probe.costs)
    lines_of_type = {name: _CostLines.fit(videos, costs) for name, costs in by_type.items()}

    costs = []
    for position, video in enumerate(videos):
        if position in probe.costs:
            costs.append(probe.costs[position])
            continue

        cost = lines_of_type.get(file_type(video), all_lines).at(video.num_bytes)
        # A video that the probe gave up takes at least the time that it ran.
        known_seconds = probe.cut_off.get(position, 0.0)
        costs.append(replace(cost, decode_seconds=max(cost.decode_seconds, known_seconds)))
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
        # All workers are busy: wait for the first answer, whose worker takes this video.
        write_seconds = 0.0
        if len(running) == num_workers:
            decoded, write_seconds = heapq.heappop(running)
            now = max(now, decoded)

        append_seconds = cost.tar_bytes * _APPEND_SECONDS_PER_BYTE
        own_write_seconds = cost.write_seconds + append_seconds + import_seconds
        import_seconds = 0.0
        heapq.heappush(running, (now + cost.decode_seconds, own_write_seconds))
        # That worker decodes already while the answer is written.
        now += write_seconds

    # The last answers are only taken and written.
    for decoded, write_seconds in sorted(running):
        now = max(now, decoded) + write_seconds
    return now


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
    # All clips of one size give a constant.
    if variance:
        slope = min(max(covariance / variance, 0.0), mean / max(mean_size, 1))
    else:
        slope = 0.0
    return mean - slope * mean_size, slope
