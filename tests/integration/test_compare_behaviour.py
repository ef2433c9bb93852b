"""Check that `scripts/bench/compare_behaviour.py compare` sees every change that is not ignored."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "compare_behaviour.py"
LOSS = 4.787569046020508


@pytest.fixture
def facts() -> dict[str, Any]:
    """A recording of one run on 1 and on 2 ranks, one pool and one call."""
    run = {"exit": 0, "steps": {"001": {"loss": LOSS, "batch": "a0bdf134c7a77423"}}}
    return {
        "about": {"commit": "ab0f4ec", "versions": {"torch": "2.13.0"}},
        "pools": {"ssv2/parts": {"files": {"pool.json": "b1", "shards/ssv2-000000.tar": "c2"}}},
        "runs": {"bmpt/ranks_1": run, "bmpt/ranks_2": copy.deepcopy(run)},
        "calls": {"verify": {"exit": 0, "json": {"findings": [{"key": "a"}, {"key": "b"}]}}},
        "ratios": {"train": {"short_text": 2.0}},
    }


def compare(
    folder: Path, before: dict[str, Any], after: dict[str, Any], *options: str
) -> tuple[int, list[str]]:
    """Run the script on two recordings; return its exit code and the lines that it prints."""
    for name, facts in (("before", before), ("after", after)):
        (folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            "compare",
            folder / "before.json",
            folder / "after.json",
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_equal_recordings_have_no_difference(tmp_path: Path, facts: dict[str, Any]) -> None:
    after = copy.deepcopy(facts)
    after["about"]["commit"] = "0000000"
    code, lines = compare(tmp_path, facts, after)
    assert code == 0
    assert lines[-1].startswith("0 differences in ")


def test_each_difference_is_one_line_that_names_the_fact(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    after = copy.deepcopy(facts)
    after["runs"]["bmpt/ranks_1"]["steps"]["001"]["loss"] = LOSS * (1 + 1e-15)
    after["calls"]["verify"]["json"]["findings"][1]["key"] = "c"
    del after["pools"]["ssv2/parts"]["files"]["shards/ssv2-000000.tar"]
    code, lines = compare(tmp_path, facts, after)
    assert code == 1
    named = [line.partition(": ")[0] for line in lines if not line.startswith("ratio ")]
    assert named == [
        "pools/ssv2/parts/files/shards/ssv2-000000.tar",
        "runs/bmpt/ranks_1/steps/001/loss",
        "calls/verify/json/findings/1/key",
        lines[-1],
    ]
    assert lines[-1].startswith("3 differences in ")


def test_the_tolerance_is_for_two_ranks_only(tmp_path: Path, facts: dict[str, Any]) -> None:
    after = copy.deepcopy(facts)
    after["runs"]["bmpt/ranks_2"]["steps"]["001"]["loss"] = LOSS * (1 + 1e-8)
    assert compare(tmp_path, facts, after)[0] == 1
    assert compare(tmp_path, facts, after, "--rtol-2-ranks", "1e-6")[0] == 0
    after["runs"]["bmpt/ranks_1"]["steps"]["001"]["loss"] = LOSS * (1 + 1e-8)
    assert compare(tmp_path, facts, after, "--rtol-2-ranks", "1e-6")[0] == 1


def test_an_ignored_fact_is_counted_and_others_are_not_ignored(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    after = copy.deepcopy(facts)
    after["calls"]["verify"]["exit"] = 1
    code, lines = compare(tmp_path, facts, after, "--ignore", "calls/verify/*")
    assert (code, lines[-1].rpartition(", ")[2]) == (0, "1 ignored")
    assert compare(tmp_path, facts, after, "--ignore", "runs/*")[0] == 1


def test_ratios_are_stated_with_their_tolerance_and_never_fail(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    after = copy.deepcopy(facts)
    after["ratios"]["train"]["short_text"] = 1.0
    code, lines = compare(tmp_path, facts, after)
    assert code == 0
    assert lines[0] == (
        "ratio train/short_text: 2.000 -> 1.000 (-50%, OUTSIDE the tolerance of 25%)"
    )
