"""The command line. Every command imports what it needs when it runs: `bmpt --help` answers at
once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmpt.cli.texts import attributes, describe, knowledge
from shards.cli import EXIT_FINDINGS, JsonOption, PoolPath, print_report, run_app, warn

if TYPE_CHECKING:
    from bmpt.bench.loader import LoaderBenchmark
    from bmpt.bench.train import TrainBenchmark
    from preprocess.bench import BuildBenchmark

app = typer.Typer(
    name="bmpt",
    help=(
        "CLIP prompt tuning for video action recognition: decode each video once (build), stream exactly the bytes a "
        "protocol needs, tune and score on any number of GPUs (train, eval). `bmpt demo` shows the whole path."
    ),
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="path of a YAML, or name of an experiment; see `bmpt experiments`"
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="change a key of the config; may be repeated"),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"bmpt {version('bmpt')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version and leave"
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help="Decode videos once into a pool of shards: the same as `python preprocess/build_shards.py`.",
)
def build(context: typer.Context) -> None:
    """Hand everything on: the options are defined once, in `preprocess/build_shards.py`."""
    from preprocess.build_shards import main as build_main

    raise typer.Exit(build_main(context.args, prog_name="bmpt build"))


@app.command()
def train(
    config: ConfigPath,
    set_: SetOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="forget what an earlier start left in the run folder")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tune a method and score it; goes on from the run folder's state.pt by itself.

    One process, or `torchrun --nproc-per-node 2 -m bmpt train CONFIG`."""
    from bmpt.config import load_config
    from bmpt.run import run_training
    from bmpt.runtime.distributed import start_world

    settings = load_config(config, set_ or [])
    world = start_world(threads=settings.run.threads)
    outcome = run_training(settings, world, fresh=fresh)
    if world.is_main and outcome.was_stopped:
        print(
            f"stopped; the state is saved in {outcome.folder}: the same command goes on",
            file=sys.stderr,
        )
    if outcome.results is not None:
        _show_results(outcome.results, outcome.folder, as_json=as_json)


@app.command()
def plan(
    address: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|MANIFEST",
            help="as for train, or POOL/manifests/PROTOCOL/NAME.parquet",
        ),
    ],
    set_: SetOption = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="measure first what a request to the pool's bucket costs"),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Count the bytes and requests that a run will ask of its pool, and estimate the time; reads
    tables alone."""
    from bmpt.data_plan import plan_address, run_plan_text

    found = plan_address(address, set_ or (), measure=measure)
    print_report(found, run_plan_text(found), as_json=as_json)


@app.command("eval")
def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[
        Path | None, typer.Option(help="prompts.safetensors of a run of the same method")
    ] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score the manifests of a config: exact counts, every sample once at any number of ranks."""
    from bmpt.config import load_config
    from bmpt.run import run_evaluation
    from bmpt.runtime.distributed import start_world

    settings = load_config(config, set_ or [])
    world = start_world(threads=settings.run.threads)
    outcome = run_evaluation(settings, world, checkpoint=checkpoint)
    if outcome.results is not None:
        _show_results(outcome.results, outcome.folder, as_json=as_json)


@app.command()
def experiments(as_json: JsonOption = False) -> None:
    """List the experiments that ship with the project; `bmpt train` takes each by its name."""
    from bmpt.experiments import experiments_text, list_experiments

    found = list_experiments()
    print_report(found, experiments_text(found), as_json=as_json)


