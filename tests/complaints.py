"""Checks of errors: one line that names what is wrong, of a command or of a function."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bmpt.cli.app import app
from shards.cli import run_app
from shards.errors import BmptError

_PROGRESS = re.compile(r"\w+: \d+/\d+")


def run(*words: str) -> int:
    """Run a `bmpt` command in this process and return its exit code."""
    return run_app(app, words, prog_name="bmpt")


def complains(capsys: pytest.CaptureFixture[str], *words: str, shows_progress: bool = False) -> str:
    """Run a `bmpt` command that ends with exit code 2 and one line on stderr; return the line.

    Args:
        shows_progress: lines of progress may stand before the error.
    """
    capsys.readouterr()
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines(keepends=True)
    if shows_progress:
        lines = [line for line in lines if not _PROGRESS.match(line)]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert lines[0].endswith("\n")
    return lines[0]


@contextlib.contextmanager
def refused(file: Path, kind: type[BmptError], sentence: str) -> Iterator[None]:
    """Assert that the body raises an error of this kind: the sentence (a regular expression), in
    one line that names the file."""
    with pytest.raises(kind, match=sentence) as caught:
        yield
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)
