"""Test data sets of other packages, registered by an entry point in the package's metadata."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.sources import DATASETS, find_dataset, open_source
from shards.errors import ConfigError
from tests.preprocess.builds import ROOT
from tests.preprocess.trees import write_tree, write_videos

TOY = """
from preprocess.sources.folder import read_annotations
from preprocess.sources.records import DataSet

TOY = DataSet(name="toy", read_annotations=read_annotations, path_keyed=True)
NUMBER = 7
"""


def install(site: Path, package: str, entry_points: dict[str, str], code: str = TOY) -> Path:
    """Write a package and its metadata as pip does, into a folder of its own."""
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    return write_tree(
        site,
        {
            f"{package}/__init__.py": "",
            f"{package}/data.py": code,
            f"{package}-1.0.dist-info/METADATA": f"Name: {package}\nVersion: 1.0\n",
            f"{package}-1.0.dist-info/entry_points.txt": "[bmpt.data_sets]\n" + "\n".join(lines),
        },
    )


def test_a_registered_data_set_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site", "toys_a", {"toy": "toys_a.data:TOY"}))
    write_videos(tmp_path / "videos", ["jump/a.mp4"])
    source = open_source("toy", tmp_path / "videos", None)
    assert [(video.key, video.class_name) for video in source.videos] == [("jump/a", "jump")]
    assert find_dataset("ucf101") is DATASETS["ucf101"]
    with pytest.raises(ConfigError, match="did you mean toy"):
        find_dataset("toyz")


def test_the_command_builds_a_registered_data_set(tmp_path: Path) -> None:
    site = install(tmp_path / "site", "toys_b", {"toy": "toys_b.data:TOY"})
    write_videos(tmp_path / "videos/toy", ["jump/a.mp4", "run/b.mp4"])
    script = str(ROOT / "preprocess" / "build_shards.py")
    done = subprocess.run(
        [sys.executable, script, "--dataset", "toy", "--workers", "1"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("build of toy in ")
    assert (tmp_path / "data/toy/shards/toy-000000.tar").is_file()


def test_two_packages_with_one_data_set_name_are_both_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("toys_c", "toys_d"):
        site = install(tmp_path / package, package, {"toy": f"{package}.data:TOY"})
        monkeypatch.syspath_prepend(site)
    sentence = r"--dataset toy: packages toys_\w and toys_\w both register it; uninstall one"
    with pytest.raises(ConfigError, match=sentence):
        find_dataset("toy")


def test_a_package_cannot_replace_a_built_in_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "toys_e", {"ucf101": "toys_e.data:TOY"}))
    with pytest.raises(ConfigError, match="package toys_e registers a data set of this name"):
        find_dataset("ucf101")
    assert find_dataset("hmdb51") is DATASETS["hmdb51"]


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ("toys_f.gone:TOY", TOY, "cannot be imported: ModuleNotFoundError: No module named"),
        ("toys_f.data:GONE", TOY, "cannot be imported: AttributeError: "),
        ("toys_f.data:TOY", "raise RuntimeError('first\\nsecond')", "RuntimeError: first second;"),
        ("toys_f.data:NUMBER", TOY, "is not a preprocess.sources.DataSet"),
        ("toys_f.data:TOY", TOY.replace('"toy"', '"other"'), "has the name 'other'; make it 'toy'"),
    ],
)
def test_a_broken_registration_names_package_entry_point_and_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, code: str, words: str
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "toys_f", {"toy": value}, code))
    for name in [name for name in sys.modules if name.split(".")[0] == "toys_f"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError) as caught:
        find_dataset("toy")
    message = str(caught.value)
    assert message.startswith(f"--dataset toy: {value} of package toys_f ")
    assert words in message
    assert "\n" not in message