@app.command("import-checkpoint")
def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="the .pth or .pt file that a system published")
    ],
    system: Annotated[
        str, typer.Option(help="which system wrote it: vifi_clip, bdc_clip, bmpt or bike")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="folder for the files of this project's format")
    ],
    model: Annotated[
        str, typer.Option(help="the CLIP that it was tuned from, as model.name")
    ] = "ViT-B-16",
    pretrained: Annotated[str, typer.Option(help="its weights, as model.pretrained")] = "openai",
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="bdc_clip: names of its classes, a line each or an id,name CSV"
        ),
    ] = None,
    attributes_head: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="bike: the file of its attributes branch, FILE being its video branch's",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take over a published checkpoint: every key explained or the command fails; nothing in the
    file is executed."""
    from bmpt.checkpoints.published_import import (
        check_asked,
        import_text,
        join_attributes,
        write_import,
    )
    from bmpt.checkpoints.published_import import import_checkpoint as read_published
    from bmpt.clip.backbone import load_backbone
    from bmpt.settings import ModelSettings
    from preprocess.protocols.lists import read_class_file

    for file in (checkpoint, attributes_head):
        if file is not None:
            check_asked(file, system)
    base = load_backbone(model, pretrained)
    warn(base.note)
    imported = read_published(checkpoint, system, base)
    if attributes_head is not None:
        imported = join_attributes(imported, attributes_head, base)
    names = () if classes is None else read_class_file(classes).names
    found = write_import(
        imported, base, ModelSettings(name=model, pretrained=pretrained), out, classes=names
    )
    print_report(found, import_text(found), as_json=as_json)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="prompts.safetensors of a run")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="default model.safetensors beside it")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="where the base model lies, if not where the run read it")
    ] = None,
    wise_ft: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="share of the tuned weights, the rest is of the base; default: the run's eval.wise_ft, 1 for none",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge a checkpoint with its base model into one safetensors file."""
    from bmpt.checkpoints.export import export_checkpoint, export_text

    target = out or checkpoint.with_name("model.safetensors")
    found = export_checkpoint(checkpoint, target, pretrained=pretrained, wise_ft=wise_ft)
    print_report(found, export_text(found), as_json=as_json)


@app.command()
def verify(
    pool: PoolPath,
    level: Annotated[
        str,
        typer.Option(help="quick: tables and places; full: every hash; deep: every frame decoded"),
    ] = "full",
    as_json: JsonOption = False,
) -> None:
    """Check a finished pool; ends with 1 if anything is damaged, with a line for each finding."""
    from shards.maintenance.verify import verification_text, verify_pool
    from shards.progress import Progress

    with Progress() as progress:
        found = verify_pool(pool, level=level, progress=progress)
    print_report(found, verification_text(found), as_json=as_json)
    if not found.is_clean:
        raise typer.Exit(EXIT_FINDINGS)


@app.command()
def repair(
    pool: PoolPath,
    videos: Annotated[
        Path, typer.Option(metavar="DIR", help="the source videos that the pool was built from")
    ],
    annotations: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for damaged manifests: as given to build")
    ] = None,
    splits: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="for damaged manifests: as given to build; repeatable"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="decoding processes; all cores if not given")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the build: labels=official"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the shards and manifests that `verify` finds damaged again: the same bytes, the same
    pool_id."""
    from preprocess.coordinator.repair import RepairOptions, repair_pool, repair_text
    from shards.progress import Progress

    options = RepairOptions(pool, videos, annotations, splits or (), workers, set_ or ())
    with Progress() as progress:
        done = repair_pool(options, progress=progress)
    print_report(done, repair_text(done), as_json=as_json)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="a pool")],
    b: Annotated[str, typer.Argument(metavar="B", help="another pool")],
    as_json: JsonOption = False,
) -> None:
    """Say how two pools differ by their tables (no shard is opened: see `bmpt verify`); ends with 1
    if they do."""
    from shards.maintenance.diff import diff_pools, diff_text

    found = diff_pools(a, b)
    print_report(found, diff_text(found), as_json=as_json)
    if not found.is_equal:
        raise typer.Exit(EXIT_FINDINGS)


@app.command()
def report(
    folder: Annotated[
        str, typer.Argument(metavar="POOL|RUN", help="a pool, or the folder of a run")
    ],
    key: Annotated[
        str | None, typer.Option(help="a sample of the pool: write its frames as one picture")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="the picture, a .jpg")] = None,
    as_json: JsonOption = False,
) -> None:
    """State what a pool holds, manifest by manifest and verdict by verdict, or the results of a
    run."""
    results = Path(folder) / "results.json"
    if results.is_file():
        _show_results(
            json.loads(results.read_text(encoding="utf-8")), Path(folder), as_json=as_json
        )
        return
    if key is not None or out is not None:
        from shards.maintenance.contact_sheet import write_contact_sheet

        print(write_contact_sheet(folder, key, out))
        return
    from shards.maintenance.pool_report import report_pool, report_text

    found = report_pool(folder)
    print_report(found, report_text(found), as_json=as_json)


for offline_command in (describe, knowledge, attributes):
    app.command()(offline_command)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for videos, pool and runs")] = Path("data/demo"),
    as_json: JsonOption = False,
) -> None:
    """Render a small action data set, build its pool, tune BMPT on 16 shots and print base, novel
    and HM.

    Needs no download and no GPU; finished work is not done again."""
    from bmpt.demo.run import run_demo
    from preprocess.build_shards import main as build_main

    raise typer.Exit(run_demo(out, build_pool=build_main, as_json=as_json))


bench = typer.Typer(
    help="Measure what a part costs beside its limit and its peers; prints ratios of one run."
)
app.add_typer(bench, name="bench")


@bench.command("build")
def bench_build(
    videos: Annotated[
        Path, typer.Argument(metavar="DIR", help="videos to measure, for example one data set's")
    ],
    repeats: Annotated[
        int, typer.Option(min=1, help="the best of so many, for each video and side")
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Preparing videos beside decoding alone and beside the usual FFmpeg scripts."""
    from preprocess.bench import bench_build as measure
    from shards.progress import ProgressBars

    with ProgressBars(enabled=True) as bars:
        measured = measure(videos, repeats=repeats, progress=bars)
    _show_benchmark(measured, f"{measured.videos} videos", as_json=as_json)


