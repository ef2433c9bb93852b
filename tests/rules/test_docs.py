"""Test that README and the pages of `docs/` are true: commands parse, links lead somewhere, named
files and keys exist, and (long level) the printed outputs come out."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from bmpt.cli.app import app
from bmpt.config import load_config
from preprocess.build_shards import build
from scripts import make_reference
from shards.errors import ConfigError
from tests.rules.sources import PACKAGES, ROOT, relative, source_files
from tests.rules.test_layers import FLOORS
from tests.shared_data import shared_data

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "shards" / "README.md",
    *DOCS,
]
LONGEST_PAGE = 150  # lines
LONGEST_PARAGRAPH = 60  # words, of README

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# What differs from run to run or from machine to machine: seconds, rates, accuracies of a random
# CLIP.
VARYING = re.compile(r"in [\d.]+ s\b|[\d.]+ clips/s, ETA .*|\b\d+\.\d\d\b +|\b\d+(?=/26\b)")
REPOSITORY_FILE = re.compile(
    r"(?<![\w./~-])(?:scripts|tests|configs|docs|preprocess|bmpt|shards)/"
    r"[\w./-]*\w\.(?:py|sh|md|log)\b"
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return relative(page)


def blocks(page: Path, kind: str) -> list[str]:
    """Return the code blocks of one kind, without the prose around them."""
    return [text for found, text in BLOCK.findall(text_of(page)) if found == kind]


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return BLOCK.sub("", text_of(page))


def sessions(page: Path) -> list[tuple[str, list[str]]]:
    """Return (command, printed lines) of every console session of a page."""
    found = []
    for text in blocks(page, "console"):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *printed = part.splitlines()
            found.append((command, printed))
    return found


def commands(page: Path) -> list[str]:
    """Return every command line that a page shows in a block."""
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    shown = [re.split(r"\s+#", line)[0].strip() for line in lines if not line.startswith("#")]
    return [line for line in shown if line] + [command for command, _ in sessions(page)]


def click_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return (command, its arguments) for the words after `bmpt`, also within a group."""
    group: Any = typer.main.get_command(app)
    while getattr(group, "commands", None):
        assert words, "a group of commands without a command"
        assert words[0] in group.commands, f"there is no command {words[0]}"
        group, words = group.commands[words[0]], words[1:]
    if group.name == "build":
        single = typer.Typer()
        single.command()(build)
        group = typer.main.get_command(single)
    return group, words


def parse(words: list[str]) -> None:
    """Parse a command line by the real options, and load the config that it names; run nothing.

    Raises: typer's usage error, or ConfigError, for one that is wrong."""
    if words[0] == "torchrun":
        words = ["bmpt", *words[words.index("bmpt") + 1 :]]
    if "scripts/slurm_build.sh" in words:  # hands everything on
        words = ["bmpt", "build", *words[words.index("scripts/slurm_build.sh") + 1 :]]
    if words[:2] == ["python", "preprocess/build_shards.py"]:
        words = ["bmpt", "build", *words[2:]]
    assert words[0] == "bmpt", f"{words[0]} is a program that this test does not know"
    command, rest = click_command(words[1:])
    command.make_context(command.name, list(rest))
    if command.name in ("train", "eval", "plan") and "/manifests/" not in rest[0]:
        settings = [word for option, word in pairwise(rest) if option == "--set"]
        load_config(rest[0], settings)


ALL_COMMANDS = sorted({(name_of(page), line) for page in PAGES for line in commands(page)})


def test_there_are_commands_sessions_and_pages_to_look_at() -> None:
    assert len(ALL_COMMANDS) >= 30
    assert sum(len(sessions(page)) for page in PAGES) >= 8
    assert len(DOCS) >= 17


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS)
def test_every_command_has_the_options_it_names(page: str, command: str) -> None:
    words = shlex.split(command)
    for word in words:
        if word.startswith(("scripts/", "configs/", "preprocess/", "tests/")):
            assert (ROOT / word).exists(), f"{page}: {word} does not exist"
    is_other = words[0] in ("bash", "pip", "export", "source")
    is_script = words[0] == "python" and words[1].startswith("scripts/")
    if not is_other and not is_script:
        parse(words)


