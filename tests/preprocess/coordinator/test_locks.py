"""Locks of builds: who is refused, and that no lock file is left."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest

from preprocess.coordinator.locks import lock_address, lock_folder, remove_unused
from preprocess.coordinator.workspace import open_workspace
from preprocess.settings import BuildSettings, make_build_settings
from shards.errors import ConfigError, StorageError
from tests.preprocess.builds import build


def settings_of(out: Path, **options: object) -> BuildSettings:
    return make_build_settings({"dataset": "folder", "out": str(out), **options})


def test_two_builds_of_one_folder_at_once_are_refused_and_no_lock_survives(
    videos: Path, pool: Path
) -> None:
    whole = make_build_settings({"dataset": "folder", "videos": videos, "out": str(pool)})
    part = make_build_settings(
        {"dataset": "folder", "videos": videos, "out": str(pool), "part": "1/2"}
    )
    with (
        open_workspace(whole).lock(whole),
        pytest.raises(ConfigError, match="another build is writing there"),
    ):
        build(videos, pool)
    with open_workspace(part).lock(part):
        with pytest.raises(ConfigError, match="another build is writing there"):
            build(videos, pool, part="1/2")
        build(videos, pool, part="2/2")
    build(videos, pool)


def test_parts_of_two_divisions_are_not_built_at_once(videos: Path, tmp_path: Path) -> None:
    half = make_build_settings(
        {"dataset": "folder", "videos": videos, "out": str(tmp_path / "p"), "part": "1/2"}
    )
    with (
        open_workspace(half).lock(half),
        pytest.raises(ConfigError, match=r"part 1/2 is being built there"),
    ):
        build(videos, tmp_path / "p", part="1/3")


def test_builds_of_two_parts_hold_a_folder_at_once_and_a_whole_build_waits(tmp_path: Path) -> None:
    out = tmp_path / "pool"
    first, second = (settings_of(out, part=part) for part in ("1/2", "2/2"))
    with (
        lock_folder(out, first),
        lock_folder(out, second),
        pytest.raises(ConfigError, match="another build is writing there; wait for it"),
        lock_folder(out, settings_of(out)),
    ):
        pass
    with lock_folder(out, settings_of(out)):
        pass


def test_a_folder_that_cannot_be_made_is_a_storage_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "pool"
    with (
        pytest.raises(StorageError, match=r"cannot be written: Not a directory; give another"),
        lock_folder(out, settings_of(out)),
    ):
        pass


def test_the_lock_file_of_an_address_is_removed_by_its_last_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.ExitStack() as second:
        with lock_address("s3://bucket/pool/", shared=True):
            second.enter_context(lock_address("s3://bucket/pool/", shared=True))
            assert len(list(tmp_path.iterdir())) == 1
        assert len(list(tmp_path.iterdir())) == 1, "the second holder still needs it"
        with (
            pytest.raises(ConfigError, match="another build on this machine writes there"),
            lock_address("s3://bucket/pool/", shared=False),
        ):
            pass
        with lock_address("s3://bucket/other/", shared=False):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_is_removed_unless_a_build_holds_it_or_it_has_other_files(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "scratch"
    part = settings_of(tmp_path / "pool", part="1/2")
    with lock_folder(folder, part):
        remove_unused(folder)
        assert (folder / "shards" / ".part-1-of-2.lock").exists()
    journal = folder / "shards" / ".folder-000000.jsonl"
    journal.write_text("")
    remove_unused(folder)
    assert journal.exists()
    journal.unlink()
    remove_unused(folder)
    assert not folder.exists()
    remove_unused(folder)
    assert not folder.exists(), "a lock would have created it"
