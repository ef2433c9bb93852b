"""`bmpt demo`: videos, pool, tuning and scores with the same code as every other data set."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from bmpt.config import EXPERIMENTS, load_config
from bmpt.demo.render import FADED, MOTIONS
from bmpt.demo.videos import write_lists, write_videos
from bmpt.evaluation.evaluate import HM_PARTS
from bmpt.evaluation.report import show_percent
from bmpt.run import run_evaluation, run_training
from bmpt.runtime.distributed import World, start_world
from shards.config_names import configs_folder
from shards.errors import ConfigError, StorageError
from shards.progress import Progress

ROWS = (
    ("zero_shot", "zero-shot"),
    ("prompts", "BMPT, prompts alone"),
    ("all", "BMPT, everything tuned"),
)
THREADS = 2


def run_demo(out: Path, *, build_pool: Callable[[Sequence[str]], int], as_json: bool) -> int:
    """Do what is not done yet, then print the table and where everything lies. Returns the exit
    code.

    build_pool: `preprocess/build_shards.py` with these arguments; the command line passes it in."""
    started = time.monotonic()
    try:
        with Progress() as progress:
            write_lists(out / "lists")
            write_videos(out / "videos", FADED, progress)
    except OSError as error:
        raise StorageError(
            f"{out}: cannot be written: {error.strerror or error}; give another folder with --out"
        ) from None
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        code = build_pool(
            [
                "--dataset",
                "demo",
                "--videos",
                f"{out}/videos",
                "--annotations",
                f"{out}/lists",
                "--out",
                f"{out}/pool",
            ]
        )
    if code != 0:
        return code
    world = start_world(threads=THREADS)
    results = {name: _run(name, out, world) for name, _ in ROWS}
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
    else:
        print(demo_table(results))
        _print_places(out, time.monotonic() - started)
    return 0


def demo_table(results: dict[str, dict[str, Any]]) -> str:
    """Base, novel and HM of each row beside chance, and what tuning gains on base."""
    chance = 100 / (len(MOTIONS) / 2)
    lines = [f"{'top-1 in percent':24}{'base':>8}{'novel':>8}{'HM':>8}{'base gain':>12}"]
    lines.append(f"{'chance (1 of 8)':24}{chance:8.2f}{chance:8.2f}{chance:8.2f}")
    zero_shot = _top1(results["zero_shot"], HM_PARTS[0])
    for name, title in ROWS:
        base, novel = (_top1(results[name], part) for part in HM_PARTS)
        gain = (
            ""
            if name == "zero_shot" or base is None or zero_shot is None
            else f"{base - zero_shot:+.2f}"
        )
        hm = results[name]["hm"]
        lines.append(
            f"{title:24}{show_percent(base):>8}{show_percent(novel):>8}{show_percent(hm):>8}{gain:>12}"
        )
    return "\n".join(lines)


def _run(name: str, out: Path, world: World) -> dict[str, Any]:
    """Tune and score one row, or read what an earlier demo left."""
    print(f"{name}: experiment demo/{name}", file=sys.stderr)
    config = load_config(configs_folder() / EXPERIMENTS / "demo" / f"{name}.yaml")
    data = config.data.model_copy(update={"pool": str(out / "pool")})
    run = config.run.model_copy(update={"dir": str(out / "runs" / name), "threads": THREADS})
    config = config.model_copy(update={"data": data, "run": run})
    if config.data.train is None:
        outcome = run_evaluation(config, world, checkpoint=None, keep_finished=True)
    else:
        outcome = run_training(config, world)
    if outcome.results is None:
        raise ConfigError(f"{outcome.folder}: the run was stopped; `bmpt demo` goes on with it")
    return outcome.results


def _top1(results: dict[str, Any], manifest: str) -> float | None:
    return next(entry["top1"] for entry in results["evaluations"] if entry["manifest"] == manifest)


def _print_places(out: Path, seconds: float) -> None:
    print(
        f"\n16 motions, 8 base and 8 novel; 16 shots of each base class; 40 test clips a class; {seconds:.0f} s"
    )
    for what, where in (
        ("videos", "videos/<motion>/"),
        ("pool", "pool/pool.json, shards/, samples.parquet, manifests/"),
        ("runs", "runs/<row>/: results.json, predictions/, prompts.safetensors, metrics.jsonl"),
    ):
        print(f"{what:8}{out}/{where}")
    names = ", ".join(f"demo/{name}" for name, _ in ROWS)
    print(f"configs {names}; `bmpt experiments` lists them")
