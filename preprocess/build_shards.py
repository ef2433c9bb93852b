"""Build a pool: `python preprocess/build_shards.py --dataset ssv2`, the same as `bmpt build`.

This file defines the options of both. It runs from any folder, and from a checkout that was never
installed."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Python puts the folder of a script first, but the packages are one level above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from preprocess.sources import DATASETS
from shards.cli import EXIT_FINDINGS, run_app

if TYPE_CHECKING:  # imported in functions, so that `--help` is fast
    from preprocess.coordinator.report import BuildReport
    from preprocess.settings import BuildSettings

EXIT_SIGTERM = 143


def build(
    dataset: Annotated[
        str, typer.Option(help=f"{', '.join(DATASETS)}, or one that another package registers.")
    ],
    videos: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The video files.  [default: ./videos/<dataset>]"),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The data set's own split files.")
    ] = None,
    splits: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A ViFi-CLIP, BDC-CLIP, BMPT or BIKE checkout; may be repeated."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Folder or address of the pool.  [default: ./data/<dataset>]"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Decoding processes.  [default: all cores]")
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Build only the shards of part I of N.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Make one pool of all parts.")] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Build only the first N keys.")
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Decode failed and changed videos again and rewrite their shards.",
        ),
    ] = False,
    check_sources: Annotated[
        bool, typer.Option("--check-sources", help="Also compare the sha256 of finished videos.")
    ] = False,
    expect_sources: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Sizes and sha256 of good files: another pool's samples.parquet, or a CSV.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Where videos are decoded: local or ray.  [default: local]"
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="A", help="A running Ray cluster: auto, or host:port.  [default: a new one]"
        ),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="pyav, or ffmpeg: one process per video.  [default: pyav]"
        ),
    ] = None,
    hwaccel: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="FFmpeg's -hwaccel, with --decoder ffmpeg: cuda, vaapi, ..."
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for open shards of a remote pool.  [default: ./scratch/<dataset>]",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan, the sizes and the time; write nothing."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if any video is missing or not ok.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change any setting, e.g. labels=official, jpeg_quality=95.",
        ),
    ] = None,
) -> None:
    """Decode the videos of a data set once, into a pool of shards and the manifests of all
    protocols.

    An interrupted build continues when the same command is run again. If the pool is finished, the
    command does nothing."""
    from preprocess.settings import make_build_settings

    # None stands for an option that was not given: only given options override a default.
    options: dict[str, Any] = {
        "dataset": dataset,
        "videos": videos,
        "annotations": annotations,
        "splits": splits,
        "out": out,
        "workers": workers,
        "part": part,
        "merge": merge or None,
        "limit": limit,
        "retry_failed": retry_failed or None,
        "check_sources": check_sources or None,
        "expect_sources": expect_sources,
        "engine": engine,
        "ray_address": ray_address,
        "decoder": decoder,
        "hwaccel": hwaccel,
        "scratch": scratch,
        "strict": strict or None,
        "json": json_output or None,
    }
    settings = make_build_settings(options, overrides or ())
    with _end_on_sigterm():
        report = _run(settings, dry_run=dry_run)
    if settings.strict and report.has_findings:
        raise typer.Exit(EXIT_FINDINGS)


# The formatter of the help keeps the lines behind \b as they are.
_EXAMPLES = """\b
Examples:
  python preprocess/build_shards.py --dataset ssv2 --videos 20bn-v2 --annotations labels
  python preprocess/build_shards.py --dataset ucf101 --splits ViFi-CLIP --out s3://bucket/ucf101
  python preprocess/build_shards.py --dataset folder --videos clips --dry-run"""


def main(argv: Sequence[str] | None = None, *, prog_name: str | None = None) -> int:
    """Run the command line and return its exit code; a user error is one line on stderr.

    Args:
        argv: arguments, by default those of this process
        prog_name: name of the program in `--help`"""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(epilog=_EXAMPLES)(build)
    return run_app(app, argv, prog_name=prog_name)


def _run(settings: BuildSettings, *, dry_run: bool) -> BuildReport:
    """Build or plan, and print the report."""
    from preprocess import console
    from preprocess.coordinator import pipeline
    from shards.progress import Progress

    if dry_run:
        report = pipeline.dry_run(settings)
    else:
        with Progress() as progress:
            report = pipeline.run_build(settings, progress=progress)

    console.print_warnings(report)
    if settings.json_output:
        print(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        console.print_report(report)
    return report


@contextlib.contextmanager
def _end_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exit that ends the workers, closes the files and names the next step."""

    def end(signum: int, frame: object) -> NoReturn:
        print("terminated; run the same command again, it resumes", file=sys.stderr)
        raise SystemExit(EXIT_SIGTERM)

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
