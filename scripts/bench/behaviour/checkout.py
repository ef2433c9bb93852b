"""Run the commands of one checkout and keep what they left: exit codes, output and files."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Facts = dict[str, Any]

# a recorded command that takes longer counts as hanging
TIMEOUT_SECONDS = 900
# Arrow's threads now and then abort a process that is about to end, after its work is done
# (once in about 200 commands on a busy machine): such a command is run again
ABORT = (-signal.SIGABRT, "terminate called without an active exception")
MAX_ABORTS = 3
# a mapping with more entries, such as the number of clips of each class, is recorded as its sha256
MAX_ENTRIES = 60
# JSON values that are times of this machine, versions, or sentences that may be reworded
_VARIES = {"seconds", "estimate", "commit", "dirty", "libraries"}
_SENTENCES = {"warnings", "advice", "reason", "what"}
# variables that would change what a command does
_FOREIGN_PREFIXES = ("AWS_", "BMPT_", "OPENAI_", "TORCHELASTIC_")
_FOREIGN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH"}


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int | str
    """The exit code, or "timeout"."""

    stdout: str
    stderr: str
    seconds: float

    def last_line(self) -> str:
        """Return the last line that the command wrote to stderr, for the person who records."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Checkout:
    """The code under test, its interpreter, and the folder in which all commands run.

    Commands run in `work`, with the checkout first on the import path, and name every file relative
    to `work`. Therefore no path of this machine gets into what they write.
    """

    root: Path
    """The root folder of the repository."""

    python: Path
    """The interpreter that has the dependencies."""

    work: Path
    """An empty folder at the start of a recording."""

    shared: Path
    """The sample data: a folder with `clips/` and `splits/`."""

    def bmpt(self, *arguments: str) -> Ended:
        """Run `python -m bmpt` with these arguments."""
        return self._run("-m", "bmpt", *arguments)

    def build(self, *arguments: str) -> Ended:
        """Run `python preprocess/build_shards.py` with these arguments."""
        return self._run(str(self.root / "preprocess" / "build_shards.py"), *arguments)

    def torchrun(self, ranks: int, *arguments: str) -> Ended:
        """Run `bmpt` with these arguments under torchrun, on several CPU processes (gloo)."""
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
        return self._run(*launcher, "-m", "bmpt", *arguments)

    def on_ranks(self, ranks: int, *arguments: str) -> Ended:
        """Run `bmpt` as one process, or under torchrun for more than one rank."""
        return self.bmpt(*arguments) if ranks == 1 else self.torchrun(ranks, *arguments)

    def find(self, pattern: str) -> Path:
        """Return the only file of the repository that matches, wherever its folder has moved.

        Args:
            pattern: a glob below the root, for example `bmpt/**/motion_clip.safetensors`.

        Raises:
            SystemExit: there is no such file, or there are several.
        """
        found = [path for path in self.root.glob(pattern) if ".venv" not in path.parts]
        if len(found) != 1:
            raise SystemExit(f"error: {self.root}: {len(found)} files match {pattern}, expected 1")
        return found[0]

    def method_config(self, name: str) -> Path:
        """Return `configs/methods/NAME.yaml`, in the root folder or in a package."""
        place = self.root / "configs" / "methods" / f"{name}.yaml"
        return place if place.is_file() else self.find(f"*/**/configs/methods/{name}.yaml")

    def experiment_config(self, name: str) -> Path:
        """Return `configs/experiments/NAME.yaml`, in the root folder or in a package."""
        place = self.root / "configs" / "experiments" / f"{name}.yaml"
        return place if place.is_file() else self.find(f"*/**/configs/experiments/{name}.yaml")

    def check(self) -> Facts:
        """Check that the interpreter runs the code of this checkout.

        Returns:
            What the recording depends on besides the code: the commit and the versions.

        Raises:
            SystemExit: the packages come from elsewhere, or cannot be imported.
        """
        code = (
            "import json, platform\n"
            "import bmpt, preprocess, shards\n"
            "from importlib.metadata import version\n"
            "names = 'torch open_clip_torch av pyarrow numpy safetensors simplejpeg'.split()\n"
            "versions = {'python': platform.python_version(), **{n: version(n) for n in names}}\n"
            "files = [m.__file__ for m in (bmpt, preprocess, shards)]\n"
            "print(json.dumps({'files': files, 'versions': versions}))\n"
        )
        ended = self._run("-c", code)
        if ended.code != 0:
            raise SystemExit(f"error: {self.python}: cannot import bmpt: {ended.last_line()}")
        answer = json.loads(ended.stdout)
        for file in answer["files"]:
            if not Path(file).resolve().is_relative_to(self.root):
                raise SystemExit(f"error: {self.python}: imports {file}, not {self.root}")

        git = ("git", "-C", str(self.root), "rev-parse", "HEAD")
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        return {"commit": commit, "versions": answer["versions"]}

    def _run(self, *arguments: str) -> Ended:
        """Run the interpreter; run it again if Arrow has aborted it at its end."""
        for _ in range(MAX_ABORTS):
            ended = self._run_once(*arguments)
            if (ended.code, ended.last_line()) != ABORT:
                break
            print(f"note: aborted at its end: {' '.join(arguments)}", file=sys.stderr, flush=True)
        return ended

    def _run_once(self, *arguments: str) -> Ended:
        started = time.monotonic()
        try:
            done = subprocess.run(
                [str(self.python), *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                cwd=self.work,
                env=self._environment(),
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Ended("timeout", "", "", time.monotonic() - started)
        return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
        }
        # one thread per process: sums are then added in the same order on every machine
        fixed = {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
        return {**kept, **fixed, "PYTHONPATH": str(self.root)}


def run_tasks(tasks: Mapping[str, Callable[[], Facts]], jobs: int) -> Facts:
    """Run tasks side by side, with a line on stderr for each that ends.

    Args:
        tasks: name -> a function that returns the facts of this name.
        jobs: how many run at a time.

    Returns:
        Name -> facts, in the order of `tasks`.
    """
    facts: Facts = dict.fromkeys(tasks)
    with ThreadPoolExecutor(jobs) as pool:
        started = time.monotonic()
        futures = {pool.submit(task): name for name, task in tasks.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            name = futures[future]
            facts[name] = future.result()
            seconds = time.monotonic() - started
            print(f"{done}/{len(futures)} {name}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return facts


def note_failure(name: str, ended: Ended) -> None:
    """Print on stderr that a command that ought to succeed has not; its exit code is a fact."""
    if ended.code != 0:
        print(f"note: {name}: exit {ended.code}: {ended.last_line()}", file=sys.stderr, flush=True)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def table_digests(path: Path) -> Facts:
    """Return column -> sha256 of the values of a Parquet file."""
    table = pq.read_table(path)
    return {
        name: text_sha256(json.dumps(table[name].to_pylist(), ensure_ascii=False))
        for name in table.column_names
    }


def parse_output(text: str) -> Any:
    """Return the JSON that a command printed, without what varies; None if it is not JSON."""
    try:
        return _settle(json.loads(text))
    except ValueError:
        return None


def _settle(value: Any) -> Any:
    """Leave out times and versions, count sentences, and shorten large mappings."""
    if isinstance(value, list):
        return [_settle(item) for item in value]
    if not isinstance(value, dict):
        return value

    settled: Facts = {}
    for key, item in value.items():
        if key in _VARIES:
            settled[key] = "not compared"
        elif key in _SENTENCES:
            settled[key] = f"{len(item)} sentences" if isinstance(item, list) else bool(item)
        else:
            settled[key] = _settle(item)
    if len(settled) > MAX_ENTRIES:
        return f"{len(settled)} entries, sha256 {text_sha256(json.dumps(settled))}"
    return settled
