"""Test scripts/slurm_build.sh as Slurm runs it: a copy in a spool folder with a job's variables.

Slurm itself is not needed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preprocess.builds import ENCODING, ROOT, digests

SCRIPT = ROOT / "scripts" / "slurm_build.sh"
NO_VIDEOS = [
    "--dataset",
    "folder",
    "--videos",
    "/nowhere",
]  # ends at once, after the script has said what it runs


def options(videos: Path, out: Path, *more: str) -> list[str]:
    """The arguments that a person gives, without parts and workers."""
    sets = [word for override in ENCODING for word in ("--set", override)]
    return ["--dataset", "folder", "--videos", str(videos), "--out", str(out), *sets, *more]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Where Slurm puts the script that it runs."""
    (tmp_path / "spool").mkdir()
    return Path(shutil.copy(SCRIPT, tmp_path / "spool" / "slurm_script"))


def environment(**variables: object) -> dict[str, str]:
    """Of a job: this one without Slurm's variables, and those that are given."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM", "NUM_PARTS", "BMPT"))
    }
    return {
        **kept,
        "PYTHON": sys.executable,
        **{name: str(value) for name, value in variables.items()},
    }


def array(task: int, first: int, last: int, count: int | None = None) -> dict[str, object]:
    """What Slurm tells a task of `--array=<first>-<last>`, of which it may have only `count`."""
    return {
        "SLURM_SUBMIT_DIR": ROOT,
        "SLURM_ARRAY_TASK_ID": task,
        "SLURM_ARRAY_TASK_MIN": first,
        "SLURM_ARRAY_TASK_MAX": last,
        "SLURM_ARRAY_TASK_COUNT": last - first + 1 if count is None else count,
    }


def run(script: Path, args: list[str], **variables: object) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        ["bash", str(script), *args],
        cwd=script.parent,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_slurm_array_and_a_merge_give_the_bytes_of_a_plain_build(
    videos: Path, reference: Path, spool: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pool"
    for task in (2, 1, 3):
        done = run(spool, options(videos, out), **array(task, 1, 3), SLURM_CPUS_PER_TASK=1)
        assert done.returncode == 0, done.stderr
        assert "--workers 1" in done.stderr
    assert sorted(path.name for path in (out / "parts").iterdir()) == [
        f"{part}-of-3.parquet" for part in (1, 2, 3)
    ]
    merged = run(
        spool, options(videos, out, "--merge"), SLURM_SUBMIT_DIR=ROOT, SLURM_CPUS_PER_TASK=1
    )
    assert merged.returncode == 0, merged.stderr
    assert digests(out) == digests(reference)


@pytest.mark.parametrize(("task", "part"), [(0, 16), (3, 3), (15, 15), (16, 16)])
def test_a_slurm_task_builds_the_same_part_whichever_tasks_are_submitted(
    spool: Path, task: int, part: int
) -> None:
    done = run(spool, NO_VIDEOS, **array(task, min(task, 3), max(task, 7), count=2), NUM_PARTS=16)
    assert done.stderr.splitlines()[0].endswith(f"--part {part}/16")


@pytest.mark.parametrize(
    ("first", "last", "parts"), [(1, 4, "1/4 2/4 3/4 4/4"), (0, 3, "4/4 1/4 2/4 3/4")]
)
def test_a_slurm_array_without_gaps_builds_each_part_once(
    spool: Path, first: int, last: int, parts: str
) -> None:
    done = [run(spool, NO_VIDEOS, **array(task, first, last)) for task in range(first, last + 1)]
    assert [one.stderr.splitlines()[0].split()[-1] for one in done] == parts.split()


def test_the_option_workers_overrides_the_cores_of_the_slurm_job(spool: Path) -> None:
    own = run(spool, [*NO_VIDEOS, "--workers", "3"], **array(1, 1, 1), SLURM_CPUS_PER_TASK=64)
    assert "--workers 3 --part 1/1\n" in own.stderr
    default = run(spool, NO_VIDEOS, **array(1, 1, 1), SLURM_CPUS_PER_TASK=64)
    assert "--part 1/1 --workers 64\n" in default.stderr


@pytest.mark.parametrize(
    ("args", "variables", "words"),
    [
        ([], array(3, 3, 7, count=2), "set NUM_PARTS to the N of the whole"),
        ([], array(3, 3, 5), "an array of 3 tasks from 3 to 5 is not all of 1-N"),
        ([], {**array(3, 1, 3), "NUM_PARTS": 2}, "task 3 is not in 0-2"),
        ([], {**array(1, 1, 1), "NUM_PARTS": "two"}, "NUM_PARTS=two"),
        ([], {"SLURM_SUBMIT_DIR": ROOT}, "submit with sbatch --array=1-N"),
        (["--merge"], array(1, 1, 2), "--merge is one job"),
        (["--part", "1/2"], array(1, 1, 2), "--part: parts come from the array"),
        (
            [],
            {**array(1, 1, 1), "BMPT_ROOT": "/nowhere"},
            "/nowhere/preprocess/build_shards.py: no such file",
        ),
    ],
)
def test_a_user_error_of_the_slurm_script_is_one_line_with_the_cure(
    spool: Path, args: list[str], variables: dict[str, object], words: str
) -> None:
    done = run(spool, ["--dataset", "folder", *args], **variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: slurm_build.sh: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_the_slurm_time_limit_ends_the_build_and_the_same_task_resumes(
    videos: Path, reference: Path, spool: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pool"
    task = array(1, 1, 1)
    command = ["bash", str(spool), *options(videos, out)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(**task), stderr=subprocess.PIPE, text=True
    ) as batch:
        assert batch.stderr is not None
        while (
            "clips: 0/10" not in batch.stderr.readline()
        ):  # it has begun, and no worker is ready yet
            assert batch.poll() is None
        batch.send_signal(signal.SIGTERM)  # to the process that was the script
        rest = batch.stderr.read()
    assert batch.returncode == 143
    assert "terminated; run the same command again" in rest
    assert not (out / "parts").exists()
    assert run(spool, options(videos, out), **task).returncode == 0
    assert run(spool, options(videos, out, "--merge"), SLURM_SUBMIT_DIR=ROOT).returncode == 0
    assert digests(out) == digests(reference)
