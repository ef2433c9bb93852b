"""The commands for pools: build, verify, repair, diff, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bmpt.cli.help import add_command
from bmpt.cli.output import show_results
from shards.cli import EXIT_FINDINGS, JsonOption, PoolPath, print_report

_SECTION = "Prepare videos"


def build(context: typer.Context) -> None:
    """Decode videos once, into a pool of shards.

    The same as `python preprocess/build_shards.py`.
    """
    # The options are defined once, in preprocess/build_shards.py: everything is passed on.
    from preprocess.build_shards import main as build_main

    raise typer.Exit(build_main(context.args, prog_name="bmpt build"))


def verify(
    pool: PoolPath,
    level: Annotated[
        str,
        typer.Option(
            help="quick: tables and offsets; full: every hash, too; deep: decodes every frame, too."
        ),
    ] = "full",
    as_json: JsonOption = False,
) -> None:
    """Check a pool for damage.

    Prints a line per finding. Exits with 1 if anything is damaged.
    """
    from shards.maintenance.verify import verification_text, verify_pool
    from shards.progress import Progress

    with Progress() as progress:
        verification = verify_pool(pool, level=level, progress=progress)

    print_report(verification, verification_text(verification), as_json=as_json)
    if not verification.is_clean:
        raise typer.Exit(EXIT_FINDINGS)


def repair(
    pool: PoolPath,
    videos: Annotated[
        Path, typer.Option(metavar="DIR", help="The source videos that the pool was built from.")
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For damaged manifests: the value given to build."),
    ] = None,
    splits: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="For damaged manifests: the value given to build. Repeatable."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Decoding processes.  [default: all cores]")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the build: labels=official."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Restore damaged shards and manifests of a pool.

    Decodes the affected videos again. The pool has the same bytes and the same pool_id as before
    the damage.
    """
    from preprocess.coordinator.repair import RepairOptions, repair_pool, repair_text
    from shards.progress import Progress

    options = RepairOptions(pool, videos, annotations, splits or (), workers, set_ or ())
    with Progress() as progress:
        repaired = repair_pool(options, progress=progress)

    print_report(repaired, repair_text(repaired), as_json=as_json)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A pool.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another pool.")],
    as_json: JsonOption = False,
) -> None:
    """List the differences between two pools.

    Compares the tables of the pools and opens no shard. Exits with 1 if the pools differ.
    """
    from shards.maintenance.diff import diff_pools, diff_text

    difference = diff_pools(a, b)
    print_report(difference, diff_text(difference), as_json=as_json)
    if not difference.is_equal:
        raise typer.Exit(EXIT_FINDINGS)


def report(
    folder: Annotated[
        str, typer.Argument(metavar="POOL|RUN", help="A pool, or the folder of a run.")
    ],
    key: Annotated[
        str | None, typer.Option(help="A sample of the pool: writes its frames as one picture.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The picture, a .jpg file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Summarise a pool, or the results of a run.

    For a pool: videos per verdict, failed videos with their reasons, clips per manifest.
    """
    results = Path(folder) / "results.json"

    if results.is_file():
        text = results.read_text(encoding="utf-8")
        show_results(json.loads(text), Path(folder), as_json=as_json)
    elif key is not None or out is not None:
        from shards.maintenance.contact_sheet import write_contact_sheet

        print(write_contact_sheet(folder, key, out))
    else:
        from shards.maintenance.pool_report import report_pool, report_text

        summary = report_pool(folder)
        print_report(summary, report_text(summary), as_json=as_json)


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    add_command(
        app,
        build,
        section=_SECTION,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        examples=(
            "bmpt build --dataset ucf101 --videos videos/ucf101 --out data/ucf101",
            "bmpt build --dataset ssv2 --dry-run",
        ),
    )
    add_command(
        app,
        verify,
        section=_SECTION,
        examples=("bmpt verify data/ucf101", "bmpt verify s3://bucket/ucf101 --level quick"),
    )
    add_command(
        app,
        repair,
        section=_SECTION,
        examples=(
            "bmpt repair data/ucf101 --videos videos/ucf101",
            "bmpt repair data/ucf101 --videos videos/ucf101 --workers 4",
        ),
    )
    add_command(
        app,
        diff,
        section=_SECTION,
        examples=("bmpt diff data/ucf101 s3://bucket/ucf101", "bmpt diff data/old data/new --json"),
    )
    add_command(
        app,
        report,
        section=_SECTION,
        examples=(
            "bmpt report data/ucf101",
            "bmpt report data/ucf101 --key v_Archery_g01_c06 --out archery.jpg",
            "bmpt report runs/few_shot/ucf101_k2",
        ),
    )
