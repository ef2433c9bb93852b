"""Warnings about a config before it runs."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.compute as pc

from bmpt.task_checks import training_warnings
from shards.reader import open_pool
from tests.bmpt.conftest import MakeConfig


def test_a_complete_training_list_has_no_warning(config: MakeConfig) -> None:
    settings = config(train={"epochs": 2, "warmup_epochs": 1})
    manifest = open_pool(settings.data.pool).manifest("few_shot/train_k2")
    assert training_warnings(settings, manifest) == []


def test_the_warning_counts_clips_and_classes_that_are_not_in_the_pool(config: MakeConfig) -> None:
    manifest = open_pool(config().data.pool).manifest("few_shot/train_k2")
    table = manifest.table.filter(pc.less(manifest.table["label"], 1))
    missing = len(manifest) - table.num_rows
    short = replace(
        manifest, table=table, info=manifest.info.model_copy(update={"missing": missing})
    )
    (warning,) = training_warnings(config(), short)
    assert warning == (
        f"data.train=few_shot/train_k2: {missing} of its {len(manifest)} clips are not in the "
        "pool, and 3 of 4 classes have none"
    )


def test_the_warning_names_a_warm_up_that_never_ends(config: MakeConfig) -> None:
    settings = config(train={"epochs": 2, "warmup_epochs": 5})
    manifest = open_pool(settings.data.pool).manifest("few_shot/train_k2")
    assert training_warnings(settings, manifest) == [
        "train.warmup_epochs=5: is all of train.epochs=2; the rate only rises"
    ]
