"""Samples that cannot be read in training: counted in one order, replayed by a resumed run, named
at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmpt.config import RunConfig
from bmpt.runtime.failures import name_failures
from shards.errors import StorageError
from shards.stream.failures import FailureRule
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import damage_a_sample, folder_of, run, stop_early
from tests.bmpt.tiny import metrics_of
from tests.pools import make_pool


def saving_every_step(settings: RunConfig) -> RunConfig:
    return settings.model_copy(
        update={"run": settings.run.model_copy(update={"save_every_steps": 1})}
    )


def test_the_rule_counts_over_batches_and_forgets_at_the_first_that_is_read() -> None:
    rule = FailureRule(3)
    rule.count(["a", "b"])
    rule.count([])
    rule.count([None, "c", "d"])
    assert rule.in_a_row == 2
    with pytest.raises(StorageError, match=r"^3 samples in a row could not be read; the last: e$"):
        rule.count(["e", None])


def test_a_rule_without_a_limit_only_counts() -> None:
    rule = FailureRule(None)
    rule.count(["a"] * 1000)
    assert rule.in_a_row == 1000


def test_a_resumed_run_stops_at_the_sample_at_which_it_stopped_before(
    config: MakeConfig, tmp_path: Path
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=5)
    for shard in (tmp_path / "pool" / "shards").glob("*.tar"):
        shard.unlink()
    settings = saving_every_step(
        config(
            data={"pool": str(tmp_path / "pool"), "batch_size": 2, "max_failures": 7},
            train={"epochs": 9},
        )
    )
    said = []
    for _ in range(2):  # the second start goes on with 6 failures in a row
        with pytest.raises(StorageError, match="7 samples in a row could not be read") as caught:
            run(settings)
        said.append(str(caught.value))
        rows = metrics_of(folder_of(settings))
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert ["loss" in row for row in rows] == [True, True, True, False], (
            "the last one was read, not done"
        )
    assert said[0] == said[1]


def test_an_epoch_without_a_readable_sample_ends_a_run_below_the_limit(
    config: MakeConfig, tmp_path: Path
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=5)
    for shard in (tmp_path / "pool" / "shards").glob("*.tar"):
        shard.unlink()
    with pytest.raises(StorageError, match="6 samples in a row could not be read"):
        run(
            config(data={"pool": str(tmp_path / "pool"), "batch_size": 3})
        )  # 8 clips: 2 are left over each epoch


def test_a_run_that_failures_end_at_its_first_step_says_why_each_sample_failed(
    config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=5)
    keys = [damage_a_sample(tmp_path / "pool", "few_shot/train_k2", index) for index in range(8)]
    settings = config(data={"pool": str(tmp_path / "pool"), "batch_size": 8, "max_failures": 5})
    with pytest.raises(StorageError, match="5 samples in a row could not be read"):
        run(settings)
    (row,) = metrics_of(folder_of(settings))
    assert (row["step"], row["valid_clips"]) == (1, 0)
    assert row["failed"].keys() == set(keys)
    assert all("wrong CRC" in why for why in row["failed"].values())
    assert "few_shot/train_k2: 8 of 8 samples could not be read " in capfd.readouterr().err


def test_a_run_names_all_its_failures_once_at_the_end(
    config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=5)
    keys = [damage_a_sample(tmp_path / "pool", "few_shot/train_k2", index) for index in (3, 6)]
    settings = config(data={"pool": str(tmp_path / "pool")}, train={"epochs": 20})
    stop_early(settings)
    first = capfd.readouterr().err
    assert all(f"warning: {key} is left out of training: " in first for key in keys)
    assert "of 8 samples" not in first
    run(settings)
    rows = metrics_of(folder_of(settings))
    assert {key for row in rows for key in row.get("failed", {})} == set(keys)
    assert sum(len(row.get("failed", {})) for row in rows) == 20 * 2
    second = capfd.readouterr().err
    assert (
        second.count(
            "few_shot/train_k2: 2 of 8 samples could not be read at least once and were left out: "
        )
        == 1
    )
    assert "is left out of training" not in second, "they were named before"


def test_many_failures_are_named_in_one_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"key{index}" for index in range(13)]
    name_failures("few_shot/val", keys, num_samples=100, reasons=Path("run/metrics.jsonl"))
    name_failures("few_shot/val", [], num_samples=100, reasons=Path("run/metrics.jsonl"))
    assert capsys.readouterr().err == (
        "warning: few_shot/val: 13 of 100 samples could not be read and were left out: key0, "
        "key1, key2, key3, key4, key5, key6, key7, key8, key9 and 3 more; "
        "`failed` in run/metrics.jsonl says why\n"
    )