def test_a_command_with_an_unknown_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(shlex.split("bmpt train few_shot/ucf101_k2 --no-such-option"))
    with pytest.raises(AssertionError, match="no command"):
        parse(shlex.split("bmpt no-such-command"))
    with pytest.raises(ConfigError, match="few_shot/no_such"):
        parse(shlex.split("bmpt train few_shot/no_such_experiment"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_sentences_exist_with_their_options(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        words = code.split()
        if words[0] != "bmpt" or len(words) < 2 or not re.fullmatch(r"[a-z][a-z-]*", words[1]):
            continue
        if words[1] == "bench" and len(words) == 2:
            continue
        command, rest = click_command(words[1:])
        known = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
        used = {word for word in rest if word.startswith("--")} - {"--help"}
        assert used <= known, f"{code}: {', '.join(sorted(used - known))} is not an option"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def test_every_page_of_docs_is_linked_from_another_page() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in links(page)
        if target.partition("#")[0]
    }
    assert [name_of(page) for page in DOCS if page not in linked and page.name != "index.md"] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    names = set(REPOSITORY_FILE.findall(text_of(page)))
    # examples of docs/extending.md, which tests/rules/test_extending.py writes and runs
    names -= set(re.findall(r"^New file `([^`]+)`:$", text_of(page), flags=re.MULTILINE))
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_key_of_a_config_that_a_page_names_exists(page: Path) -> None:
    key = r"((?:run|data|model|text|method|train|eval)\.(?!(?:py|txt|csv|yaml)\b)\w+)"
    reference = "".join(make_reference.config_pages().values())
    known = set(re.findall(f"`{key}`", reference))
    assert len(known) > 60
    used = set(re.findall(rf"`(?:--set )?{key}[=`]", prose(page)))
    used |= set(re.findall(f"--set {key}=", text_of(page)))
    assert used - known == set()


def paragraphs(page: Path) -> list[str]:
    """Return paragraphs and list items: no headings and no tables."""
    found = []
    for part in re.split(r"\n\s*\n|\n(?=[*-] |\d+\. )", prose(page)):
        text = part.strip()
        if text and not text.startswith(("#", "|", "<!--")):
            found.append(re.sub(r"\]\([^)]*\)", "]", text))
    return found


def test_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= LONGEST_PAGE
    long = [text for text in paragraphs(README) if len(text.split()) > LONGEST_PARAGRAPH]
    assert long == []


def test_the_demo_comes_first_in_readme_and_building_a_pool_second() -> None:
    first, activation, second = commands(README)[:3]
    assert first == "bash scripts/demo.sh"
    assert activation == "source .venv/bin/activate"
    assert second.startswith("python preprocess/build_shards.py --dataset ssv2")


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_a_page_of_docs_is_short(page: Path) -> None:
    assert len(text_of(page).splitlines()) <= LONGEST_PAGE


def test_every_module_has_one_line_in_the_pages_on_architecture() -> None:
    for package in PACKAGES:
        listed = re.findall(
            r"^\| `([\w/]+\.py)` \| \S", text_of(ROOT / f"docs/architecture/{package}.md"), re.M
        )
        modules = [relative(path) for path in source_files(package) if path.name != "__init__.py"]
        assert sorted(listed) == sorted(modules)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_rows_of_architecture_are_the_floors_that_imports_obey(package: str) -> None:
    section = re.split(r"^### ", text_of(ROOT / "docs/architecture.md"), flags=re.M)
    (table,) = [part for part in section if part.startswith(f"{package}\n")]
    rows = re.findall(r"^\| \d+ \| (.*?) \|", table, re.M)
    shown = [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in rows]
    assert shown == [set(floor) for floor in FLOORS[package] if floor != ("__main__",)]


def run_session(command: str, printed: list[str], folder: Path, data: Path) -> list[str]:
    """Run a command of a page and return the lines of the page that it does not print.

    A line `...` of the page stands for any lines."""
    words = shlex.split(command.replace("$DATA", str(data)))
    words = [str(ROOT / word) if word.startswith("preprocess/") else word for word in words]
    program = words[1:] if words[0] == "python" else ["-m", *words]
    done = subprocess.run(
        [sys.executable, *program], cwd=folder, capture_output=True, text=True, timeout=600
    )

    output = (done.stdout + done.stderr).replace(str(data), "$DATA")
    absent = []
    for line in printed:
        pattern = re.escape(VARYING.sub("<varies>", line)).replace("<varies>", ".*")
        if line != "..." and not re.search(pattern, output):
            absent.append(line)
    return [f"$ {command}", *absent, "does not print this, but:", output] if absent else []


@pytest.mark.long
def test_the_sessions_of_all_pages_print_what_stands_there(tmp_path: Path) -> None:
    """Each page in a folder of its own, with the pools and runs that its commands name but do not
    make: those that the pages before it have made."""
    data = shared_data()
    made = tmp_path / "made"
    building = ROOT / "docs" / "guides" / "building.md"
    pages = [page for page in PAGES if sessions(page)]
    pages.sort(key=lambda page: (page != building, page != README))
    problems: list[str] = []
    for number, page in enumerate(pages):
        folder = tmp_path / str(number)
        folder.mkdir()
        shown = "\n".join(command for command, _ in sessions(page))
        if "build_shards.py" not in shown:
            shutil.copytree(made / "data", folder / "data")
        if "--checkpoint runs/" in shown:
            shutil.copytree(made / "runs", folder / "runs")
        for command, printed in sessions(page):
            problems += run_session(command, printed, folder, data)
        for kind in ("data", "runs"):
            if (folder / kind).exists() and not (made / kind).exists():
                shutil.copytree(folder / kind, made / kind)
    assert problems == [], "\n".join(problems)
