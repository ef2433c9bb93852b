"""The set-up scripts accept the interpreters that pyproject.toml names and refuse others in one
line."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.rules.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETUP = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
SUPPORTED = ["3.11", "3.12", "3.13", "3.14"]


def run_tests_with(python: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/test.sh --python PYTHON`; only for interpreters that it refuses before it
    installs anything."""
    command = ["bash", str(ROOT / "scripts" / "test.sh"), "--python", python]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def write_interpreter(path: Path, *, version: str, code: int = 0) -> Path:
    """Write a program that answers as an interpreter of this version does, or fails as a pyenv shim
    does."""
    path.write_text(f"#!/bin/sh\necho {version} {path}\nexit {code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_requires_python_classifiers_and_scripts_name_the_same_versions() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.15"
    classified = [
        line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if ":: Python :: 3" in line
    ]
    assert classified == SUPPORTED
    assert f'supported="{SUPPORTED[0]} to {SUPPORTED[-1]}"' in SETUP
    assert f"{' | '.join(SUPPORTED)}) ;;" in SETUP


def test_the_constraints_name_dependencies_of_the_package_and_hold_for_this_environment() -> None:
    from importlib.metadata import version

    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = [line for line in lines if line and not line.startswith("#")]
    assert constraints
    dependencies = {re.split(r"[<>=!;\[ ]", line)[0] for line in PROJECT["dependencies"]}
    for constraint in constraints:
        name, bound = constraint.split("<")
        assert name in dependencies
        installed = [int(part) for part in version(name).split("+")[0].split(".")]
        assert installed < [int(part) for part in bound.split(".")], (
            f"{name} {installed} is not {constraint}"
        )


def test_the_package_itself_has_no_upper_bound_of_torch() -> None:
    (torch,) = [line for line in PROJECT["dependencies"] if line.split(">")[0] == "torch"]
    assert "<" not in torch


@pytest.mark.parametrize("python", ["python3.99", "./no/such/python"])
def test_an_interpreter_that_is_not_there_is_refused_in_one_line(python: str) -> None:
    done = run_tests_with(python)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {python}: no such interpreter")
    assert "3.11 to 3.14" in done.stderr


def test_an_interpreter_that_does_not_run_is_refused_in_one_line(tmp_path: Path) -> None:
    shim = write_interpreter(tmp_path / "python3.13", version="3.13", code=127)
    done = run_tests_with(str(shim))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "it does not run" in done.stderr


@pytest.mark.parametrize("version", ["3.10", "3.15", "2.7"])
def test_an_interpreter_of_another_version_is_refused_in_one_line(
    tmp_path: Path, version: str
) -> None:
    python = write_interpreter(tmp_path / "python", version=version)
    done = run_tests_with(str(python))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {python}: is Python {version}; bmpt needs Python 3.11 to 3.14\n"


def test_python_without_a_name_is_refused_in_one_line() -> None:
    command = ["bash", str(ROOT / "scripts" / "test.sh"), "--python"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --python: expected an interpreter, for example python3.13\n"
