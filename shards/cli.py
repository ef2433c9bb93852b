"""Parts that all command lines share: exit codes, one-line errors, common options."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shards.errors import BmptError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

EXIT_FINDINGS, EXIT_MISTAKE, EXIT_SIGINT = 1, 2, 130

# The time that rank 1 waits before it prints its error; tests set a shorter one.
RANK_WAIT_VARIABLE = "BMPT_RANK_WAIT_SECONDS"
_RANK_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 3600.0
# Fraction of that time by which each further rank of a node waits longer.
_EXTRA_WAIT_PER_RANK = 0.2

# The class of errors about wrong options. typer has its own copy of click and does not export it.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

PoolPath = Annotated[
    str,
    typer.Argument(
        metavar="POOL",
        help="A finished pool: its folder or address (s3://, gs://, az://, https://).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def run_app(
    app: typer.Typer, argv: Sequence[str] | None = None, *, prog_name: str | None = None
) -> int:
    """Run a typer app.

    An unexpected error keeps its traceback.

    Returns:
        The exit code: 0, the code of the command, 2 for a user error that is printed as one line
        on stderr, or 130 for Ctrl-C.
    """
    try:
        args = list(argv) if argv is not None else None
        code = app(args=args, prog_name=prog_name, standalone_mode=False)
    except BmptError as error:
        _print_error(str(error))
        return EXIT_MISTAKE
    except _UsageError as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        _print_error(f"{text.rstrip('.')}; --help lists the options and arguments")
        return EXIT_MISTAKE
    except typer.Abort:
        # Ctrl-C before typer 0.14, which turns it into the exit code.
        code = EXIT_SIGINT

    if code == EXIT_SIGINT:
        _print_error("interrupted; run the same command again, it resumes")
    return code if isinstance(code, int) else 0


def print_report(report: DataclassInstance, text: str, *, as_json: bool) -> None:
    """Print a report on stdout, as one JSON object or as text.

    A report whose JSON differs from its fields has a method `as_json`.
    """
    if not as_json:
        print(text)
        return

    own_json = getattr(report, "as_json", None)
    values = own_json() if own_json is not None else dataclasses.asdict(report)
    print(json.dumps(values, ensure_ascii=False))


def warn(sentence: str | None) -> None:
    """Print a warning on stderr, or nothing for None."""
    if sentence is not None:
        print(f"warning: {sentence}", file=sys.stderr)


def show_duration(seconds: float) -> str:
    """Return `4.2 s`, `3 min 38 s` or `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def seconds_before_error(environment: Mapping[str, str]) -> float:
    """Return the seconds that a rank waits before it prints its error.

    Most user errors occur on every rank, and torchrun kills all ranks when the first one exits.
    Higher ranks therefore wait, so that rank 0 prints the error and only an error of one rank is
    printed by that rank.

    Args:
        environment: with RANK and LOCAL_RANK of torchrun, and RANK_WAIT_VARIABLE if the wait is
            not 5 s.

    Returns:
        0 for rank 0, and more for each higher rank of the node.
    """
    if environment.get("RANK", "0") == "0":
        return 0.0

    try:
        wait = float(environment.get(RANK_WAIT_VARIABLE, ""))
    except ValueError:
        wait = _RANK_WAIT_SECONDS
    # Also for nan. An error about the variable would hide the one that is to be printed.
    if not 0 <= wait <= _LONGEST_WAIT_SECONDS:
        wait = _RANK_WAIT_SECONDS
    return wait * (1 + _EXTRA_WAIT_PER_RANK * int(environment.get("LOCAL_RANK", "0")))


def _print_error(sentence: str) -> None:
    """Print an error as one line on stderr, with the rank if it is not 0.

    rich is not used here, because it wraps lines at 80 columns.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(seconds_before_error(os.environ))
        sentence = f"rank {rank}: {sentence}"

    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
