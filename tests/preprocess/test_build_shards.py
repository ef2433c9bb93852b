"""Test the build command: its options, exit codes and one-line errors."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import typer.main

from preprocess import build_shards
from preprocess.settings import BuildSettings, make_build_settings
from shards.errors import ConfigError
from tests.preprocess.builds import ROOT, arguments, digests, run_python, run_script
from tests.preprocess.tiny_videos import make_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for name in ("a/x.avi", "a/y.avi", "b/x.avi"):
        make_video(root / name, frames=5)
    (root / "b" / "text.mp4").write_text("not a video")
    return root


def test_help_works_from_any_folder_and_shows_all_options(tmp_path: Path) -> None:
    done = run_script("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    promised = (
        "dataset videos annotations splits out workers part merge limit retry-failed "
        "check-sources expect-sources engine "
        "ray-address decoder hwaccel scratch dry-run strict json set help"
    )
    assert set(re.findall(r"--([a-z-]+)", done.stdout)) == set(promised.split())


def test_help_and_the_import_of_the_package_need_no_heavy_library() -> None:
    code = (
        "import sys, preprocess, preprocess.build_shards as b; code = b.main(['--help']);"
        "heavy = ('torch', 'webdataset', 'av', 'pyarrow', 'numpy');"
        "print(code, [name for name in heavy if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "0 []"


def test_a_checkout_that_was_never_installed_builds_from_another_folder(
    videos: Path, tmp_path: Path
) -> None:
    checkout, work = tmp_path / "checkout", tmp_path / "work"
    for package in ("preprocess", "shards"):
        shutil.copytree(
            ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (checkout / "pyproject.toml").write_text('version = "0.0.7+copy"\n')
    (work / "videos").mkdir(parents=True)
    (work / "videos" / "folder").symlink_to(videos)
    script = str(checkout / "preprocess" / "build_shards.py")
    done = run_python(script, "--dataset", "folder", "--limit", "2", "--workers", "1", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "clips: 2/2" in done.stderr
    assert "pool_id" in done.stdout
    card = json.loads((work / "data" / "folder" / "pool.json").read_text())
    assert card["libraries"]["bmpt"] == "0.0.7+copy"


def test_json_prints_one_object_and_strict_exits_with_1(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = arguments(videos, tmp_path / "pool")
    assert build_shards.main([*args, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["counts"]["undecodable"] == 1
    assert report["failed"][0]["key"] == "b/text"
    assert build_shards.main([*args, "--strict"]) == 1
    table = capfd.readouterr().out
    assert "undecodable: b/text: cannot be opened as a video" in table


def test_a_dry_run_writes_nothing(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_shards.main(arguments(videos, tmp_path / "pool", "--dry-run")) == 0
    assert "would decode 4 videos; the pool would have 1 shards" in capsys.readouterr().out
    assert digests(tmp_path) == {}
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--dataset", "ucf11"], "did you mean ucf101"),
        (["--dataset", "folder", "--videos", "/nowhere"], "/nowhere"),
        (["--dataset", "folder", "--set", "labls=csv"], "did you mean labels"),
        (["--dataset", "folder", "--set", "jpeg_quality=101"], "encoding.jpeg_quality"),
        (["--dataset", "folder", "--part", "3/2"], "for example 1/4"),
        (["--dataset", "folder", "--out", "ftp://host/pool"], "ftp:// is not supported"),
        (["--dataset", "folder", "--out", "s3://"], "names no bucket"),
        (["--dataset", "folder", "--hwaccel", "cuda"], "hwaccel needs decoder ffmpeg"),
        (["--dataset", "folder", "--ray-address", "auto"], "ray_address needs engine ray"),
        (["--dataset", "folder", "--workers", "many"], "--workers"),
        (["--dataset", "folder", "--splitz", "x"], "--splitz"),
        ([], "--dataset"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_shards.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_set_changes_every_setting_and_encoding_fields_by_bare_name() -> None:
    options = {"dataset": "ssv2", "workers": None}
    sets = [
        "frames_per_clip=32",
        "encoding.jpeg_quality=95",
        "labels=official",
        "timeout_seconds=5",
        "workers=3",
    ]
    settings = make_build_settings(options, sets)
    assert (settings.encoding.frames_per_clip, settings.encoding.jpeg_quality) == (32, 95)
    assert (settings.labels, settings.timeout_seconds, settings.workers) == ("official", 5.0, 3)


def test_default_folders_have_the_name_of_the_data_set() -> None:
    settings = BuildSettings(dataset="ssv2")
    assert (settings.videos, settings.out) == (Path("videos/ssv2"), "data/ssv2")
    assert settings.workers >= 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("scaler=lanczos", "scaler can only be 'bicubic"),
        ("decoder=opencv", "Input should be 'pyav' or 'ffmpeg'"),
        ("encoding.decoder=ffmpeg", "decoder is 'pyav'"),
    ],
)
def test_an_encoding_that_this_version_cannot_write_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_build_settings({"dataset": "ssv2"}, [override])


def test_parts_exclude_merge_and_retry() -> None:
    for other in ("merge", "retry_failed"):
        with pytest.raises(ConfigError, match="exclude each other"):
            make_build_settings({"dataset": "ssv2", "part": "1/2", other: True})


def test_help_of_the_build_has_examples_with_options_that_exist() -> None:
    text = run_script("--help").stdout
    examples = [line.strip() for line in text.partition("Examples:\n")[2].splitlines()]
    assert len(examples) >= 2

    single = typer.Typer()
    single.command()(build_shards.build)
    command = typer.main.get_command(single)
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["python", "preprocess/build_shards.py"]
        command.make_context("build_shards.py", words[2:])
