"""The command line: `bmpt COMMAND`.

A command imports what it needs when it runs, so that `bmpt --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bmpt.cli import bench, checkpoints, info, pools, texts, train
from bmpt.cli.help import SectionedGroup
from shards.cli import run_app

app = typer.Typer(
    name="bmpt",
    help=(
        "CLIP prompt tuning for video action recognition. `build` decodes each video once, `train` "
        "streams exactly the bytes that a protocol needs and tunes on any number of GPUs, `eval` "
        "scores every sample exactly once. `bmpt demo` shows the whole path in a minute."
    ),
    epilog="`bmpt COMMAND --help` explains a command and gives examples.",
    cls=SectionedGroup,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for group in (pools, train, texts, checkpoints, bench, info):
    group.add_commands(app)


def main() -> None:
    """Run the command line and exit; the exit codes are those of `shards.cli.run_app`."""
    code = run_app(app, prog_name="bmpt")

    # Only a command that computes has imported it. It is looked up instead of imported, because
    # Ctrl-C may have interrupted the import.
    distributed = sys.modules.get("bmpt.runtime.distributed")
    if distributed is not None:
        distributed.leave_world(code)

    sys.exit(code)
