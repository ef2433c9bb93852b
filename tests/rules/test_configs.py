"""Every YAML that ships loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bmpt.config import load_config
from bmpt.methods import METHODS
from bmpt.runtime.run_folder import CONFIG
from shards.config import read_yaml_with_base
from tests.rules.sources import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = [path for path in CONFIGS if path.is_relative_to(ROOT / "configs" / "experiments")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


def test_there_are_configs_to_look_at() -> None:
    assert len(EXPERIMENTS) >= 30
    others = [path for path in (ROOT / "configs").rglob("*") if path.suffix != ".yaml"]
    assert [name_of(path) for path in others if path.is_file()] == ["README.md"]


def test_every_method_has_an_experiment() -> None:
    assert {load_config(path).method.name for path in EXPERIMENTS} == set(METHODS)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_loads(path: Path) -> None:
    config = load_config(path)
    assert config.data.pool
    assert config.eval.manifests or config.data.val, "an experiment that scores nothing"
    assert config.data.train is not None or config.method.name == "zero_shot"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_config_is_a_mapping_whose_base_exists_and_holds_no_unknown_section(
    path: Path,
) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    merged = read_yaml_with_base(path)
    assert "base" not in merged
    assert merged.keys() <= {"seed", "run", "data", "model", "text", "method", "train", "eval"}


def test_no_two_experiments_share_a_run_folder() -> None:
    folders = [str(load_config(path).run.dir) for path in EXPERIMENTS]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    assert twice == [], f"{CONFIG} of the second would be refused"


def test_no_config_names_an_absolute_path_or_a_secret() -> None:
    for path in CONFIGS:
        text = path.read_text(encoding="utf-8")
        for word in ("/home/", "/root/", "/mnt/", "secret", "password", "access_key"):
            assert word not in text, f"{name_of(path)} names {word}"
