"""Test that the contenders of `bmpt bench train` compute the same gradients; the benchmark, not a
test, measures their cost."""

from __future__ import annotations

import json
import re

import pytest

from bmpt.cli.app import app
from shards.cli import run_app
from tests.bmpt.runs import torchrun

# 12 visual blocks and 10 text blocks, fewer than the default depth of the prompts.
SMALL = (
    *("--model", "ViT-S-32-alt"),
    *("--classes", "3", "--frames", "2", "--accumulation", "2"),
    *("--threads", "1"),
)
VARIANTS = [
    "text_once_a_step",
    "short_text",
    "fused_attention",
    "no_gradient_below_prompts",
    "together",
]
# Float32 sums in another order; 2e-5 was measured on one and on two ranks.
TOLERANCE = 2e-4


def test_every_variant_is_measured_and_keeps_the_gradients(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_app(app, ["bench", "train", *SMALL, "--json"], prog_name="bmpt") == 0
    measured = json.loads(capsys.readouterr().out)

    assert list(measured["ratios"]) == [*VARIANTS, "frozen_text_once_a_run", "class_features_once"]
    assert measured["gradient_differences"].keys() == set(VARIANTS)
    assert 0 < max(measured["gradient_differences"].values()) < TOLERANCE


@pytest.mark.long
def test_on_two_ranks_the_first_one_prints_the_ratio_of_sharing_the_classes() -> None:
    done = torchrun(2, "bench", "train", *SMALL, timeout_seconds=900)
    assert done.returncode == 0, done.stderr

    # The output of both ranks, in which every line occurs one time.
    *ratios, summary = done.stdout.splitlines()
    assert [line.split()[0] for line in ratios] == [
        VARIANTS[0],
        "text_once_a_step_over_ranks",
        *VARIANTS[1:],
    ]
    assert all(float(line.split()[1]) > 0 for line in ratios)

    pattern = r", 2 ranks, .*; gradients differ by (\S+) of the largest at most"
    found = re.search(pattern, summary)
    assert found is not None, summary
    assert 0 < float(found[1]) < TOLERANCE