@bench.command("loader")
def bench_loader(
    pool: PoolPath,
    manifest: Annotated[str, typer.Argument(help="for example few_shot/train_k16")],
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the raw videos, to measure decord too")
    ] = None,
    remote: Annotated[
        str | None, typer.Option(metavar="POOL", help="the same pool in a bucket, to compare")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="the best of so many")] = 3,
    as_json: JsonOption = False,
) -> None:
    """The training stream beside decoding alone, stock webdataset, folders of frames and decord."""
    from bmpt.bench.loader import bench_loader as measure
    from shards.progress import ProgressBars

    with ProgressBars(enabled=True) as bars:
        measured = measure(
            pool,
            manifest,
            videos=videos,
            remote=remote,
            repeats=repeats,
            progress=lambda done, total: bars.update("measure", done, total),
        )
    _show_benchmark(measured, f"{measured.samples} samples", as_json=as_json)


@bench.command("train")
def bench_train(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="a ViT of open_clip, with random weights")
    ] = "ViT-B-32",
    classes: Annotated[int, typer.Option(min=2, help="K, each with a negative")] = 51,
    frames: Annotated[int, typer.Option(min=1, help="T, frames a clip")] = 8,
    accumulation: Annotated[int, typer.Option(min=1, help="micro-batches of a step")] = 8,
    clips: Annotated[int, typer.Option(min=1, help="of a micro-batch of one rank")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads a rank; default all cores")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="the best of so many")] = 1,
    as_json: JsonOption = False,
) -> None:
    """An optimiser step beside the plain step of the published systems, lever by lever; minutes on
    a CPU.

    One process, or `torchrun --nproc-per-node 2 -m bmpt bench train`."""
    from bmpt.bench.train import BenchmarkSize
    from bmpt.bench.train import bench_train as measure
    from bmpt.runtime.distributed import start_world
    from shards.progress import ProgressBars

    world = start_world(
        threads=threads
        or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    )
    size = BenchmarkSize(model, classes, frames, accumulation, clips)
    with ProgressBars(enabled=world.is_main) as bars:
        measured = measure(
            size,
            world,
            repeats=repeats,
            progress=lambda done, total: bars.update("measure", done, total),
        )
    if world.is_main:
        _show_benchmark(measured, measured.summary(), as_json=as_json)


def _show_benchmark(
    measured: BuildBenchmark | LoaderBenchmark | TrainBenchmark, what: str, *, as_json: bool
) -> None:
    """Print ratios and what they were measured on, or all measurements as one JSON object."""
    if as_json:
        print(json.dumps(measured.as_json()))
        return
    for name, ratio in measured.ratios().items():
        print(f"{name:32}{ratio:8.2f}")
    print(f"{what}, best of {measured.repeats}, {measured.cores} cores")


def _show_results(results: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    from bmpt.evaluation.report import results_table

    print(results_table(results))
    print(f"results: {folder / 'results.json'}")


def main() -> None:
    """Run a command; the exit codes are those of `shards.cli.run_app`."""
    code = run_app(app, prog_name="bmpt")
    distributed = sys.modules.get(
        "bmpt.runtime.distributed"
    )  # whole or not there: Ctrl-C may come while it is imported
    if distributed is not None:
        distributed.leave_world(code)
    sys.exit(code)
