"""The command `bmpt info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmpt.cli.help import add_command
from shards.cli import JsonOption, print_report


def info(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="A config whose cache is described, too."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a bug report needs.

    Versions, GPUs, decoders, the source of credentials (never a secret), free disk and cache.
    """
    from bmpt.config import load_config
    from bmpt.info import collect_info, info_text
    from preprocess.decode.available import available_decoders
    from preprocess.settings import count_cores

    settings = None if config is None else load_config(config)
    facts = collect_info(available_decoders(), count_cores(), settings)
    print_report(facts, info_text(facts), as_json=as_json)


def add_commands(app: typer.Typer) -> None:
    """Register the command of this file."""
    add_command(
        app,
        info,
        section="Look and measure",
        examples=("bmpt info", "bmpt info few_shot/ucf101_k2 --json"),
    )
