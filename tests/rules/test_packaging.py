"""The wheel carries the three packages and nothing else; the repository carries nothing private or
large."""

from __future__ import annotations

import re
import sys
import tomllib
import zipfile
from pathlib import Path

from tests.rules.sources import PACKAGES, ROOT, relative, tracked_files
from tests.wheels import build_wheel

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONFIGS = "bmpt.configs"  # a folder of data, in the checkout `configs`
LARGEST_BYTES = 8_000_000


def packages_on_disk() -> set[str]:
    """Every folder with Python files below the three packages, as a dotted name."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    return {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}


def test_the_listed_packages_are_exactly_those_that_exist() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk() | {CONFIGS}


def test_every_package_has_an_init_file() -> None:
    bare = [
        name
        for name in packages_on_disk()
        if not (ROOT / name.replace(".", "/") / "__init__.py").is_file()
    ]
    assert bare == []


def test_the_project_is_marked_as_never_to_be_uploaded() -> None:
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


def test_every_data_file_of_a_package_is_declared_and_every_declared_pattern_finds_one() -> None:
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    assert folders == {CONFIGS: "configs"}
    found: set[Path] = set()
    for package, patterns in declared.items():
        for pattern in patterns:
            folder = folders.get(package, package.replace(".", "/"))
            matches = set((ROOT / folder).glob(pattern))
            assert matches, f"package-data {package}: {pattern} matches nothing"
            found |= matches
    data = {
        path
        for path in tracked_files()
        if relative(path).split("/")[0] in (*PACKAGES, "configs") and path.suffix != ".py"
    }
    assert {relative(path) for path in data - found if path.suffix != ".md"} == set()


def test_every_third_party_import_is_a_declared_dependency() -> None:
    from tests.rules.sources import imports_of, own_part, source_files

    distributions = {
        "yaml": "pyyaml",
        "pydantic_core": "pydantic",
        "ffmpeg": "ffmpeg-python",
        "imageio_ffmpeg": "imageio-ffmpeg",
        "open_clip": "open_clip_torch",
        "torchvision": "open_clip_torch",  # which requires it
        "huggingface_hub": "open_clip_torch",  # likewise
        "PIL": "open_clip_torch",  # through torchvision
    }
    text = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        text.extend(extra)
    declared = {re.split(r"[<>=!\[; ]", line)[0].lower() for line in text}
    used = {
        own_part(found.module) for path in source_files(*PACKAGES) for found in imports_of(path)
    }
    third_party = used - set(sys.stdlib_module_names) - set(PACKAGES)
    missing = {
        name for name in third_party if distributions.get(name, name).lower() not in declared
    }
    assert missing == set()


def test_the_wheel_holds_the_three_packages_and_the_configs(tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(build_wheel(tmp_path)).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)

    tracked = {relative(path) for path in tracked_files()}
    code = {name for name in tracked if name.startswith(PACKAGES) and name.endswith(".py")}
    assert {name for name in names if name.endswith(".py")} == code
    configs = {f"bmpt/{name}" for name in tracked if name.startswith("configs/")}
    assert len(configs) > 30
    assert {name for name in names if name.startswith("bmpt/configs/")} == configs
    assert "bmpt/demo/motion_clip.safetensors" in names, "the demo runs from the wheel's weights"


def test_no_file_of_the_repository_is_large() -> None:
    large = {
        relative(path): path.stat().st_size
        for path in tracked_files()
        if path.stat().st_size > LARGEST_BYTES
    }
    assert large == {}


def test_no_file_of_the_repository_names_a_private_path() -> None:
    # put together, so that this file does not name them itself
    private = re.compile(
        rb"(?<![\w.])/(?:ho" + rb"me|Us" + rb"ers|ro" + rb"ot|wo" + rb"rk|mn" + rb"t)/\w"
    )
    named = []
    for path in tracked_files():
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if private.search(line) and path.suffix not in (".safetensors", ".png", ".jpg"):
                named.append(f"{relative(path)}:{number}")
    assert named == []


def test_no_file_of_the_repository_was_left_in_a_merge() -> None:
    marker = re.compile(rb"^(<{7} |>{7} )", flags=re.MULTILINE)
    assert [relative(path) for path in tracked_files() if marker.search(path.read_bytes())] == []
