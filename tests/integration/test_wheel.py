"""An installed wheel without a checkout: configs by name, and a run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from shards.config_names import config_names
from tests.bmpt.tiny import write_clip
from tests.pools import make_pool
from tests.wheels import build_wheel, install_wheel

NAME = "few_shot/ucf101_k2"


@pytest.fixture(scope="module")
def bmpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `bmpt` of an installed wheel."""
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))
    return install_wheel(wheel, tmp_path_factory.mktemp("venv") / "env") / "bmpt"


def run(bmpt: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the wheel far from the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(bmpt), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_wheel_lists_its_own_experiments(bmpt: Path, tmp_path: Path) -> None:
    done = run(bmpt, "experiments", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["experiments"]
    assert sorted(item["name"] for item in found) == config_names("experiments")
    environment = bmpt.parent.parent
    assert all(Path(item["path"]).is_relative_to(environment) for item in found)


def test_an_experiment_of_the_wheel_trains_by_its_name(bmpt: Path, tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", samples_per_class=5)
    clip = write_clip(tmp_path / "tiny.safetensors")
    changes = [
        "data.pool=pool",
        "data.batch_size=4",
        "data.frames=4",
        "model.name=tiny",
        f"model.pretrained={clip}",
        "method.vision_depth=3",
        "method.text_depth=3",
        "method.exchange_width=8",
        "method.space_time_blocks=[1, 3]",
        "train.epochs=1",
        "train.warmup_epochs=0",
        "train.accumulation=1",
    ]
    options = [word for change in changes for word in ("--set", change)]
    done = run(bmpt, "train", NAME, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    results = json.loads((tmp_path / "runs" / NAME / "results.json").read_text())
    (evaluation,) = results["evaluations"]
    assert (evaluation["manifest"], evaluation["scored"]) == ("few_shot/val", 12)


def test_a_wrong_name_is_one_line_of_the_wheel(bmpt: Path, tmp_path: Path) -> None:
    done = run(bmpt, "train", "few_shot/ucf101_k3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "did you mean few_shot/ucf101_k2" in done.stderr
