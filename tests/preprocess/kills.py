"""Kill a build at random instants until it ends by itself, and compare what it leaves with an
undisturbed build."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.preprocess.builds import ROOT, arguments, digests

_LONGEST_SECONDS = 300.0


@dataclass(frozen=True)
class Kill:
    """One run that was killed.

    after_seconds: of its own life
    num_before, num_after: videos whose work was safe when it began and when it was killed; -1 for a
        closed pool"""

    after_seconds: float
    num_before: int
    num_after: int


def undisturbed(videos: Path, out: Path) -> float:
    """Build once; returns the seconds that it took."""
    started = time.monotonic()
    _run(videos, out).wait(timeout=_LONGEST_SECONDS)
    return time.monotonic() - started


def kill_again_and_again(
    videos: Path,
    out: Path,
    *,
    kills: int,
    build_seconds: float,
    seed: int,
    tell: Callable[[str], None] = print,
) -> list[Kill]:
    """Start a build `kills` times, SIGKILL its coordinator at a random instant of a build's time,
    then let one end.

    A pool that got whole is taken away between two kills, so that the next one hits a build
    again."""
    rng = random.Random(seed)
    done: list[Kill] = []
    for number in range(kills):
        if (out / "pool.json").exists():
            _remove_some(out, rng)
        before = num_journalled(out)
        after = rng.uniform(0, build_seconds)
        process = _run(videos, out)
        time.sleep(after)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=_LONGEST_SECONDS)
        done.append(Kill(after, before, num_journalled(out)))
        tell(
            f"kill {number + 1}/{kills} after {after:.2f} s: {before} videos before, {done[-1].num_after} after"
        )
    assert _run(videos, out).wait(timeout=_LONGEST_SECONDS) == 0
    return done


def check_equal(reference: Path, out: Path) -> None:
    """Assert the same files with the same sha256, hidden ones counted: no lock, part or journal is
    left."""
    wanted, found = digests(reference), digests(out)
    assert sorted(found) == sorted(wanted), sorted(set(found) ^ set(wanted))
    assert found == wanted, [name for name in wanted if found[name] != wanted[name]]


def num_journalled(out: Path) -> int:
    """Videos whose work is safe: the whole lines of all journals; -1 once the pool is closed."""
    if (out / "pool.json").exists():
        return -1
    journals = (out / "shards").glob(".*.jsonl") if (out / "shards").is_dir() else []
    return sum(journal.read_bytes().count(b"\n") for journal in journals)


def _run(videos: Path, out: Path) -> subprocess.Popen[bytes]:
    script = str(ROOT / "preprocess" / "build_shards.py")
    command = [sys.executable, script, *arguments(videos, out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _remove_some(out: Path, rng: random.Random) -> None:
    """Take a tar away, as a disk might, or the whole pool, so that there is something to build."""
    tars = sorted((out / "shards").glob("*.tar"))
    if rng.random() < 0.5:
        rng.choice(tars).unlink()
        return
    for path in sorted(out.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
