"""Record plans and command lines: JSON reports and exit codes of right and of wrong calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

from behaviour.checkout import Checkout, Ended, Facts, parse_output
from behaviour.pools import SOURCES, TRAINING_POOL, build_arguments
from behaviour.runs import TRAIN_LIST, WEIGHTS, ensure_run, write_config

CONFIG = "inputs/bmpt_1.yaml"
CHECKPOINT = "runs/vifi_clip/ranks_1/prompts.safetensors"
OTHER_POOL = "pools/ucf101/workers_1"
# calls run side by side and lock the folders that they write: each has a pool or a run of its own
FINISHED_RUN = "calls/finished"
DAMAGED_POOL = "inputs/damaged_pool"
BAD_CARD_POOL = "inputs/bad_card_pool"
_TRAIN_MANIFEST = f"{TRAINING_POOL}/manifests/{TRAIN_LIST}.parquet"
# a call that begins with this word runs build_shards.py, any other runs `python -m bmpt`
_BUILD = "build_shards"
_MISSING = "inputs/missing"

# name -> command line; the exit code of each is recorded, and its output where it has --json
CALLS: dict[str, list[str]] = {
    # right calls
    "help": ["--help"],
    "nothing": [],
    "version": ["--version"],
    "train help": ["train", "--help"],
    "bench help": ["bench", "--help"],
    "build help": [_BUILD, "--help"],
    "build help by bmpt": ["build", "--help"],
    "verify": ["verify", TRAINING_POOL, "--json"],
    "verify deep": ["verify", TRAINING_POOL, "--level", "deep", "--json"],
    "verify in words": ["verify", TRAINING_POOL, "--level", "quick"],
    "diff of equal pools": ["diff", TRAINING_POOL, OTHER_POOL, "--json"],
    "report of a pool": ["report", TRAINING_POOL, "--json"],
    "report in words": ["report", TRAINING_POOL],
    "report of a run": ["report", "runs/vifi_clip/ranks_1", "--json"],
    "train a finished run": ["train", "inputs/vifi_clip_1.yaml"],
    "eval": [
        *("eval", "inputs/vifi_clip_1.yaml", "--checkpoint", CHECKPOINT, "--json"),
        *("--set", "run.dir=calls/eval", "--set", "eval.manifests=[base_to_novel/val_base]"),
    ],
    "export": ["export", CHECKPOINT, "--out", "calls/model.safetensors", "--json"],
    "eval of an export": [
        *("eval", "inputs/zero_shot_1.yaml", "--json", "--set", "run.dir=calls/eval_export"),
        *("--set", "model.pretrained=inputs/tiny.safetensors", "--set", "eval.batch_size=3"),
    ],
    # findings, exit code 1
    "verify a damaged pool": ["verify", DAMAGED_POOL, "--json"],
    "diff of other pools": ["diff", TRAINING_POOL, "pools/hmdb51/workers_2", "--json"],
    "knowledge with a missing clip": [
        *("knowledge", TRAINING_POOL, "fully_supervised/train", "--import", "inputs/knowledge"),
        *("--out", "calls/knowledge.parquet", "--json"),
    ],
    # wrong words
    "unknown command": ["nonsense"],
    "unknown option": ["train", CONFIG, "--nonsense"],
    "argument left out": ["train"],
    "argument too many": ["verify", TRAINING_POOL, OTHER_POOL],
    "one pool to diff": ["diff", TRAINING_POOL],
    "unknown level": ["verify", TRAINING_POOL, "--level", "nonsense"],
    "number out of range": ["bench", "train", "--classes", "1"],
    "export out of range": ["export", CHECKPOINT, "--wise-ft", "2"],
    # wrong configs
    "missing config": ["train", f"{_MISSING}.yaml"],
    "config that is a list": ["train", "inputs/list.yaml"],
    "config that is no YAML": ["train", "inputs/broken.yaml"],
    "config that is its own base": ["train", "inputs/loop.yaml"],
    "unknown section": ["train", "inputs/unknown_section.yaml"],
    "unknown key": ["train", CONFIG, "--set", "train.nonsense=1"],
    "key of another method": ["plan", CONFIG, "--set", "method.reduced_width=8", "--json"],
    "value of a wrong type": ["train", CONFIG, "--set", "train.epochs=many"],
    "value out of range": ["train", CONFIG, "--set", "train.epochs=0"],
    "--set without a value": ["train", CONFIG, "--set", "train.epochs"],
    "--set of a section": ["train", CONFIG, "--set", "train=1"],
    "causal twice": [
        *("train", CONFIG, "--set", "method.temporal_position=causal"),
        *("--set", "method.causal=false"),
    ],
    # configs that do not fit what is there
    "unknown method": ["train", CONFIG, "--set", "method.name=nonsense"],
    "training of zero_shot": ["train", CONFIG, "--set", "method.name=zero_shot"],
    "unknown tune": ["train", CONFIG, "--set", "method.tune=nonsense"],
    "missing pool": ["train", CONFIG, "--set", f"data.pool={_MISSING}"],
    "pool with a bad card": ["train", CONFIG, "--set", f"data.pool={BAD_CARD_POOL}"],
    "missing manifest": ["train", CONFIG, "--set", "data.train=few_shot/train_k3"],
    "manifest without a clip": ["train", CONFIG, "--set", "data.train=few_shot/train_k8"],
    "no manifest to train": ["train", CONFIG, "--set", "data.train=null"],
    "batch larger than the list": ["train", CONFIG, "--set", "data.batch_size=64"],
    "micro-batches of two sizes": ["train", CONFIG, "--set", "train.accumulation=4"],
    "missing weights": ["train", CONFIG, "--set", f"model.pretrained={_MISSING}.safetensors"],
    "unknown model": [
        *("train", CONFIG, "--set", "model.name=nonsense", "--set", "model.pretrained=random"),
    ],
    "missing sentences": ["train", CONFIG, "--set", f"text.sentences={_MISSING}.json"],
    "negatives of no class": ["train", CONFIG, "--set", "text.negatives=inputs/lexicon.txt"],
    "knowledge of another list": [
        *("train", CONFIG, "--set", "data.train=fully_supervised/train"),
        *("--set", "text.knowledge=inputs/knowledge.parquet"),
    ],
    "prompts too deep": ["train", CONFIG, "--set", "method.vision_depth=9"],
    "fp16 without a GPU": ["train", CONFIG, "--set", "train.precision=fp16"],
    "run folder of another config": [
        *("train", "inputs/vifi_clip_1.yaml", "--set", "seed=1"),
        *("--set", f"run.dir={FINISHED_RUN}"),
    ],
    "eval without a checkpoint": ["eval", CONFIG],
    "missing checkpoint": ["eval", CONFIG, "--checkpoint", f"{_MISSING}.safetensors"],
    "checkpoint of another method": ["eval", CONFIG, "--checkpoint", CHECKPOINT],
    "plan of something else": ["plan", "inputs/sentences.json"],
    # wrong files
    "verify no pool": ["verify", _MISSING],
    "verify a bad card": ["verify", BAD_CARD_POOL],
    "diff with no pool": ["diff", TRAINING_POOL, _MISSING],
    "report of nothing": ["report", _MISSING],
    "report of an unknown key": ["report", TRAINING_POOL, "--key", "x", "--out", "calls/x.jpg"],
    "export of no checkpoint": ["export", f"{_MISSING}.safetensors"],
    "import of an unknown system": [
        *("import-checkpoint", WEIGHTS, "--system", "nonsense", "--out", "calls/import"),
    ],
    "import of text": [
        *("import-checkpoint", "inputs/list.yaml", "--system", "bike", "--out", "calls/import"),
        *("--model", "tiny", "--pretrained", WEIGHTS),
    ],
    "describe without an endpoint": ["describe", "--out", "calls/texts.json"],
    "attributes without a lexicon": [
        *("attributes", TRAINING_POOL, TRAIN_LIST, "--out", "calls/attributes.parquet"),
        *("--clip-model", "tiny", "--pretrained", WEIGHTS),
    ],
    "bench of no videos": ["bench", "build", "inputs/knowledge"],
    # wrong builds
    "build of nothing": [_BUILD],
    "unknown data set": [_BUILD, "--dataset", "nonsense"],
    "missing videos": [_BUILD, "--dataset", "folder", "--videos", _MISSING, "--out", "calls/p"],
    "part out of range": [_BUILD, "--dataset", "folder", "--part", "3/2"],
    "part and merge": [_BUILD, "--dataset", "folder", "--part", "1/2", "--merge"],
    "no workers": [_BUILD, "--dataset", "folder", "--workers", "0"],
    "unknown decoder": [_BUILD, "--dataset", "folder", "--decoder", "nonsense"],
    "unknown engine": [_BUILD, "--dataset", "folder", "--engine", "nonsense"],
    "unknown setting": [_BUILD, "--dataset", "folder", "--set", "nonsense=1"],
}

# name -> the source, and options that come after those of the source and replace them
BUILD_CALLS: dict[str, tuple[str, list[str]]] = {
    "a finished pool": ("ucf101", ["--out", OTHER_POOL, "--json"]),
    "strict, with missing videos": (
        "ucf101",
        ["--out", "pools/ucf101/parts", "--strict", "--json"],
    ),
    "dry run": ("ssv2", ["--out", "calls/dry", "--dry-run"]),
    "three keys": ("folder", ["--out", "calls/three", "--limit", "3", "--json"]),
    "other settings in a finished pool": (
        "ssv2",
        ["--out", "pools/ssv2/workers_1", "--set", "jpeg_quality=80"],
    ),
    "merge without parts": ("ssv2", ["--out", "calls/merge", "--merge"]),
    "annotations of another data set": (
        "ssv2",
        ["--out", "calls/other", "--annotations", "inputs/knowledge"],
    ),
    "labels that disagree": ("hmdb51", ["--out", "calls/hmdb", "--set", "labels=csv"]),
}


def plan_tasks(checkout: Checkout) -> dict[str, Callable[[], Facts]]:
    """Return the plans to record: two configs of the repository, a run's and a manifest."""
    pool = ("--set", f"data.pool={TRAINING_POOL}")
    few_shot = str(checkout.experiment_config("few_shot/ucf101_k2"))
    base_to_novel = str(checkout.experiment_config("base_to_novel/ucf101_s1"))
    grouped = ("--set", "data.order=grouped", "--set", "data.batch_size=4")
    plans = {
        "few_shot": [few_shot, *pool, "--set", "data.batch_size=6"],
        "base_to_novel": [base_to_novel, *pool, *grouped],
        "run": [write_config(checkout, "bmpt_all", 1)],
        "manifest": [_TRAIN_MANIFEST],
    }
    return {
        name: partial(_record_call, checkout, name, ["plan", *words, "--json"])
        for name, words in plans.items()
    }


