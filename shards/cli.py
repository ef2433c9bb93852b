"""Run a command line with this project's exit codes and one-line errors, and what several commands
share."""

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
# the shortest time that a rank other than 0 waits before it prints its error; tests set another
RANK_WAIT_VARIABLE = "BMPT_RANK_WAIT_SECONDS"
_RANK_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 3600.0
_EXTRA_WAIT_PER_RANK = 0.2  # of that time, for each lower rank on the node
# the class of wrong options; typer carries its own copy of click and does not name it
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
    """Run a typer app: 0, or what it exits with; 2 for a user's mistake, in one line on stderr; 130
    for Ctrl-C.

    An unexpected error keeps its traceback."""
    try:
        args = list(argv) if argv is not None else None
        code = app(args=args, prog_name=prog_name, standalone_mode=False)
    except BmptError as error:
        _complain(str(error))
        return EXIT_MISTAKE
    except _UsageError as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        _complain(f"{text.rstrip('.')}; --help lists what there is")
        return EXIT_MISTAKE
    except typer.Abort:  # what Ctrl-C becomes before typer 0.14, which turns it into exit code 130
        code = EXIT_SIGINT
    if code == EXIT_SIGINT:
        _complain("interrupted; run the same command again, it goes on where it stopped")
    return code if isinstance(code, int) else 0


def print_report(report: DataclassInstance, text: str, *, as_json: bool) -> None:
    """Print a report on stdout, as one JSON object or as text.

    A report that holds more than dataclasses has a method `as_json`."""
    if as_json:
        own_fields = getattr(report, "as_json", None)
        fields = dataclasses.asdict(report) if own_fields is None else own_fields()
        print(json.dumps(fields, ensure_ascii=False))
    else:
        print(text)


def warn(sentence: str | None) -> None:
    """What a person should know of a command that goes on, on stderr; nothing for None."""
    if sentence is not None:
        print(f"warning: {sentence}", file=sys.stderr)


def show_duration(seconds: float) -> str:
    """`4.2 s`, `3 min 38 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def seconds_before_error(environment: Mapping[str, str]) -> float:
    """Return the seconds that a rank waits before it prints its error: 0 for rank 0, more for each
    higher local rank.

    Most user errors occur on every rank, and torchrun ends all ranks when the first one exits.
    Higher ranks therefore wait, so that the error is printed once.

    Args:
        environment: with RANK and LOCAL_RANK of torchrun, and RANK_WAIT_VARIABLE for another wait
            than 5 s.
    """
    if environment.get("RANK", "0") == "0":
        return 0.0

    try:
        wait = float(environment.get(RANK_WAIT_VARIABLE, ""))
    except ValueError:
        wait = _RANK_WAIT_SECONDS
    # also for nan: an error about the variable would hide the one that is to be printed
    if not 0 <= wait <= _LONGEST_WAIT_SECONDS:
        wait = _RANK_WAIT_SECONDS
    return wait * (1 + _EXTRA_WAIT_PER_RANK * int(environment.get("LOCAL_RANK", "0")))


def _complain(sentence: str) -> None:
    """Print an error as one line on stderr, a rank other than 0 later and with its number.

    Not through rich, which wraps at 80 columns."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(seconds_before_error(os.environ))
        sentence = f"rank {rank}: {sentence}"
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
