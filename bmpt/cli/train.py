"""The commands for runs: train, eval, plan, experiments, config, demo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bmpt.cli.help import add_command
from bmpt.cli.output import show_results
from shards.cli import JsonOption, print_report

_SECTION = "Train and evaluate"


def _complete_experiment(incomplete: str) -> list[str]:
    """Return the shipped experiments that begin with a word, for shell completion."""
    from bmpt.config import EXPERIMENTS
    from shards.config_names import config_names

    return [name for name in config_names(EXPERIMENTS) if name.startswith(incomplete)]


ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="Path of a YAML file, or name of an experiment; see `bmpt experiments`.",
        autocompletion=_complete_experiment,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Change a key of the config. Repeatable."),
]


def train(
    config: ConfigPath,
    set_: SetOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard what an earlier run left in the run folder.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tune a method, then evaluate it.

    Resumes from the state in the run folder, also with another number of ranks.
    """
    from bmpt.config import load_config
    from bmpt.run import run_training
    from bmpt.runtime.distributed import start_world

    settings = load_config(config, set_ or [])
    world = start_world(threads=settings.run.threads)
    outcome = run_training(settings, world, fresh=fresh)

    if world.is_main and outcome.was_stopped:
        print(
            f"stopped; the state is saved in {outcome.folder}: run the same command to resume",
            file=sys.stderr,
        )
    if outcome.results is not None:
        show_results(outcome.results, outcome.folder, as_json=as_json)


def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[
        Path | None, typer.Option(help="prompts.safetensors of a run with the same method.")
    ] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint, or a method without training.

    Counts every sample exactly once at any number of ranks.
    """
    from bmpt.config import load_config
    from bmpt.run import run_evaluation
    from bmpt.runtime.distributed import start_world

    settings = load_config(config, set_ or [])
    world = start_world(threads=settings.run.threads)
    outcome = run_evaluation(settings, world, checkpoint=checkpoint)

    if outcome.results is not None:
        show_results(outcome.results, outcome.folder, as_json=as_json)


def plan(
    address: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|MANIFEST", help="As for train, or POOL/manifests/PROTOCOL/NAME.parquet."
        ),
    ],
    set_: SetOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the cost of a request to the pool first.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Estimate the bytes, requests and time of a run.

    Reads only the tables of the pool.
    """
    from bmpt.data_plan import plan_address, run_plan_text

    run_plan = plan_address(address, set_ or (), measure=measure)
    print_report(run_plan, run_plan_text(run_plan), as_json=as_json)


def experiments(as_json: JsonOption = False) -> None:
    """List the experiments that ship with bmpt.

    `bmpt train NAME` and `bmpt eval NAME` take each of them.
    """
    from bmpt.experiments import experiments_text, list_experiments

    listed = list_experiments()
    print_report(listed, experiments_text(listed), as_json=as_json)


def config(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="Path of a YAML file, or name of an experiment.",
            autocompletion=_complete_experiment,
        ),
    ] = None,
    set_: SetOption = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List all keys with type, default and meaning instead.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a config instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the values of a config and their origins.

    The origin is a file of the `base:` chain, `--set` or the default.
    """
    from shards.errors import ConfigError

    if keys or schema:
        from bmpt.config_keys import all_keys, config_schema, keys_text

        if schema:
            print(json.dumps(config_schema(), indent=2))
        else:
            listed = all_keys()
            print_report(listed, keys_text(listed), as_json=as_json)
        return

    if config is None:
        raise ConfigError("give a CONFIG, --keys or --schema")

    from bmpt.resolved_config import resolve_config, resolved_text

    resolved = resolve_config(config, set_ or ())
    print_report(resolved, resolved_text(resolved), as_json=as_json)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for videos, pool and runs.")] = Path(
        "data/demo"
    ),
    as_json: JsonOption = False,
) -> None:
    """Run the whole path on rendered videos.

    Renders a small action data set, builds its pool, tunes BMPT on 16 shots and prints the
    accuracies on base and novel classes. Needs no download and no GPU; finished work is kept.
    """
    from bmpt.demo.run import run_demo
    from preprocess.build_shards import main as build_main

    raise typer.Exit(run_demo(out, build_pool=build_main, as_json=as_json))


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    add_command(
        app,
        train,
        section=_SECTION,
        examples=(
            "bmpt train few_shot/ucf101_k2",
            "bmpt train few_shot/ucf101_k2 --set train.lr=1e-5 --set run.dir=runs/trial",
            "torchrun --nproc-per-node 2 -m bmpt train few_shot/ucf101_k2",
        ),
    )
    add_command(
        app,
        evaluate,
        name="eval",
        section=_SECTION,
        examples=(
            "bmpt eval zero_shot/ucf101",
            "bmpt eval few_shot/ucf101_k2 --checkpoint runs/few_shot/ucf101_k2/prompts.safetensors",
        ),
    )
    add_command(
        app,
        plan,
        section=_SECTION,
        examples=(
            "bmpt plan few_shot/ucf101_k2 --set data.pool=s3://bucket/ucf101",
            "bmpt plan data/ucf101/manifests/few_shot/train_k16.parquet",
        ),
    )
    add_command(
        app,
        experiments,
        section=_SECTION,
        examples=("bmpt experiments", "bmpt experiments --json"),
    )
    add_command(
        app,
        config,
        section=_SECTION,
        examples=(
            "bmpt config few_shot/ucf101_k2 --set train.lr=1e-5",
            "bmpt config --keys",
            "bmpt config --schema",
        ),
    )
    add_command(
        app,
        demo,
        section=_SECTION,
        examples=("bmpt demo", "bmpt demo --out /tmp/demo --json"),
    )
