"""Config names: found by name or by path, and one line with similar names for a wrong one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from shards.config_names import (
    config_names,
    configs_folder,
    find_config,
    name_of_config,
    suggest_names,
)
from shards.errors import ConfigError
from tests.rules.sources import ROOT

KIND = "experiments"
NAME = "few_shot/ucf101_k2"


def find(address: Path | str) -> Path:
    return find_config(address, KIND, listed_by="`bmpt experiments`")


def refused(address: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        find(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkout_has_its_configs_beside_the_packages() -> None:
    assert configs_folder() == ROOT / "configs"


def test_names_are_paths_below_the_kind_without_the_suffix() -> None:
    names = config_names(KIND)
    assert NAME in names
    assert names == sorted(names)
    assert len(names) == len(list((ROOT / "configs" / KIND).glob("*/*.yaml")))
    assert "bmpt" in config_names("methods")
    assert config_names("no_such_kind") == []


def test_a_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(NAME) == find(Path(NAME)) == ROOT / "configs" / KIND / f"{NAME}.yaml"


def test_a_path_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    assert find("my.yaml") == Path("my.yaml")
    assert find(tmp_path / "my.yaml") == tmp_path / "my.yaml"


def test_a_file_comes_before_a_name_and_a_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert find(NAME) == ROOT / "configs" / KIND / f"{NAME}.yaml"
    (tmp_path / NAME).rmdir()
    (tmp_path / NAME).write_text("seed: 1\n")
    assert find(NAME) == Path(NAME)


def test_a_pipe_of_the_shell_is_a_path(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("seed: 1\n",))
    writer.start()
    assert find(tmp_path / "pipe").read_text() == "seed: 1\n"
    writer.join()


@pytest.mark.parametrize("kind", ["../methods", "few_shot/../few_shot"])
def test_a_name_does_not_lead_out_of_its_folder(kind: str) -> None:
    assert "no such config file" in refused(f"{kind}/bmpt")
    assert "no such config file" in refused(f"{kind}/ucf101_k2")


@pytest.mark.parametrize(
    ("address", "similar"),
    [
        ("few_shot/ucf101_k3", "few_shot/ucf101_k2, few_shot/ucf101_k4 or few_shot/ucf101_k8"),
        ("demo/promts", "demo/prompts"),
        ("kinetics600", "zero_shot/kinetics600"),
        ("few_shot/hmdb51_k16.yaml", "few_shot/hmdb51_k16"),
        ("configs/experiments/demo/al.yaml", "demo/all"),
        ("elsewhere/configs/experiments/demo/al.yaml", "demo/all"),
    ],
)
def test_a_wrong_name_or_path_is_refused_with_similar_names(address: str, similar: str) -> None:
    line = refused(address)
    assert line.startswith(f"{address}: no such config file; ")
    suggested = line.split("did you mean ")[1]
    assert suggested.startswith(similar), suggested


def test_a_name_without_a_similar_one_is_refused_with_the_command_that_lists_them() -> None:
    line = refused("nowhere.yaml")
    assert line.endswith("; give a path or a name that `bmpt experiments` lists")
    assert suggest_names("nowhere.yaml", KIND) == ""


def test_a_folder_and_a_path_that_is_too_long_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"{tmp_path}: cannot be read: it is a folder")
    assert "cannot be read" in refused("x" * 300) or "no such config file" in refused("x" * 300)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/experiments/few_shot/ucf101_k2.yaml", "few_shot/ucf101_k2"),
        ("copied/configs/experiments/mine/deep/er.v2.yaml", "mine/deep/er.v2"),
        ("configs/experiments/top.yaml", "top"),
        ("configs/methods/bmpt.yaml", "bmpt"),
        ("experiments/few_shot/ucf101_k2.yaml", "ucf101_k2"),
        ("configs/experiments/few_shot/../demo/all.yaml", "demo/all"),
        ("my.yaml", "my"),
        ("runs/x/config.yaml", "config"),
    ],
)
def test_the_name_of_a_file_is_its_path_below_the_kind_or_its_stem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_of_config(Path(path), KIND) == name
    assert name_of_config(tmp_path / path, KIND) == name


def test_a_file_has_the_same_name_from_the_folder_that_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT / "configs" / KIND / "few_shot")
    assert name_of_config(Path("ucf101_k2.yaml"), KIND) == NAME
    assert name_of_config(Path("../demo/all.yaml"), KIND) == "demo/all"
