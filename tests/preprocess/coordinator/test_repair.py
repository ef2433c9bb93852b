"""Repairs restore damaged files with the same bytes, from the same sources, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bmpt.cli.app import app
from preprocess.coordinator.repair import RepairOptions, RepairReport, repair_pool
from shards.cli import run_app
from shards.errors import ConfigError, FormatError
from tests.preprocess.builds import CallOnUpdate, build, digests
from tests.preprocess.tiny_videos import make_video

FIRST, SECOND = "shards/folder-000000.tar", "shards/folder-000001.tar"
MANIFEST = "manifests/fully_supervised/val.parquet"


def repair(pool: Path, videos: Path, **more: Any) -> RepairReport:
    return repair_pool(RepairOptions(str(pool), videos, workers=1, **more))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_repair_restores_damaged_and_missing_shards_with_the_same_bytes(
    videos: Path, reference: Path, pool: Path
) -> None:
    untouched = (pool / SECOND).stat().st_mtime_ns
    damage(pool / FIRST)
    (pool / "shards" / "folder-000002.tar").unlink()
    report = repair(pool, videos)
    assert report.restored == [FIRST, "shards/folder-000002.tar"]
    assert report.num_decoded == 6
    assert digests(pool) == digests(reference)
    assert (pool / SECOND).stat().st_mtime_ns == untouched
    assert repair(pool, videos).restored == []


def test_a_repair_needs_no_annotations_for_the_classes(videos: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("other/d.mp4\njump/e.avi\n")
    out = tmp_path / "pool"
    build(videos, out, annotations=lists)
    before = digests(out)
    damage(out / FIRST)
    repair(out, videos)
    assert digests(out) == before


def test_a_repair_names_a_source_that_is_gone_or_changed_and_changes_nothing(
    tree: Path, pool: Path
) -> None:
    damage(pool / FIRST)
    before = digests(pool)
    make_video(tree / "jump" / "d.mp4", frames=9)
    with pytest.raises(
        ConfigError, match=r"jump/d\.mp4: is not the file that the pool was built from, but shards/"
    ):
        repair(pool, tree)
    (tree / "jump" / "d.mp4").unlink()
    with pytest.raises(
        ConfigError, match=r"jump/d\.mp4: no such video, but shards/folder-000000\.tar is damaged"
    ):
        repair(pool, tree)
    assert digests(pool) == before


def test_a_repair_does_not_need_the_sources_of_sound_shards(
    tree: Path, pool: Path, reference: Path
) -> None:
    (tree / "run fast" / "e.avi").unlink()
    damage(pool / FIRST)
    repair(pool, tree)
    assert digests(pool) == digests(reference)


def test_a_repair_leaves_a_shard_that_would_get_other_bytes(
    videos: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(pool / FIRST)
    before = digests(pool)
    monkeypatch.setattr(
        "preprocess.coordinator.pipeline.sample_facts",
        lambda row: {"key": row["key"], "verdict": "other"},
    )
    with pytest.raises(
        FormatError, match=r"folder-000000\.tar: built again it has other bytes .* built with av "
    ):
        repair(pool, videos)
    assert digests(pool) == before


def test_a_killed_repair_continues(videos: Path, pool: Path, reference: Path) -> None:
    damage(pool / FIRST)

    class Killed(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if (done, total) == (3, 4):
            raise Killed

    with pytest.raises(Killed):
        repair_pool(RepairOptions(str(pool), videos, workers=1), progress=CallOnUpdate(stop))
    assert repair(pool, videos).num_decoded == 1
    assert digests(pool) == digests(reference)


def test_a_repair_restores_a_damaged_manifest_if_the_lists_are_the_same(
    videos: Path, pool: Path, reference: Path, tmp_path: Path
) -> None:
    os.truncate(pool / MANIFEST, 300)
    assert repair(pool, videos).restored == [MANIFEST]
    assert digests(pool) == digests(reference)
    os.truncate(pool / MANIFEST, 300)
    before = digests(pool)
    (tmp_path / "train.txt").write_text("run fast/e.avi 0\n")
    (tmp_path / "val.txt").write_text("jump/e.avi 1\n")
    (tmp_path / "classes.txt").write_text("run fast\njump\n")
    with pytest.raises(ConfigError, match=r"lists given .* that the pool was built with"):
        repair(pool, videos, splits=[tmp_path])
    assert {name: value for name, value in digests(pool).items() if ".repair" not in name} == before


@pytest.mark.parametrize("name", ["samples.parquet", "pool.json"])
def test_a_repair_of_a_damaged_table_asks_for_a_rebuild(
    videos: Path, pool: Path, name: str
) -> None:
    os.truncate(pool / name, 100)
    with pytest.raises(
        ConfigError, match=rf"{name}: .* repair cannot restore it; build the pool again"
    ):
        repair(pool, videos)


def test_verify_and_repair_print_their_findings(
    videos: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(pool / FIRST)
    assert run_app(app, ["verify", str(pool)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{FIRST}: jump/")
    assert "1 findings in 1 files (full: 3 shards, 9 samples" in lines[-1]
    assert run_app(app, ["repair", str(pool), "--videos", str(videos), "--workers", "1"]) == 0
    assert f"restored: {FIRST}" in capsys.readouterr().out
    assert run_app(app, ["verify", str(pool), "--level", "deep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
