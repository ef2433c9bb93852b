"""Methods of other packages, which register through entry points."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmpt.config import load_config
from bmpt.config_keys import method_models
from bmpt.methods import METHODS, build_method, find_method, method_names
from bmpt.methods.zero_shot import ZeroShot
from shards.errors import ConfigError
from tests.bmpt.tiny import load_tiny

MODULE = """
from pydantic import Field

from bmpt.methods.zero_shot import ZeroShot
from bmpt.settings import MethodSettings


class SharpSettings(MethodSettings):
    name: str = "sharp"
    sharpness: float = Field(2.0, gt=0)


class Sharp(ZeroShot):
    settings: SharpSettings


METHOD = (Sharp, SharpSettings)
NO_METHOD = (Sharp, dict)
"""


def install(site: Path, package: str, entries: str, *, module: str = MODULE) -> None:
    """Install a package into a folder of sys.path: its module and its metadata."""
    (site / f"{package}.py").write_text(module, encoding="utf-8")
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[bmpt.methods]\n{entries}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sharp.yaml"
    path.write_text("data: {pool: p}\nmethod: {name: sharp, sharpness: 3}\n")
    return path


def test_a_method_of_an_installed_package_is_configured_and_built(
    site: Path, config: Path, clip: Path
) -> None:
    install(site, "sharp_package", "sharp = sharp_package:METHOD")
    assert method_names() == [*METHODS, "sharp"]
    settings = load_config(config).method
    assert settings.model_dump()["sharpness"] == 3.0
    method = build_method(load_tiny(clip), settings, num_frames=4, seed=0)
    assert type(method).__name__ == "Sharp"
    assert isinstance(method, ZeroShot)


def test_settings_of_an_installed_method_are_strict(site: Path, config: Path) -> None:
    install(site, "sharp_strict", "sharp = sharp_strict:METHOD")
    with pytest.raises(ConfigError, match=r"method\.exchange: method sharp has no such key"):
        load_config(config, ["method.exchange=none"])
    with pytest.raises(ConfigError, match=r"method\.sharpness: .*got -1"):
        load_config(config, ["method.sharpness=-1"])


def test_an_entry_point_with_the_name_of_a_method_of_bmpt_is_refused(site: Path) -> None:
    install(site, "bike_package", "bike = bike_package:METHOD")
    with pytest.raises(
        ConfigError,
        match=r"method\.name=bike: package bike_package registers a method of this name, which "
        "bmpt has already",
    ):
        find_method("bike")
    assert find_method("bmpt") == METHODS["bmpt"]


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    install(site, "sharp_one", "sharp = sharp_one:METHOD")
    install(site, "sharp_two", "sharp = sharp_two:METHOD")
    with pytest.raises(ConfigError, match=r"packages sharp_(one|two) and sharp_(one|two) both"):
        find_method("sharp")


@pytest.mark.parametrize(
    ("entry", "module", "sentence"),
    [
        ("sharp = {0}:METHOD", "import nowhere_at_all", "cannot be imported: ModuleNotFoundError"),
        ("sharp = {0}:METHOD", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("sharp = {0}:GONE", MODULE, "cannot be imported: AttributeError"),
        ("sharp = {0}:NO_METHOD", MODULE, "is not a pair"),
        ("sharp = {0}:Sharp", MODULE, "is not a pair"),
        ("blunt = {0}:METHOD", MODULE, "has the default name 'sharp'; make it 'blunt'"),
    ],
)
def test_a_broken_entry_point_is_refused_in_one_line(
    site: Path, request: pytest.FixtureRequest, entry: str, module: str, sentence: str
) -> None:
    package = f"broken_{abs(hash(request.node.name))}"
    install(site, package, entry.format(package), module=module)
    name = entry.split()[0]
    with pytest.raises(ConfigError, match=sentence) as caught:
        find_method(name)
    assert package in str(caught.value)
    assert "\n" not in str(caught.value)
    assert find_method("bmpt") == METHODS["bmpt"]


@pytest.mark.parametrize("body", ["import no_such_library\n", "raise SystemExit('needs X')\n"])
def test_a_broken_package_does_not_hide_the_keys_of_other_methods(
    site: Path, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    install(site, "broken_package", "broken = broken_package:METHOD", module=body)
    models = method_models()
    assert set(models) == set(METHODS)
    assert "broken_package" in capsys.readouterr().err
