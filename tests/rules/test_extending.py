"""Run the examples of the pages on extending as they are written, in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards.reader import open_pool
from tests.bmpt.tiny import write_clip
from tests.pools import make_pool
from tests.preprocess.tiny_videos import make_video
from tests.rules.sources import ROOT

PAGE = ROOT / "docs" / "extending.md"
DATA_SETS_PAGE = ROOT / "docs" / "extending-data-sets.md"
BLOCK = re.compile(r"([^\n]*)\n\n```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
COPIED = ("bmpt", "shards", "preprocess", "configs")

# Settings that make a run of two steps on the toy pool of each command of the page.
TINY = (
    *("data.train=few_shot/train_k2", "data.val=few_shot/val", "data.frames=4"),
    *("data.batch_size=4", "train.epochs=1", "train.warmup_epochs=0", "train.accumulation=1"),
    *("model.name=tiny", "eval.batch_size=5"),
)
SHALLOW = ("method.vision_depth=2", "method.text_depth=2", "method.space_time_blocks=[1]")


@dataclass(frozen=True)
class Example:
    """A code block of the page."""

    title: str
    """The line above the block, which names its file."""

    kind: str
    """Language of the block: python, diff, yaml, toml, sh."""

    text: str

    @property
    def path(self) -> str:
        """Return the file that the line above the block names."""
        found = re.search(r"`([\w/]+\.\w+)`", self.title)
        assert found is not None, f"no file is named above a block: {self.title}"
        return found[1]


def examples(section: str, page: Path = PAGE) -> list[Example]:
    """Return the code blocks of a section of a page, in order."""
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in sections if part.removeprefix("# ").startswith(f"{section}\n")]
    return [Example(*found) for found in BLOCK.findall(text)]


def write(example: Example, folder: Path) -> None:
    """Write a new file, or add the lines that a block marks with `+` to a file."""
    path = folder / example.path
    if example.kind == "diff":
        text = path.read_text(encoding="utf-8")
        for hunk in example.text.split("@@\n"):
            text = add_lines(text, hunk, example.path)
        path.write_text(text, encoding="utf-8")
    else:
        assert example.title.startswith("New file"), example.title
        assert not path.exists(), f"{example.path} is not new"
        path.write_text(example.text, encoding="utf-8")


def add_lines(text: str, hunk: str, name: str) -> str:
    """Return a file's text with the `+` lines of a hunk, and without its `-` lines."""
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if not line.startswith("+"))
    after = "".join(line[1:] for line in lines if not line.startswith("-"))
    assert text.count(before) == 1, f"{name}: holds {text.count(before)} times:\n{before}"
    return text.replace(before, after)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages and configs."""
    folder = tmp_path / "copy"
    for name in COPIED:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that point a command at a toy pool and a tiny CLIP."""
    folder = tmp_path_factory.mktemp("tiny")
    make_pool(folder / "pool", samples_per_class=5)
    clip = write_clip(folder / "clip.safetensors")
    settings = [*TINY, f"data.pool={folder / 'pool'}", f"model.pretrained={clip}"]
    return [word for setting in settings for word in ("--set", setting)]


