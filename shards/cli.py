"""Run a command line with this project's exit codes and one-line errors, and what several commands
share."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shards.errors import BmptError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

EXIT_FINDINGS, EXIT_MISTAKE, EXIT_SIGINT = 1, 2, 130
_SECONDS_TO_SAY_IT, _SECONDS_A_RANK = 5.0, 1.0
# the class of wrong options; typer carries its own copy of click and does not name it
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

PoolPath = Annotated[
    str,
    typer.Argument(
        metavar="POOL",
        help="a finished pool: its folder or address (s3://, gs://, az://, https://)",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


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
    """Print a report on stdout, as one JSON object or as text."""
    print(json.dumps(dataclasses.asdict(report), ensure_ascii=False) if as_json else text)


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


def _complain(sentence: str) -> None:
    """One line on stderr, never through rich, which wraps at 80 columns.

    Mistakes are mostly met by all ranks, and torchrun ends all as soon as one exits: the others
    leave those before them on the node the time to say it, and then say with their number what
    these may not have met."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_SECONDS_TO_SAY_IT + _SECONDS_A_RANK * int(os.environ.get("LOCAL_RANK", "0")))
        sentence = f"rank {rank}: {sentence}"
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
