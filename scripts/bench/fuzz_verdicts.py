"""Damage real clips in thousands of ways and print what the verdicts detect.

    python scripts/bench/fuzz_verdicts.py CLIPS [--seeds 3] [--clips 20] [--json]

This is the long version of the fuzz test. CLIPS is a folder of whole videos; its subfolders are the
groups of the table. A copy takes about 0.1 s, for h264 in 720p 0.4 s. The exit code is 1 if a clean
clip is flagged, or if less damage is detected than the project promises.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# The packages and tests of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from preprocess.decode.pyav_reader import set_up_logging
from tests.preprocess.fuzz import (
    FEWEST_SINGLE_FLIPS,
    MIN_FRACTION_OF_SINGLE_FLIPS,
    Damage,
    Outcome,
    count_flagged,
    judge_file,
    try_damages,
)

SUFFIXES = {".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v"}
CUTS = [Damage("cut", percent) for percent in (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98)]
INNER = [
    Damage("flip", 1),
    Damage("flip", 8),
    Damage("flip", 40),
    Damage("zero", 512),
    Damage("zero", 4096),
]
VERDICTS = ("short", "undecodable", "damaged", "ok")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    set_up_logging()

    clips = sorted(path for path in options.clips.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not clips:
        parser.error(f"{options.clips}: no videos below it")
    if options.num_clips is not None and options.num_clips < len(clips):
        rng = np.random.default_rng(options.seed)
        drawn = rng.choice(len(clips), options.num_clips, replace=False)
        clips = [clips[index] for index in sorted(drawn)]

    alarms, outcomes = run(clips, options.clips, num_seeds=options.seeds, seed=options.seed)
    broken = broken_promises(alarms, outcomes)
    if options.json:
        print(json.dumps(as_json(len(clips), alarms, outcomes, broken), ensure_ascii=False))
    else:
        print_tables(len(clips), alarms, outcomes, broken)
    return 1 if broken else 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, metavar="CLIPS")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="copies per clip and inner damage"
    )
    parser.add_argument(
        "--clips", type=int, dest="num_clips", metavar="N", help="only N clips, drawn by --seed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(
    clips: Sequence[Path], root: Path, *, num_seeds: int, seed: int
) -> tuple[list[str], list[Outcome]]:
    """Judge the clean clips and all damaged copies.

    Returns:
        A line for each clean clip that is not ok, and the outcomes of the copies.
    """
    alarms: list[str] = []
    outcomes: list[Outcome] = []

    with tempfile.TemporaryDirectory() as scratch:
        for number, clip in enumerate(clips, 1):
            verdict = judge_file(clip)[1]
            if verdict.name != "ok":
                alarms.append(f"{clip.name}: {verdict.name}: {verdict.reason}")
                continue

            group = clip.relative_to(root).parts[0]
            damages = [*CUTS, *INNER * num_seeds]
            outcomes += try_damages(clip, damages, scratch=Path(scratch), seed=seed, group=group)
            progress = f"{number}/{len(clips)} clips, {len(outcomes)} copies"
            print(progress, file=sys.stderr, flush=True)
    return alarms, outcomes


def broken_promises(alarms: Sequence[str], outcomes: Sequence[Outcome]) -> list[str]:
    """Return the promises of the project that this run contradicts, in words."""
    broken = [f"clean clip flagged: {alarm}" for alarm in alarms]
    for outcome in outcomes:
        if outcome.damage.kind == "cut" and not outcome.is_flagged:
            broken.append(f"{outcome.clip}: cut to {outcome.damage.amount} % and ok")

    for (codec, damage), (_, num_changed, num_flagged) in count_flagged(outcomes).items():
        # Nothing is promised for VP8.
        if damage.kind != "flip" or codec == "vp8":
            continue

        fraction = 1.0
        if damage.amount == 1:
            if num_changed < FEWEST_SINGLE_FLIPS:
                continue
            fraction = MIN_FRACTION_OF_SINGLE_FLIPS.get(codec, 0.0)

        if num_flagged < fraction * num_changed:
            broken.append(
                f"{codec}, {damage.amount} flipped bytes: {num_flagged} of {num_changed} "
                f"detected, below {fraction:.0%}"
            )
    return broken


def as_json(
    num_clips: int, alarms: list[str], outcomes: Sequence[Outcome], broken: list[str]
) -> dict[str, object]:
    """Return the tables as plain data."""
    rows = [
        {
            "codec": codec,
            "damage": damage.kind,
            "amount": damage.amount,
            "copies": num_copies,
            "changed": num_changed,
            "flagged": num_flagged,
        }
        for (codec, damage), (num_copies, num_changed, num_flagged) in count_flagged(
            outcomes
        ).items()
    ]
    return {
        "clips": num_clips,
        "false_alarms": alarms,
        "cuts": {group: dict(counts) for group, counts in count_cuts(outcomes).items()},
        "damages": rows,
        "broken_promises": broken,
    }


def count_cuts(outcomes: Sequence[Outcome]) -> dict[str, Counter[str]]:
    """Return the number of truncated copies by group and verdict."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        if outcome.damage.kind == "cut":
            counts.setdefault(outcome.group, Counter())[outcome.verdict.name] += 1
    return counts


def print_tables(
    num_clips: int, alarms: list[str], outcomes: Sequence[Outcome], broken: list[str]
) -> None:
    """Print the tables as Markdown."""
    print(f"clean: {num_clips - len(alarms)} of {num_clips} ok\n")

    print("| cut to 10 .. 98 % | copies | short | undecodable | damaged | missed |")
    print("|---|---:|---:|---:|---:|---:|")
    for group, counts in count_cuts(outcomes).items():
        cells = " | ".join(str(counts[name]) for name in VERDICTS)
        print(f"| {group} | {counts.total()} | {cells} |")

    print("\n| codec | damage | copies | pixels change | flagged of these |")
    print("|---|---|---:|---:|---:|")
    counted = count_flagged(outcome for outcome in outcomes if outcome.damage.kind != "cut")
    for (codec, damage), (num_copies, num_changed, num_flagged) in sorted(
        counted.items(), key=_row_order
    ):
        fraction = f" ({num_flagged / num_changed:.0%})" if num_changed else ""
        cells = f"{num_copies} | {num_changed} | {num_flagged}{fraction}"
        print(f"| {codec} | {damage.kind} {damage.amount} | {cells} |")

    for text in broken:
        print(f"NOT KEPT: {text}")


def _row_order(row: tuple[tuple[str, Damage], tuple[int, int, int]]) -> tuple[str, str, int]:
    (codec, damage), _ = row
    return codec, damage.kind, damage.amount


if __name__ == "__main__":
    sys.exit(main())
