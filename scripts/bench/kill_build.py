"""Kill a build at random instants and compare every file with an undisturbed build.

    python scripts/bench/kill_build.py --kills 200 --seed 0

This is the long version of the test. It makes ten tiny videos in a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.preprocess.builds import make_tree
from tests.preprocess.kills import check_equal, kill_again_and_again, undisturbed


def main() -> None:
    """Build, kill, compare, and print how many kills lost finished videos."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        videos = make_tree(root / "videos")
        seconds = undisturbed(videos, root / "reference")
        print(f"an undisturbed build takes {seconds:.2f} s")

        out = root / "pool"
        kills = kill_again_and_again(
            videos, out, kills=options.kills, build_seconds=seconds, seed=options.seed
        )
        check_equal(root / "reference", out)

        # A pool that is closed counts as -1.
        lost = [kill for kill in kills if 0 <= kill.num_after < kill.num_before]
        print(
            f"{len(kills)} kills, every sha256 equals that of the undisturbed build; {len(lost)} "
            "kills lost finished videos"
        )


if __name__ == "__main__":
    main()
