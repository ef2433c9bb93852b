"""Build the wheel of the project and install it into a new environment, without a download."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from tests.rules.sources import PACKAGES, relative, tracked_files

PACKED = (*PACKAGES, "configs", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, since a build writes files beside them."""
    source = folder / "source"
    for path in tracked_files():
        if relative(path).split("/")[0] in PACKED:
            (source / relative(path)).parent.mkdir(parents=True, exist_ok=True)
            (source / relative(path)).write_bytes(path.read_bytes())

    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    _run_pip("wheel", *options, "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a new environment that borrows the libraries of this one.

    Returns:
        The `bin` folder of the environment."""
    venv.create(folder, with_pip=False, symlinks=True)
    bin_folder = folder / "bin"
    options = ["--no-deps", "--no-index", "--quiet"]
    _run_pip("--python", str(bin_folder / "python"), "install", *options, str(wheel))

    # A .pth file adds folders to sys.path, but does not read the .pth files in them: the editable
    # install of the checkout, if there is one, stays out.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return bin_folder


def _run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
