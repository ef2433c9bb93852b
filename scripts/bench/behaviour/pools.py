"""Record pools: every byte of the sample clips' pools, however a build is spread."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from behaviour.checkout import (
    Checkout,
    Ended,
    Facts,
    file_sha256,
    note_failure,
    parse_output,
    text_sha256,
)

# few videos per shard, so that parts have shards to share and orders have shards to permute
SETTINGS = ("--set", "videos_per_shard=8")
# the pool that runs, plans and calls read
TRAINING_POOL = "pools/ucf101/workers_2"


@dataclass(frozen=True)
class Source:
    """The options of one build."""

    dataset: str
    videos: str
    """Folder below the sample data, or below the work folder for `folder`."""

    annotations: str | None = None
    """Folder below `splits/official`."""

    splits: str | None = None
    """Folder below `splits`."""

    settings: tuple[str, ...] = ()


_HMDB = Source("hmdb51", "clips/hmdb51", "hmdb51", "vificlip", ("--set", "labels=official"))
SOURCES = {
    "ucf101": Source("ucf101", "clips/ucf101", "ucf101", "vificlip"),
    "kinetics400": Source("kinetics400", "clips/kinetics400", "kinetics", "vificlip"),
    "hmdb51": _HMDB,
    "ssv2": Source("ssv2", "clips/ssv2", "ssv2", "vificlip"),
    "folder": Source("folder", "inputs/odd"),
}
# lists of other publications, lists drawn from the official ones, another decoder: built once
OTHER_LISTS = {
    "hmdb51_bike": Source("hmdb51", "clips/hmdb51", "hmdb51", "bike", _HMDB.settings),
    "hmdb51_bmpt": Source("hmdb51", "clips/hmdb51", "hmdb51", "bmpt", _HMDB.settings),
    "hmdb51_drawn": Source("hmdb51", "clips/hmdb51", "hmdb51", None, _HMDB.settings),
    "hmdb51_legacy": Source(
        "hmdb51", "clips/hmdb51", "hmdb51", "vificlip", ("--set", "labels=legacy")
    ),
    "ssv2_ffmpeg": Source("ssv2", "clips/ssv2", "ssv2", "vificlip", ("--decoder", "ffmpeg")),
}


def build_arguments(checkout: Checkout, source: Source, out: str) -> list[str]:
    """Return the arguments of `build_shards.py` for a source."""
    shared = checkout.shared
    videos = source.videos if source.dataset == "folder" else str(shared / source.videos)
    arguments = ["--dataset", source.dataset, "--videos", videos, "--out", out]
    if source.annotations is not None:
        arguments += ["--annotations", str(shared / "splits" / "official" / source.annotations)]
    if source.splits is not None:
        arguments += ["--splits", str(shared / "splits" / source.splits)]
    return [*arguments, *SETTINGS, *source.settings]


def write_odd_clips(checkout: Checkout) -> None:
    """Copy the odd sample clips into two class folders: the layout of `--dataset folder`."""
    clips = sorted((checkout.shared / "clips" / "odd").iterdir())
    for number, clip in enumerate(clips):
        folder = checkout.work / "inputs" / "odd" / ("first", "second")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(clip, folder)


def build_training_pool(checkout: Checkout) -> None:
    """Build the pool that runs, plans and calls read, unless it is there.

    Raises:
        SystemExit: the build failed, so nothing else can be recorded.
    """
    if (checkout.work / TRAINING_POOL / "pool.json").is_file():
        return
    arguments = build_arguments(checkout, SOURCES["ucf101"], TRAINING_POOL)
    ended = checkout.build(*arguments, "--workers", "2")
    if ended.code != 0:
        raise SystemExit(f"error: {TRAINING_POOL}: exit {ended.code}: {ended.last_line()}")


def pool_tasks(checkout: Checkout) -> dict[str, Callable[[], Facts]]:
    """Return the builds to record, by name: `ucf101/workers_1`, `ucf101/parts` and so on."""
    tasks: dict[str, Callable[[], Facts]] = {}
    for name, source in SOURCES.items():
        for workers in (1, 2):
            tasks[f"{name}/workers_{workers}"] = partial(
                _record_build, checkout, source, f"{name}/workers_{workers}", workers
            )
        tasks[f"{name}/parts"] = partial(_record_parts, checkout, source, f"{name}/parts")
    for name, source in OTHER_LISTS.items():
        tasks[f"{name}/workers_2"] = partial(
            _record_build, checkout, source, f"{name}/workers_2", 2
        )
    return tasks


def _record_build(checkout: Checkout, source: Source, name: str, workers: int) -> Facts:
    """Build a pool in one process and record it."""
    arguments = build_arguments(checkout, source, f"pools/{name}")
    ended = checkout.build(*arguments, "--workers", str(workers), "--json")
    return {"build": _report(name, ended), **_pool_facts(checkout.work / "pools" / name)}


def _record_parts(checkout: Checkout, source: Source, name: str) -> Facts:
    """Build a pool in two parts, merge them and record it."""
    arguments = build_arguments(checkout, source, f"pools/{name}")
    reports: Facts = {}
    for step, options in (
        ("part_1", ("--part", "1/2", "--workers", "1")),
        ("part_2", ("--part", "2/2", "--workers", "1")),
        ("merge", ("--merge",)),
    ):
        ended = checkout.build(*arguments, *options, "--json")
        reports[step] = _report(f"{name}, {step}", ended)
    return {"build": reports, **_pool_facts(checkout.work / "pools" / name)}


def _report(name: str, ended: Ended) -> Facts:
    note_failure(name, ended)
    return {"exit": ended.code, "json": parse_output(ended.stdout)}


def _pool_facts(pool: Path) -> Facts:
    """Return the pool's id and the sha256 of every file below its folder."""
    files = sorted(path for path in pool.rglob("*") if path.is_file())
    digests = {str(path.relative_to(pool)): file_sha256(path) for path in files}
    card = pool / "pool.json"
    if not card.is_file():
        return {"pool_id": None, "files": digests}

    text = card.read_text(encoding="utf-8")
    # the versions of the libraries are the only part of a pool that depends on more than its input
    without_versions = re.sub(r'"libraries": \{[^}]*\}', '"libraries": {}', text)
    digests["pool.json"] = text_sha256(without_versions)
    return {"pool_id": json.loads(text)["pool_id"], "files": digests}
