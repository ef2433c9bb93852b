"""Record the ratios of `bmpt bench`: speed beside peers and limits, measured in one process."""

from __future__ import annotations

import sys

from behaviour.checkout import Checkout, Facts, note_failure, parse_output
from behaviour.pools import TRAINING_POOL

# a choice, not a measurement: repeats on two free cores have differed by up to 13 % (5.5 and 6.2
# in `bmpt bench train`), and other work on the machine adds to that
TOLERANCE = 0.25
_TRAIN_SIZE = ("--classes", "20", "--frames", "4", "--accumulation", "4")


def record_ratios(checkout: Checkout) -> Facts:
    """Run `bmpt bench build`, `loader` and `train` one after the other; takes minutes.

    Returns:
        Benchmark -> ratio -> value.
    """
    videos = str(checkout.shared / "clips" / "ucf101")
    benchmarks = {
        "build": ("build", str(checkout.shared / "clips" / "hmdb51")),
        "loader": ("loader", TRAINING_POOL, "fully_supervised/train", "--videos", videos),
        "train": ("train", *_TRAIN_SIZE),
    }
    facts: Facts = {}
    for name, words in benchmarks.items():
        ended = checkout.bmpt("bench", *words, "--json")
        note_failure(f"bench {name}", ended)
        measured = parse_output(ended.stdout) or {}
        facts[name] = measured.get("ratios", {})
        print(f"bench {name}, {ended.seconds:.0f} s", file=sys.stderr, flush=True)
    return facts


def ratio_lines(before: Facts, after: Facts) -> list[str]:
    """Return a line for each ratio that both recordings hold."""
    lines = []
    for name in sorted(before.keys() & after.keys()):
        for ratio in sorted(before[name].keys() & after[name].keys()):
            old, new = before[name][ratio], after[name][ratio]
            change = new / old - 1
            judged = "within" if abs(change) <= TOLERANCE else "OUTSIDE"
            lines.append(
                f"ratio {name}/{ratio}: {old:.3f} -> {new:.3f} "
                f"({change:+.0%}, {judged} the tolerance of {TOLERANCE:.0%})"
            )
    return lines
