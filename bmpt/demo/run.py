"""`bmpt demo`: write videos, build a pool, tune and evaluate with the code of every data set."""

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
from shards.files import os_error_text
from shards.progress import Progress

# (experiment, title in the table)
ROWS = (
    ("zero_shot", "zero-shot"),
    ("prompts", "BMPT, prompts alone"),
    ("all", "BMPT, everything tuned"),
)
THREADS = 2


def run_demo(out: Path, *, build_pool: Callable[[Sequence[str]], int], as_json: bool) -> int:
    """Run the steps of the demo that are not done yet, then print the table and the folders.

    Args:
        out: folder of the videos, the pool and the runs.
        build_pool: runs `preprocess/build_shards.py` with the given arguments and returns its exit
            code. It is passed in because this package does not import `preprocess`.
        as_json: print the results of all rows as one JSON object instead of the table.

    Returns:
        The exit code: 0, or the code of the failed build.

    Raises:
        StorageError: if the folder cannot be written.
        ConfigError: if a run was stopped.
    """
    started = time.monotonic()

    try:
        with Progress() as progress:
            write_lists(out / "lists")
            write_videos(out / "videos", FADED, progress)
    except OSError as error:
        reason = os_error_text(error)
        raise StorageError(
            f"{out}: cannot be written: {reason}; give another folder with --out"
        ) from None

    arguments = ["--dataset", "demo", "--videos", f"{out}/videos"]
    arguments += ["--annotations", f"{out}/lists", "--out", f"{out}/pool"]
    # Standard output carries only the JSON object.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        code = build_pool(arguments)
    if code != 0:
        return code

    world = start_world(threads=THREADS)
    results = {name: _run(name, out, world) for name, _ in ROWS}

    if as_json:
        print(json.dumps(results, ensure_ascii=False))
    else:
        print(demo_table(results))
        _print_folders(out, time.monotonic() - started)
    return 0


def demo_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table: base, novel and HM per row, below chance, and the gain of tuning on base.

    Args:
        results: the contents of results.json by experiment.
    """
    chance = 100 / (len(MOTIONS) / 2)
    lines = [f"{'top-1 in percent':24}{'base':>8}{'novel':>8}{'HM':>8}{'base gain':>12}"]
    lines.append(f"{'chance (1 of 8)':24}{chance:8.2f}{chance:8.2f}{chance:8.2f}")

    # The first of HM_PARTS is the base part.
    zero_shot = _top1(results["zero_shot"], HM_PARTS[0])
    for name, title in ROWS:
        base, novel = (_top1(results[name], part) for part in HM_PARTS)
        cells = [show_percent(value) for value in (base, novel, results[name]["hm"])]

        gain = ""
        if name != "zero_shot" and base is not None and zero_shot is not None:
            gain = f"{base - zero_shot:+.2f}"
        lines.append(f"{title:24}{cells[0]:>8}{cells[1]:>8}{cells[2]:>8}{gain:>12}")

    return "\n".join(lines)


def _run(name: str, out: Path, world: World) -> dict[str, Any]:
    """Tune and evaluate one row, or read the results of an earlier demo."""
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
        raise ConfigError(f"{outcome.folder}: the run was stopped; `bmpt demo` resumes it")
    return outcome.results


def _top1(results: dict[str, Any], manifest: str) -> float | None:
    return next(entry["top1"] for entry in results["evaluations"] if entry["manifest"] == manifest)


def _print_folders(out: Path, seconds: float) -> None:
    print(
        "\n16 motions, 8 base and 8 novel; 16 shots of each base class; "
        f"40 test clips per class; {seconds:.0f} s"
    )

    contents = (
        ("videos", "videos/<motion>/"),
        ("pool", "pool/pool.json, shards/, samples.parquet, manifests/"),
        ("runs", "runs/<row>/: results.json, predictions/, prompts.safetensors, metrics.jsonl"),
    )
    for title, files in contents:
        print(f"{title:8}{out}/{files}")

    names = ", ".join(f"demo/{name}" for name, _ in ROWS)
    print(f"configs {names}; `bmpt experiments` lists them")
