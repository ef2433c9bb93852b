"""The commands `bmpt bench build | loader | train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmpt.cli.help import SectionedGroup, add_command
from shards.cli import JsonOption, PoolPath

if TYPE_CHECKING:
    from bmpt.bench.loader import LoaderBenchmark
    from bmpt.bench.train import TrainBenchmark
    from preprocess.bench import BuildBenchmark

_SECTION = "Look and measure"


def bench_build(
    videos: Annotated[
        Path, typer.Argument(metavar="DIR", help="Videos to decode, for example of one data set.")
    ],
    repeats: Annotated[
        int, typer.Option(min=1, help="Repetitions; the best of each video counts.")
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Compare building with decoding alone.

    Also compares with the usual FFmpeg scripts that write every frame.
    """
    from preprocess.bench import bench_build as measure
    from shards.progress import Progress

    with Progress() as progress:
        benchmark = measure(videos, repeats=repeats, progress=progress)

    _show(benchmark, f"{benchmark.videos} videos", as_json=as_json)


def bench_loader(
    pool: PoolPath,
    manifest: Annotated[str, typer.Argument(help="For example few_shot/train_k16.")],
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The source videos: measures decord, too.")
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(metavar="POOL", help="The same pool in object storage: measures it, too."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; the best counts.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Compare the training loader with its limit and its peers.

    The limit is a plain loop of decode, crop and resize; the peers are stock webdataset, frames in
    folders and decord.
    """
    from bmpt.bench.loader import bench_loader as measure
    from shards.progress import Progress

    with Progress() as progress:
        benchmark = measure(
            pool, manifest, videos=videos, remote=remote, repeats=repeats, progress=progress
        )

    _show(benchmark, f"{benchmark.samples} samples", as_json=as_json)


def bench_train(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A ViT of open_clip, with random weights.")
    ] = "ViT-B-32",
    classes: Annotated[int, typer.Option(min=2, help="K, each with a negative.")] = 51,
    frames: Annotated[int, typer.Option(min=1, help="T, frames per clip.")] = 8,
    accumulation: Annotated[int, typer.Option(min=1, help="Micro-batches per step.")] = 8,
    clips: Annotated[int, typer.Option(min=1, help="Clips per micro-batch and rank.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads per rank.  [default: all cores]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; the best counts.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Compare a training step with the published systems' step.

    Measures each optimisation by itself. Takes minutes on a CPU.
    """
    from bmpt.bench.train import BenchmarkSize
    from bmpt.bench.train import bench_train as measure
    from bmpt.runtime.distributed import start_world
    from shards.progress import NullProgress, Progress

    if threads is None:
        num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        threads = max(1, (os.cpu_count() or 1) // num_ranks)

    world = start_world(threads=threads)
    size = BenchmarkSize(model, classes, frames, accumulation, clips)
    with Progress() if world.is_main else NullProgress() as progress:
        benchmark = measure(size, world, repeats=repeats, progress=progress)

    if world.is_main:
        _show(benchmark, benchmark.summary(), as_json=as_json)


def add_commands(app: typer.Typer) -> None:
    """Register the group `bench`."""
    bench = typer.Typer(
        cls=SectionedGroup,
        help="Measure the speed of a stage.\n\nBoth sides of a ratio are measured in one run.",
        rich_markup_mode=None,
    )
    add_command(
        bench,
        bench_build,
        name="build",
        examples=("bmpt bench build videos/ucf101", "bmpt bench build videos/ssv2 --repeats 5"),
    )
    add_command(
        bench,
        bench_loader,
        name="loader",
        examples=(
            "bmpt bench loader data/ucf101 few_shot/train_k16",
            "bmpt bench loader data/ucf101 few_shot/train_k16 --remote s3://bucket/ucf101",
        ),
    )
    add_command(
        bench,
        bench_train,
        name="train",
        examples=(
            "bmpt bench train --accumulation 2",
            "torchrun --nproc-per-node 2 -m bmpt bench train",
        ),
    )
    app.add_typer(bench, name="bench", rich_help_panel=_SECTION)


def _show(
    benchmark: BuildBenchmark | LoaderBenchmark | TrainBenchmark, size: str, *, as_json: bool
) -> None:
    """Print the ratios and the size of the benchmark, or all measurements as one JSON object."""
    if as_json:
        print(json.dumps(benchmark.as_json()))
        return

    for name, ratio in benchmark.ratios().items():
        print(f"{name:32}{ratio:8.2f}")
    print(f"{size}, best of {benchmark.repeats}, {benchmark.cores} cores")
