"""Test `scripts/check_commits.sh` on small repositories with good and bad commit subjects."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.rules.sources import ROOT

SCRIPT = ROOT / "scripts" / "check_commits.sh"
IDENTITY = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *IDENTITY, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path, subject: str) -> None:
    git(folder, "commit", "--allow-empty", "--quiet", "--message", subject)


def check(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(folder / "scripts" / "check_commits.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with an old commit that breaks the rule, then the commit that adds it."""
    folder = tmp_path / "repository"
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(folder))
    commit(
        folder, "An old subject that breaks the rule because nothing checked it when it was made."
    )
    (folder / "scripts").mkdir()
    shutil.copy(SCRIPT, folder / "scripts" / SCRIPT.name)
    git(folder, "add", ".")
    commit(
        folder,
        "The commit that adds the check is not checked either, as it is the base of the range",
    )
    return folder


def test_commits_up_to_the_one_that_adds_the_script_are_exempt(repository: Path) -> None:
    done = check(repository)
    assert done.returncode == 0, done.stderr
    assert "0 new commits" in done.stdout


@pytest.mark.parametrize(
    "subject",
    [
        "docs: add a page on streaming",
        "README, CHANGELOG: shorten",
        "ray engine: leave running tasks to the shutdown",
        "shards/diff: " + "x" * 59,
    ],
)
def test_a_subject_in_form_passes(repository: Path, subject: str) -> None:
    commit(repository, subject)
    done = check(repository)
    assert done.returncode == 0, done.stderr
    assert "1 new commits" in done.stdout


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("docs: " + "x" * 67, "has 73 characters, at most 72"),
        ("Add a page", "does not have the form"),
        ("docs:add a page", "does not have the form"),
        ("docs: add a page.", "ends with a full stop"),
    ],
)
def test_a_subject_out_of_form_is_named_with_the_reason(
    repository: Path, subject: str, reason: str
) -> None:
    commit(repository, "docs: add a page")
    commit(repository, subject)
    done = check(repository)
    assert done.returncode == 1
    assert f"'{subject}': {reason}" in done.stderr
    assert "1 of 2 commit subjects" in done.stderr


def test_a_base_can_be_given(repository: Path) -> None:
    commit(repository, "Bad")
    commit(repository, "docs: add a page")
    assert check(repository).returncode == 1
    assert check(repository, "HEAD~1").returncode == 0
    done = check(repository, "no-such-commit")
    assert done.returncode == 2
    assert "no such commit" in done.stderr


def test_a_shallow_clone_is_checked_as_far_as_it_goes(repository: Path, tmp_path: Path) -> None:
    commit(repository, "Bad")
    commit(repository, "docs: add a page")
    commit(repository, "docs: add another page")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--depth=2", f"file://{repository}", str(clone))
    done = check(clone)
    assert done.returncode == 0, done.stderr
    assert "1 new commits" in done.stdout
    assert "shallow" in done.stdout


def test_a_folder_without_git_has_nothing_to_check(repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    done = check(repository)
    assert done.returncode == 0
    assert "not a git checkout" in done.stdout


def test_ci_calls_the_check() -> None:
    assert "scripts/check_commits.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
