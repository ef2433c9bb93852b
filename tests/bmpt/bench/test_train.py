"""`bmpt bench train`: its sides compute the same gradients; what they cost is for the benchmark to
say."""

from __future__ import annotations

import json
import re

import pytest

from bmpt.cli.app import app
from shards.cli import run_app
from tests.bmpt.runs import torchrun

# 12 visual blocks and 10 text blocks, fewer than the default depth of prompts
SMALL = (
    "--model",
    "ViT-S-32-alt",
    "--classes",
    "3",
    "--frames",
    "2",
    "--accumulation",
    "2",
    "--threads",
    "1",
)
LEVERS = [
    "text_once_a_step",
    "short_text",
    "fused_attention",
    "no_gradient_below_prompts",
    "together",
]
TOLERANCE = 2e-4  # float32 sums in another order; measured: 2e-5 on either number of ranks


def test_every_lever_is_measured_and_changes_no_gradient(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_app(app, ["bench", "train", *SMALL, "--json"], prog_name="bmpt") == 0
    measured = json.loads(capsys.readouterr().out)
    assert list(measured["ratios"]) == [*LEVERS, "frozen_text_once_a_run", "class_features_once"]
    assert measured["gradient_differences"].keys() == set(LEVERS)
    assert 0 < max(measured["gradient_differences"].values()) < TOLERANCE


@pytest.mark.long
def test_on_two_ranks_the_first_prints_what_sharing_the_classes_gives() -> None:
    done = torchrun(2, "bench", "train", *SMALL, timeout_seconds=900)
    assert done.returncode == 0, done.stderr
    *ratios, what = done.stdout.splitlines()  # of both ranks: each line once
    assert [line.split()[0] for line in ratios] == [
        LEVERS[0],
        "text_once_a_step_over_ranks",
        *LEVERS[1:],
    ]
    assert all(float(line.split()[1]) > 0 for line in ratios)
    found = re.search(r", 2 ranks, .*; gradients differ by (\S+) of the largest at most", what)
    assert found is not None, what
    assert 0 < float(found[1]) < TOLERANCE