def prepare_calls(checkout: Checkout) -> None:
    """Make the files that calls name: configs, a trained run, damaged pools."""
    (checkout.work / "calls").mkdir(exist_ok=True)
    for name in ("zero_shot", "vifi_clip", "bmpt"):
        write_config(checkout, name, 1)
    ensure_run(checkout, "vifi_clip")
    trained = checkout.work / "runs" / "vifi_clip" / "ranks_1"
    shutil.copytree(trained, checkout.work / FINISHED_RUN)
    inputs = checkout.work / "inputs"
    texts = {
        "list.yaml": "[1, 2]\n",
        "broken.yaml": "data: {pool: [\n",
        "loop.yaml": "base: loop.yaml\n",
        "unknown_section.yaml": "base: bmpt_1.yaml\nnonsense: {key: 1}\n",
    }
    for name, text in texts.items():
        (inputs / name).write_text(text, encoding="utf-8")

    for name in (DAMAGED_POOL, BAD_CARD_POOL):
        shutil.copytree(checkout.work / TRAINING_POOL, checkout.work / name, dirs_exist_ok=True)
    shard = min((checkout.work / DAMAGED_POOL / "shards").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    # one byte in the middle of a frame of the first sample
    content[20_000] ^= 0xFF
    shard.write_bytes(content)
    (checkout.work / BAD_CARD_POOL / "pool.json").write_text('{"format_version": 999}\n')


def call_tasks(checkout: Checkout) -> dict[str, Callable[[], Facts]]:
    """Return the calls to record, by name."""
    tasks: dict[str, Callable[[], Facts]] = {
        name: partial(_record_call, checkout, name, words) for name, words in CALLS.items()
    }
    for name, (source, words) in BUILD_CALLS.items():
        arguments = build_arguments(checkout, SOURCES[source], "unused")
        tasks[f"build: {name}"] = partial(
            _record_call, checkout, name, [_BUILD, *arguments, *words]
        )
    return tasks


def _record_call(checkout: Checkout, name: str, words: list[str]) -> Facts:
    """Run one command line; record its exit code, which streams are empty, and its JSON."""
    if words[:1] == [_BUILD]:
        ended = checkout.build(*words[1:])
    else:
        # a wrong call must not write into a run folder that another call reads
        writes = words[:1] in (["train"], ["eval"]) and CONFIG in words
        changes = ["--set", _run_dir(name)] if writes else []
        ended = checkout.bmpt(*words, *changes)
    facts: Facts = {
        "exit": ended.code,
        "stdout": "text" if ended.stdout else "empty",
        "stderr": _kind_of_stderr(ended),
    }
    if "--json" in words and ended.stdout:
        facts["json"] = parse_output(ended.stdout)
    return facts


def _run_dir(name: str) -> str:
    return f"run.dir=calls/{''.join(letter if letter.isalnum() else '_' for letter in name)}"


def _kind_of_stderr(ended: Ended) -> str:
    """Tell a crash (with a traceback) from a message in one line and from other output."""
    if "Traceback (most recent call last)" in ended.stderr:
        return "traceback"
    if not ended.stderr:
        return "empty"
    return "error" if ended.stderr.startswith("error: ") else "text"