def train(command: str, folder: Path, *more: str, site: Path | None = None) -> Path:
    """Run a command of the page in a folder and return its run folder, of two steps."""
    program, *words = shlex.split(command)
    assert program == "bmpt"
    done = subprocess.run(
        [sys.executable, "-m", "bmpt", *words, *more, "--set", "run.dir=run"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "" if site is None else str(site)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    return folder / "run"


def command_of(section: str) -> str:
    """Return the one command of a section."""
    (example,) = [example for example in examples(section) if example.kind == "sh"]
    return example.text.strip()


def test_the_method_of_the_page_trains_and_is_scored(copy: Path, tiny: list[str]) -> None:
    for example in examples("A method"):
        if example.kind in ("python", "diff", "yaml"):
            write(example, copy)
    run = train(command_of("A method"), copy, *tiny)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["method"] == "clip_adapter"
    assert results["evaluations"][0]["scored"] == 12
    assert "ratio: 0.2" in (run / "config.yaml").read_text(encoding="utf-8")


def test_the_method_of_the_page_works_from_a_package_of_its_own(
    copy: Path, tiny: list[str], tmp_path: Path
) -> None:
    method, entry, config = (
        next(example for example in examples("A method") if example.kind == kind)
        for kind in ("python", "toml", "yaml")
    )
    header, line = entry.text.splitlines()
    assert header == '[project.entry-points."bmpt.methods"]'
    (pair,) = re.findall(r"`(METHOD = \(.*?\))`", PAGE.read_text(encoding="utf-8"))

    site = tmp_path / "site"
    metadata = site / "clip_adapter_package-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "clip_adapter_package.py").write_text(f"{method.text}\n{pair}\n", encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: p\nVersion: 1.0\n")
    entry_point = line.replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[bmpt.methods]\n{entry_point}\n")

    write(config, copy)
    run = train(command_of("A method"), copy, *tiny, site=site)
    assert json.loads((run / "results.json").read_text())["method"] == "clip_adapter"


def test_the_augmentation_of_the_page_trains(copy: Path, tiny: list[str]) -> None:
    for example in examples("An augmentation"):
        if example.kind in ("python", "diff"):
            write(example, copy)
    shallow = [word for setting in SHALLOW for word in ("--set", setting)]
    run = train(command_of("An augmentation"), copy, *tiny, *shallow)
    assert "brightness" in (run / "config.yaml").read_text(encoding="utf-8")


def run_bmpt(command: str, folder: Path, *more: str, site: Path) -> str:
    """Run a command of the page in a folder and return what it prints."""
    program, *words = shlex.split(command)
    assert program == "bmpt"
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-m", "bmpt", *words, *more],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(site)},
            check=False,
        )
        # About once in 200 commands, Arrow's threads abort a process that has already done its
        # work. This test is about the page; it repeats such a command.
        if done.returncode != -signal.SIGABRT:
            break
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_gym_moves(folder: Path) -> None:
    """Write the four videos and the split that the page describes."""
    (layout,) = re.findall(
        r"^```\n(videos/.*?)^```$", DATA_SETS_PAGE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    lines = re.findall(r"[a-z]+/\d+\.mp4,\w+", layout)
    assert len(lines) == 4
    for seed, line in enumerate(lines):
        name = line.partition(",")[0]
        assert re.search(rf"^.* ?{name}  ", layout.replace("gym_moves/", " "), flags=re.MULTILINE)
        make_video(folder / "videos" / "gym_moves" / name, frames=4, seed=seed)
    (folder / "lists").mkdir()
    (folder / "lists" / "split.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("is_registered", [False, True])
def test_the_data_set_of_the_page_is_built_and_planned(
    copy: Path, tmp_path: Path, is_registered: bool
) -> None:
    python, diff, build, config, train_command = examples("How to add a data set", DATA_SETS_PAGE)
    site = tmp_path / "site"
    if is_registered:
        (entry,) = examples("In a package of your own", DATA_SETS_PAGE)
        header, line = entry.text.splitlines()
        assert header == '[project.entry-points."bmpt.data_sets"]'
        metadata = site / "gym_moves_package-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / "gym_moves_package.py").write_text(python.text)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: p\nVersion: 1.0\n")
        entry_point = line.replace('"', "")
        (metadata / "entry_points.txt").write_text(f"[bmpt.data_sets]\n{entry_point}\n")
    else:
        write(python, copy)
        write(diff, copy)
    write(config, copy)
    write_gym_moves(copy)

    printed = run_bmpt(build.text, copy, "--set", "frames_per_clip=4", site=site)
    assert printed.startswith("build of gym_moves in ")
    pool = open_pool(copy / "data" / "gym_moves")
    keys = ["lunge/01", "lunge/02", "squat/01", "squat/02"]
    assert pool.samples()["key"].to_pylist() == keys
    train, val = pool.manifest("fully_supervised/train"), pool.manifest("fully_supervised/val")
    assert train.info.classes == ["lunge", "squat"]
    assert train.table["key"].to_pylist() == ["squat/01", "lunge/01"]
    assert val.table["key"].to_pylist() == ["squat/02", "lunge/02"]

    plan = train_command.text.replace("bmpt train", "bmpt plan")
    small = ("--set", "data.batch_size=2", "--set", "train.accumulation=1")
    planned = json.loads(run_bmpt(plan, copy, *small, "--json", site=site))
    assert [(part["manifest"], part["samples"]) for part in planned["plans"]] == [
        ("few_shot/train_k2", 2),
        ("few_shot/val", 2),
    ]


def test_a_block_whose_lines_are_not_in_the_file_is_noticed() -> None:
    with pytest.raises(AssertionError, match="holds 0 times"):
        add_lines("a = 1\n", " b = 2\n+c = 3\n", "file.py")
