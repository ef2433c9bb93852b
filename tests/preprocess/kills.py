"""Kill a build at random instants until it ends by itself, and compare the pools."""

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
    """One run that was killed."""

    after_seconds: float
    """Age of the run."""

    num_before: int
    """Videos whose work was safe when the run began; -1 for a closed pool."""

    num_after: int
    """Videos whose work was safe after the kill; -1 for a closed pool."""


def undisturbed(videos: Path, out: Path) -> float:
    """Build once and return the seconds that it took."""
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
    report: Callable[[str], None] = print,
) -> list[Kill]:
    """Start a build `kills` times, SIGKILL its coordinator at a random instant, and let one end.

    A pool that is complete is removed between two kills, so that the next one hits a build again.

    Args:
        videos: the source videos.
        out: the pool.
        kills: number of kills.
        build_seconds: time of an undisturbed build; kills come within it.
        seed: of the instants.
        report: called with a line per kill.
    """
    rng = random.Random(seed)
    done: list[Kill] = []
    for number in range(kills):
        if (out / "pool.json").exists():
            _remove_some(out, rng)

        num_before = num_journalled(out)
        after_seconds = rng.uniform(0, build_seconds)
        process = _run(videos, out)
        time.sleep(after_seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=_LONGEST_SECONDS)

        num_after = num_journalled(out)
        done.append(Kill(after_seconds, num_before, num_after))
        report(
            f"kill {number + 1}/{kills} after {after_seconds:.2f} s: {num_before} videos before, "
            f"{num_after} after"
        )
    assert _run(videos, out).wait(timeout=_LONGEST_SECONDS) == 0
    return done


def check_equal(reference: Path, out: Path) -> None:
    """Assert that both folders have the same files, hidden ones included, with the same sha256."""
    wanted, found = digests(reference), digests(out)
    assert sorted(found) == sorted(wanted), sorted(set(found) ^ set(wanted))
    assert found == wanted, [name for name in wanted if found[name] != wanted[name]]


def num_journalled(out: Path) -> int:
    """Return the complete lines of all journals; -1 once the pool is closed."""
    if (out / "pool.json").exists():
        return -1
    journals = (out / "shards").glob(".*.jsonl") if (out / "shards").is_dir() else []
    return sum(journal.read_bytes().count(b"\n") for journal in journals)


def _run(videos: Path, out: Path) -> subprocess.Popen[bytes]:
    script = str(ROOT / "preprocess" / "build_shards.py")
    command = [sys.executable, script, *arguments(videos, out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _remove_some(out: Path, rng: random.Random) -> None:
    """Remove a tar, as a disk might, or the whole pool, so that there is something to build."""
    tars = sorted((out / "shards").glob("*.tar"))
    if rng.random() < 0.5:
        rng.choice(tars).unlink()
        return
    for path in sorted(out.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
