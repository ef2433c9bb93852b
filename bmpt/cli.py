"""The command line. Every command imports what it needs when it runs: `bmpt --help` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shards.commands import run_app

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

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML of configs/experiments")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="change a key of the config; may be repeated")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"bmpt {version('bmpt')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and leave")
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
    fresh: Annotated[bool, typer.Option("--fresh", help="forget what an earlier start left in the run folder")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tune a method and score it; goes on from the run folder's state.pt by itself.

    One process, or `torchrun --nproc-per-node 2 -m bmpt train CONFIG`."""
    from bmpt.config import load_config
    from bmpt.engine.distributed import start_world
    from bmpt.engine.train import run_training

    settings = load_config(config, set_ or [])
    world = start_world(threads=settings.run.threads)
    outcome = run_training(settings, world, fresh=fresh)
    if world.is_main and outcome.was_stopped:
        print(f"stopped; the state is saved in {outcome.folder}: the same command goes on", file=sys.stderr)
    if outcome.results is not None:
        _show_results(outcome.results, outcome.folder, as_json=as_json)


@app.command("eval")
def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[Path | None, typer.Option(help="prompts.safetensors of a run of the same method")] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score the manifests of a config: exact counts, every sample once at any number of ranks."""
    from bmpt.config import load_config
    from bmpt.engine.distributed import start_world
    from bmpt.engine.train import run_evaluation

    settings = load_config(config, set_ or [])
    world = start_world(threads=settings.run.threads)
    outcome = run_evaluation(settings, world, checkpoint=checkpoint)
    if outcome.results is not None:
        _show_results(outcome.results, outcome.folder, as_json=as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for videos, pool and runs")] = Path("data/demo"),
    as_json: JsonOption = False,
) -> None:
    """Render a small action data set, build its pool, tune BMPT on 16 shots and print base, novel and HM.

    Needs no download and no GPU; finished work is not done again."""
    from bmpt.demo.run import run_demo
    from preprocess.build_shards import main as build_main

    raise typer.Exit(run_demo(out, build_pool=build_main, as_json=as_json))


def _show_results(results: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    from bmpt.evaluation.report import results_table

    print(results_table(results))
    print(f"results: {folder / 'results.json'}")


def main() -> None:
    """Run a command; the exit codes are those of `shards.commands.run_app`."""
    code = run_app(app, prog_name="bmpt")
    if "torch.distributed" in sys.modules:
        from bmpt.engine.distributed import leave_world

        leave_world(code)
    sys.exit(code)
