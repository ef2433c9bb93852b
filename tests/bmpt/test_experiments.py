"""`bmpt experiments`, and experiments given by name to the other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bmpt.cli.app import app
from bmpt.config import load_config
from bmpt.experiments import experiments_text, list_experiments
from shards.cli import run_app
from shards.config_names import config_names
from tests.rules.sources import ROOT

NAME = "few_shot/ucf101_k2"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; returns its exit code, stdout and stderr."""
    capsys.readouterr()
    code = run_app(app, arguments, prog_name="bmpt")
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_shipped_experiment_is_listed_once_in_the_order_of_its_numbers() -> None:
    names = [item.name for item in list_experiments().experiments]
    assert sorted(names) == config_names("experiments")
    shots = [name for name in names if name.startswith("few_shot/hmdb51")]
    assert shots == [f"few_shot/hmdb51_k{shot}" for shot in (2, 4, 8, 16)]


def test_an_experiment_is_described_by_its_config() -> None:
    found = {item.name: item for item in list_experiments().experiments}
    item = found[NAME]
    assert item.path == str(ROOT / "configs" / "experiments" / f"{NAME}.yaml")
    assert (item.method, item.pool, item.protocol) == ("bmpt", "data/ucf101", "few_shot")
    assert (item.train, item.eval) == ("few_shot/train_k2", ("few_shot/val",))
    zero_shot = found["zero_shot/ucf101"]
    assert (zero_shot.method, zero_shot.protocol, zero_shot.train) == (
        "zero_shot",
        "zero_shot",
        None,
    )
    assert found["few_shot/ucf101_k16_bike"].method == "bike"


def test_the_list_has_one_line_per_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "experiments")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines == experiments_text(list_experiments()).splitlines()
    assert len(lines) == 1 + len(config_names("experiments"))
    assert lines[0].split() == ["experiment", "method", "pool", "protocol"]
    (line,) = [line.split() for line in lines if line.startswith(f"{NAME} ")]
    assert line == [NAME, "bmpt", "data/ucf101", "few_shot"]


def test_the_list_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "experiments", "--json")
    assert (code, err) == (0, "")
    (item,) = [item for item in json.loads(out)["experiments"] if item["name"] == NAME]
    assert item.keys() == {"name", "path", "method", "pool", "protocol", "train", "eval"}
    assert (item["train"], item["eval"]) == ("few_shot/train_k2", ["few_shot/val"])


def test_a_name_and_a_path_give_the_same_config_and_run_folder() -> None:
    by_name = load_config(NAME, ["seed=3"])
    assert by_name == load_config(ROOT / "configs" / "experiments" / f"{NAME}.yaml", ["seed=3"])
    assert by_name.run.dir == f"runs/{NAME}"
    assert (by_name.seed, by_name.method.vision_tokens) == (3, 4)
    assert by_name.method.vision_depth == 12, "from the base: parent"
    assert load_config("demo/all").run.dir == "data/demo/runs/all", "the config sets it"


def test_plan_takes_an_experiment_by_its_name(
    toy_pool: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = ("--set", f"data.pool={toy_pool}", "--set", "data.batch_size=4", "--json")
    settings += ("--set", "train.accumulation=1")
    code, out, err = run(capsys, "plan", NAME, *settings)
    assert (code, err) == (0, "")
    trained, scored = json.loads(out)["plans"]
    assert (trained["clips"], trained["passes"], scored["clips"]) == (8, 60, 12)


@pytest.mark.parametrize("command", ["train", "eval", "plan"])
def test_a_wrong_name_is_one_line_with_similar_names(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, out, err = run(capsys, command, "few_shot/ucf101_k3")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: few_shot/ucf101_k3: ")
    assert "few_shot/ucf101_k2, few_shot/ucf101_k4 or few_shot/ucf101_k8" in err
