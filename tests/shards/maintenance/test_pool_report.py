"""A pool's report states what its manifests hold; a contact sheet shows a sample's frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import ConfigError
from shards.format import jpeg
from shards.maintenance.contact_sheet import tile, write_contact_sheet
from shards.maintenance.pool_report import ClassHistogram, report_pool, report_text
from shards.reader import open_pool, read_frames
from tests.pools import make_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a") / "pool"
    make_pool(path, samples_per_class=2)
    return path


def test_each_manifest_is_stated_with_its_counts_list_and_classes(pool: Path) -> None:
    report = report_pool(pool)
    found = {manifest.path: manifest for manifest in report.manifests}
    assert sorted(found) == sorted(open_pool(pool).manifest_names())
    train = found["few_shot/train_k2"]
    assert (train.info.expected, train.info.found, train.info.missing) == (8, 8, 0)
    names = ["Class00", "Class01", "Class02", "Class03"]
    assert train.classes == ClassHistogram(
        4, minimum=2, median=2, maximum=2, samples=dict.fromkeys(names, 2)
    )
    assert found["few_shot/val"].classes.samples == dict.fromkeys(names, 0)
    assert train.info.fingerprint == open_pool(pool).manifest("few_shot/train_k2").info.fingerprint
    text = report_text(report)
    assert "4 classes without a clip" in text
    assert "drawn, seed 0, labels " in text
    assert f"  {train.info.source_sha256[:12]}   2/2/2\n" in text


def test_a_contact_sheet_holds_every_frame_in_order(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.jpg"
    assert (
        write_contact_sheet(pool, "Class01/Class01_00", out)
        == f"{out}: 12 frames of Class01/Class01_00"
    )
    opened = open_pool(pool)
    row = next(row for row in opened.samples().to_pylist() if row["key"] == "Class01/Class01_00")
    frames = read_frames(opened.store, row, range(12))
    sheet = jpeg.decode(out.read_bytes(), where=str(out))
    assert sheet.shape == tile(frames).shape == (3 * 50, 4 * 66, 3)
    shown = sheet[50:98, 66:130].astype(int)
    assert np.abs(shown - frames[5]).mean() < 6


@pytest.mark.parametrize(
    ("key", "out", "sentence"),
    [
        ("Class01/Class01_00", None, "give both --key KEY"),
        ("nothing", Path("a.jpg"), "--key nothing: is not in the pool"),
        ("Class01/Class01_00", Path("a.png"), "the picture is a JPEG"),
    ],
)
def test_what_cannot_be_shown_is_an_error(
    pool: Path, key: str, out: Path | None, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        write_contact_sheet(pool, key, out)
