"""Compare the estimate of `--dry-run` with the build itself: bytes written and seconds.

    python scripts/bench/estimate_build.py FOLDER [FOLDER ...] [--copies 20] [--workers 1 2]
        [--seeds 3] [--json]

All FOLDERs of videos are used together. `--copies` links each video N times under other names, so
that the probe sees only some of them. Each estimate and each build is a process of its own. For one
seed they follow each other, so that a busy machine slows both alike. Builds are written to a
temporary folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from preprocess.sources.naming import VIDEO_EXTENSIONS

SCRIPT = Path(__file__).resolve().parents[2] / "preprocess" / "build_shards.py"


@dataclass(frozen=True)
class Comparison:
    """One dry run and the build after it."""

    workers: int
    seed: int
    videos: int
    probed: int
    estimated_seconds: float
    real_seconds: float
    estimated_bytes: int
    real_bytes: int

    @property
    def seconds_error(self) -> float:
        """Error of the estimated seconds, as a fraction of the real ones."""
        return self.estimated_seconds / self.real_seconds - 1

    @property
    def bytes_error(self) -> float:
        """Error of the estimated bytes, as a fraction of the real ones."""
        return self.estimated_bytes / self.real_bytes - 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run all comparisons and print a line for each, then the medians."""
    parser = make_parser()
    options = parser.parse_args(argv)

    comparisons = []
    with tempfile.TemporaryDirectory() as scratch:
        num_videos = link_videos(options.folders, Path(scratch) / "videos", options.copies)
        if num_videos == 0:
            parser.error(f"{', '.join(map(str, options.folders))}: no videos below it")

        for seed in range(options.seeds):
            for workers in options.workers:
                comparison = compare(Path(scratch), workers, seed)
                comparisons.append(comparison)
                if not options.json:
                    print(as_line(comparison), flush=True)

    if options.json:
        print(json.dumps([asdict(comparison) for comparison in comparisons]))
        return

    for workers in options.workers:
        own = [comparison for comparison in comparisons if comparison.workers == workers]
        print(
            f"{workers} workers, median and largest error: "
            f"seconds {summary([comparison.seconds_error for comparison in own])}, "
            f"bytes {summary([comparison.bytes_error for comparison in own])}"
        )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--copies", type=int, default=1, metavar="N")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def link_videos(folders: Sequence[Path], root: Path, copies: int) -> int:
    """Link each video `copies` times into one tree and return the number of links."""
    paths = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_EXTENSIONS
    )
    for number, path in enumerate(paths):
        folder = root / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            (folder / f"{number:05d}-{copy:04d}{path.suffix}").symlink_to(path.resolve())
    return len(paths) * copies


def compare(scratch: Path, workers: int, seed: int) -> Comparison:
    """Estimate and build once, and read both reports."""
    videos = str(scratch / "videos")
    shared = ["--videos", videos, "--workers", str(workers), "--set", f"seed={seed}"]

    with tempfile.TemporaryDirectory(dir=scratch) as out:
        planned = run([*shared, "--out", out, "--dry-run"])
        built = run([*shared, "--out", out])
        real_bytes = sum(path.stat().st_size for path in (Path(out) / "shards").iterdir())

    estimate = planned["estimate"]
    return Comparison(
        workers=workers,
        seed=seed,
        videos=built["num_decoded"],
        probed=estimate["num_probed"],
        estimated_seconds=estimate["seconds"],
        real_seconds=built["seconds"],
        estimated_bytes=estimate["bytes_out"],
        real_bytes=real_bytes,
    )


def run(args: Sequence[str]) -> Any:
    """Run `build_shards.py` on a folder and return its report."""
    command = [sys.executable, str(SCRIPT), "--dataset", "folder", "--json", *args]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def as_line(one: Comparison) -> str:
    """Return a comparison as a line.

    `2 workers, seed 0: 71 of 1420 videos probed; 12.1 s for 11.8 s (+3%), 61.3 MB for 60.2 MB
    (+2%)`.
    """
    seconds = f"{one.estimated_seconds:.1f} s for {one.real_seconds:.1f} s"
    megabytes = f"{one.estimated_bytes / 1e6:.1f} MB for {one.real_bytes / 1e6:.1f} MB"
    return (
        f"{one.workers} workers, seed {one.seed}: {one.probed} of {one.videos} videos probed; "
        f"{seconds} ({one.seconds_error:+.0%}), {megabytes} ({one.bytes_error:+.0%})"
    )


def summary(errors: Sequence[float]) -> str:
    """Return the median error, and the largest of either sign: `+2% / 9%`."""
    return f"{statistics.median(errors):+.0%} / {max(map(abs, errors)):.0%}"


if __name__ == "__main__":
    main()
