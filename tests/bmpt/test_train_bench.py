"""`bmpt bench train`: its sides compute the same gradients; what they cost is for the benchmark to say."""

from __future__ import annotations

import json

import pytest

from bmpt.cli import app
from shards.commands import run_app


def test_every_lever_is_measured_and_changes_no_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", "ViT-S-32", "--classes", "3", "--frames", "2", "--accumulation", "2", "--threads", "1"]
    assert run_app(app, ["bench", "train", *small, "--json"], prog_name="bmpt") == 0
    measured = json.loads(capsys.readouterr().out)
    levers = {"text_once_a_step", "short_text", "fused_attention", "no_gradient_below_prompts"}
    assert measured["ratios"].keys() == levers | {"together", "frozen_text_once_a_run", "class_features_once"}
    assert measured["gradient_differences"].keys() == levers | {"together"}
    assert 0 < max(measured["gradient_differences"].values()) < 2e-3
