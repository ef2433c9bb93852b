"""What README says is true of the code: its commands parse, its files exist, and (long) its outputs
come out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import typer.main

from bmpt.cli.app import app
from preprocess.build_shards import build
from tests.shared_data import shared_data

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.splitlines()
]
SESSIONS = [text for kind, text in BLOCKS if kind == "console"]
COMMANDS += [line[2:] for text in SESSIONS for line in text.splitlines() if line.startswith("$ ")]
# what differs from run to run or machine to machine: seconds, rates, the accuracy of a random CLIP
VARYING = re.compile(r"in [\d.]+ s\b|[\d.]+ clips/s, ETA .*|\b\d+\.\d\d\b +|\b\d+(?=/26\b)")


def parse(words: list[str]) -> None:
    """Parse a command line by the real options without running it; a wrong one raises typer's usage
    error."""
    if words[0] == "torchrun":
        words = ["bmpt", *words[words.index("bmpt") + 1 :]]
    if "scripts/slurm_build.sh" in words:  # hands everything on
        words = [
            "python",
            "preprocess/build_shards.py",
            *words[words.index("scripts/slurm_build.sh") + 1 :],
        ]
    if words[:2] == ["python", "preprocess/build_shards.py"]:
        single = typer.Typer()
        single.command()(build)
        typer.main.get_command(single).make_context("build_shards.py", words[2:])
        return
    assert words[0] == "bmpt", f"README runs {words[0]}, which this test does not know"
    group = typer.main.get_command(app)
    assert words[1] in group.commands
    group.commands[words[1]].make_context(words[1], words[2:])


def test_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8
    assert len(SESSIONS) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_readme_has_the_options_it_names(command: str) -> None:
    words = shlex.split(command)
    for word in words:
        if word.startswith(("scripts/", "configs/", "preprocess/", "tests/")):
            assert (ROOT / word).exists(), f"{word} is not there"
    if words[0] in ("bash", "pip", "export") or words[:2] == [
        "python",
        "scripts/pretrain_demo_clip.py",
    ]:
        return
    parse(words)


def test_a_command_with_an_option_that_is_not_there_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(shlex.split("bmpt train configs/x.yaml --no-such-option"))


def test_every_file_that_readme_links_or_lists_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    (tree,) = [text for _, text in BLOCKS if text.startswith("shards/ ")]
    folder = ROOT
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = ROOT / line.split()[0]
        for name in re.findall(r"[\w/]+\.(?:py|sh)\b|^  \w+/", line):
            assert (folder / name.strip()).exists(), f"{folder.name}/{name.strip()}"


def test_every_module_stands_in_the_tree_of_readme() -> None:
    (tree,) = [text for _, text in BLOCKS if text.startswith("shards/ ")]
    listed = set(re.findall(r"\w+\.py|(?<=  )\w+(?=/)", tree))
    for package in ("shards", "preprocess", "bmpt"):
        for path in (ROOT / package).iterdir():
            if path.suffix == ".py" and not path.name.startswith("__"):
                assert path.name in listed, f"{package}/{path.name} is not in README"


@pytest.mark.long
def test_the_sessions_of_readme_print_what_stands_there(tmp_path: Path) -> None:
    data = shared_data()
    for session in SESSIONS:
        for command, expected in re.findall(
            r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, flags=re.MULTILINE
        ):
            words = shlex.split(command.replace("$DATA", str(data)))
            words = [
                str(ROOT / word) if word.startswith(("preprocess/", "configs/")) else word
                for word in words
            ]
            program = (
                [sys.executable, *words[1:]]
                if words[0] == "python"
                else [sys.executable, "-m", *words]
            )
            done = subprocess.run(
                program, cwd=tmp_path, capture_output=True, text=True, timeout=600
            )
            printed = (done.stdout + done.stderr).replace(str(data), "$DATA")
            for line in expected.splitlines():
                pattern = re.escape(VARYING.sub("<varies>", line)).replace("<varies>", ".*")
                assert re.search(pattern, printed), (
                    f"{command}\ndoes not print: {line}\nbut:\n{printed}"
                )
