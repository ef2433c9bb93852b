"""Test the table, the list of videos and the weights of the demo."""

from __future__ import annotations

from typing import Any

from bmpt.clip.backbone import load_backbone
from bmpt.demo.render import MOTIONS
from bmpt.demo.run import ROWS, demo_table
from bmpt.demo.videos import demo_videos


def result(base: float | None, novel: float | None, hm: float | None) -> dict[str, Any]:
    """Return the part of a results.json that the table reads."""
    entries = [
        {"manifest": "base_to_novel/val_novel", "top1": novel},
        {"manifest": "base_to_novel/val_base", "top1": base},
    ]
    return {"evaluations": entries, "hm": hm}


def table_of(*rows: dict[str, Any]) -> list[list[str]]:
    """Return the cells of each line after the title column."""
    text = demo_table({name: row for (name, _), row in zip(ROWS, rows, strict=True)})
    return [line[24:].split() for line in text.splitlines()]


def test_every_row_has_base_novel_and_hm_and_tuned_rows_the_gain_on_base() -> None:
    lines = table_of(
        result(40.0, 30.0, 34.285714), result(70.5, 35.0, 46.777), result(90.0, 20.0, 32.727273)
    )
    assert lines[1] == ["12.50", "12.50", "12.50"]
    assert lines[2] == ["40.00", "30.00", "34.29"]
    assert lines[3] == ["70.50", "35.00", "46.78", "+30.50"]
    assert lines[4] == ["90.00", "20.00", "32.73", "+50.00"]


def test_a_loss_is_shown_with_its_sign() -> None:
    lines = table_of(result(40.0, 30.0, 34.0), result(39.0, 35.0, 36.0), result(40.0, 20.0, 26.0))
    assert [lines[3][3], lines[4][3]] == ["-1.00", "+0.00"]


def test_a_missing_score_is_a_dash_without_a_gain() -> None:
    lines = table_of(result(None, 30.0, None), result(39.0, None, None), result(None, None, None))
    assert lines[2] == ["-", "30.00", "-"]
    assert lines[3] == ["39.00", "-", "-"]
    assert lines[4] == ["-", "-", "-"]


def test_the_titles_fit_their_column() -> None:
    assert max(len(title) for _, title in ROWS) < 24


def test_the_demos_videos_are_the_same_list_with_every_name_once() -> None:
    names = [video.name for video in demo_videos()]
    assert len(names) == len(set(names)) == 16 * 60
    assert names == [video.name for video in demo_videos()]
    assert {name.split("/")[0] for name in names} == set(MOTIONS)
    assert {name.rsplit(".", 1)[1] for name in names} == {"mp4", "webm", "avi"}


def test_the_demos_weights_load_and_fit_its_frames() -> None:
    backbone = load_backbone("motion-clip", "demo")
    assert backbone.temporal_TE is not None
    assert backbone.temporal_TE.shape == (8, backbone.vision_width)
    assert backbone.vision_layers >= 4
