"""Record what the public interface of a checkout does, and compare two recordings.

    python scripts/bench/compare_behaviour.py record before.json --checkout ../before
    python scripts/bench/compare_behaviour.py record after.json
    python scripts/bench/compare_behaviour.py compare before.json after.json

Use it around a change that must not change behaviour. A recording runs the command lines of the
checkout (`python preprocess/build_shards.py`, `python -m bmpt`, torchrun) on the sample clips and
a tiny CLIP, reads the files that they write, and imports none of its modules. So the same script
records old and new code, however far the modules have moved.

Facts of a recording, by group:

    pools   pool_id and the sha256 of every file of the pools of ucf101, kinetics400, hmdb51, ssv2
            and folder: with 1 and 2 workers, and in two parts that are merged; hmdb51 also with
            other lists and labels, ssv2 also with --decoder ffmpeg
    texts   the columns that `bmpt knowledge --import` and `bmpt attributes` write
    runs    10 runs on 1 and on 2 ranks: loss, rate and batch digest of each of 20 steps,
            results.json, predictions, trained weights, and the keys of all these
    plans   `bmpt plan --json` of three configs and of a manifest
    calls   about 90 right and wrong command lines: exit code, which stream is empty, whether a
            traceback was printed, and the output of those with --json; never a message
    ratios  what `bmpt bench build|loader|train` print; only with --ratios. They are compared
            with a stated tolerance and never count as a difference

A recording takes about 270 s on two free cores (530 s of processor time). A command that Arrow
aborts at its end ("terminate called without an active exception", about once in 200 commands on a
busy machine) is run again, and a note on stderr names it.

Numbers are compared exactly, on 2 ranks as well: two recordings of the same code are equal there.
Not compared: times, the commit, versions of libraries (a difference of these is stated), and
sentences. A difference that the change announces is left out with --ignore, whose `*` matches
slashes too. For a change of the config's keys or of the checkpoint format, for example:

    --ignore '*/config_sha256' --ignore '*/checkpoint/sha256' --ignore 'calls/export/json/*'

Tensors and predictions are facts of their own and are still compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from behaviour.calls import call_tasks, plan_tasks, prepare_calls
from behaviour.checkout import Checkout, Facts, run_tasks
from behaviour.differences import count_facts, drop_ignored, find_differences
from behaviour.pools import build_training_pool, pool_tasks, write_odd_clips
from behaviour.ratios import ratio_lines, record_ratios
from behaviour.runs import prepare_runs, run_tasks_of

GROUPS = ("pools", "runs", "plans", "calls")
HERE = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 1 if `compare` finds a difference."""
    options = _parse(argv)
    if options.command == "record":
        return _record(options)
    return _compare(options)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="record|compare")

    record = commands.add_parser("record", help="run everything and write the facts as JSON")
    record.add_argument("out", type=Path, metavar="OUT.json")
    record.add_argument(
        "--checkout",
        type=Path,
        default=HERE,
        metavar="DIR",
        help="the code to record; default: %(default)s",
    )
    record.add_argument(
        "--python",
        type=Path,
        metavar="PATH",
        help="an interpreter with its dependencies; default: .venv of the checkout, or this one",
    )
    record.add_argument(
        "--shared",
        type=Path,
        metavar="DIR",
        help="the sample data, with clips/ and splits/; default: $BMPT_SHARED/data, or "
        "shared/data beside the checkout",
    )
    record.add_argument(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="GROUP",
        help=f"of {', '.join(GROUPS)}; repeatable",
    )
    record.add_argument(
        "--ratios", action="store_true", help="run the benchmarks too, minutes more"
    )
    record.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="commands at a time; default: 2"
    )
    record.add_argument(
        "--work", type=Path, metavar="DIR", help="keep pools and runs in this empty folder"
    )

    compare = commands.add_parser("compare", help="print each difference on one line")
    compare.add_argument("before", type=Path, metavar="BEFORE.json")
    compare.add_argument("after", type=Path, metavar="AFTER.json")
    compare.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="GLOB",
        help="facts to leave out; repeatable",
    )
    compare.add_argument(
        "--rtol-2-ranks",
        type=float,
        default=0.0,
        metavar="R",
        help="relative tolerance of numbers of runs on 2 ranks; default: 0, exactly equal",
    )
    return parser.parse_args(argv)


def _record(options: argparse.Namespace) -> int:
    root = options.checkout.resolve()
    own_python = root / ".venv" / "bin" / "python"
    # not resolved: the interpreter of a virtual environment is a link out of it
    python = options.python or (own_python if own_python.exists() else Path(sys.executable))
    named = os.environ.get("BMPT_SHARED")
    shared = options.shared or (Path(named) if named else root.parent / "shared") / "data"
    if not (shared / "clips").is_dir():
        raise SystemExit(
            f"error: {shared}: has no folder clips/; give the sample data with --shared"
        )
    if options.work is not None and options.work.exists() and any(options.work.iterdir()):
        raise SystemExit(f"error: {options.work}: is not empty; give an empty folder with --work")

    groups = options.only or list(GROUPS)
    with tempfile.TemporaryDirectory(prefix="behaviour-") as folder:
        work = (options.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        checkout = Checkout(root, python.absolute(), work, shared.resolve())
        started = time.monotonic()
        facts = _record_groups(checkout, groups, jobs=options.jobs, ratios=options.ratios)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        facts["about"]["seconds"] = round(time.monotonic() - started)
        facts["about"]["cpu_seconds"] = round(used.ru_utime + used.ru_stime)
    options.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    about = facts["about"]
    times = f"{about['seconds']} s, {about['cpu_seconds']} s of processor time"
    print(f"{options.out}: {count_facts(facts)} facts in {times}")
    return 0


def _record_groups(checkout: Checkout, groups: Sequence[str], *, jobs: int, ratios: bool) -> Facts:
    """Record the groups in the order in which they need each other's files."""
    facts: Facts = {"about": checkout.check()}
    write_odd_clips(checkout)
    # calls read pools that the group `pools` leaves
    if "pools" in groups or "calls" in groups:
        facts["pools"] = run_tasks(pool_tasks(checkout), jobs)
    build_training_pool(checkout)
    facts["texts"] = prepare_runs(checkout)
    if "runs" in groups:
        facts["runs"] = run_tasks(run_tasks_of(checkout), jobs)
    if "plans" in groups:
        facts["plans"] = run_tasks(plan_tasks(checkout), jobs)
    if "calls" in groups:
        prepare_calls(checkout)
        facts["calls"] = run_tasks(call_tasks(checkout), jobs)
    if ratios:
        facts["ratios"] = record_ratios(checkout)
    return facts


def _compare(options: argparse.Namespace) -> int:
    before, after = (
        json.loads(path.read_text(encoding="utf-8")) for path in (options.before, options.after)
    )
    versions = find_differences(before.pop("about")["versions"], after.pop("about")["versions"])
    for line in versions:
        print(f"note: another version of {line}", file=sys.stderr)
    for line in ratio_lines(before.pop("ratios", {}), after.pop("ratios", {})):
        print(line)

    found = find_differences(before, after, rtol_2_ranks=options.rtol_2_ranks)
    kept = drop_ignored(found, options.ignore)
    for line in kept:
        print(line)
    ignored = f", {len(found) - len(kept)} ignored" if options.ignore else ""
    print(f"{len(kept)} differences in {count_facts(before)} facts{ignored}")
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main())
