"""The form of the help: commands by task, whole summaries, examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

SECTIONS = (
    "Prepare videos",
    "Train and evaluate",
    "Texts and features by models",
    "Checkpoints",
    "Look and measure",
)
_WIDTH = 80


class SectionedGroup(TyperGroup):
    """A group whose help lists the commands by section and never cuts a summary."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one list of commands per section."""
        names = self.list_commands(ctx)
        commands = {name: self.get_command(ctx, name) for name in names}
        indent = max(map(len, names))

        for section in (*SECTIONS, None):
            rows = []
            for name, command in commands.items():
                if command is None or getattr(command, "rich_help_panel", None) != section:
                    continue
                rows.append((name.ljust(indent), command.get_short_help_str(limit=_WIDTH)))

            if rows:
                with formatter.section(section or "Commands"):
                    formatter.write_dl(rows)


def add_command(
    app: typer.Typer,
    function: Callable[..., None],
    *,
    examples: Sequence[str],
    name: str | None = None,
    section: str | None = None,
    **options: Any,
) -> None:
    """Register a function as a command.

    Args:
        app: the group that gets the command.
        function: its parameters are the options, its docstring is the help. The first sentence is
            the summary in the group's help, so that it has to be short.
        examples: command lines, shown at the end of the help.
        name: of the command, if it differs from the function's.
        section: of `SECTIONS`; None in a group that has none.
        options: further ones of `typer.Typer.command`.
    """
    epilog = "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])
    app.command(name, rich_help_panel=section, epilog=epilog, **options)(function)
