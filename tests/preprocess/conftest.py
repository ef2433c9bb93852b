"""A small tree of videos, the pool of an undisturbed build of it, and copies that a test may
change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.preprocess.builds import build, make_tree


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("videos") / "tree")


@pytest.fixture(scope="module")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool of an undisturbed build with one worker."""
    out = tmp_path_factory.mktemp("reference") / "pool"
    build(videos, out)
    return out


@pytest.fixture
def tree(videos: Path, tmp_path: Path) -> Path:
    """A copy of the videos that a test may change."""
    return Path(shutil.copytree(videos, tmp_path / "tree"))


@pytest.fixture
def pool(reference: Path, tmp_path: Path) -> Path:
    """A copy of the finished pool that a test may change."""
    return Path(shutil.copytree(reference, tmp_path / "pool"))
