"""Record training runs: the losses of 20 steps per method on 1 and 2 ranks, and what they score."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from behaviour.checkout import (
    Checkout,
    Facts,
    file_sha256,
    note_failure,
    table_digests,
    text_sha256,
)
from behaviour.pools import TRAINING_POOL

RANKS = (1, 2)
WEIGHTS = "inputs/tiny.safetensors"
TRAIN_LIST, VAL_LIST = "few_shot/train_k2", "few_shot/val"
# 12 clips, 6 per step: 2 steps per epoch, 20 in all
COMMON: dict[str, Any] = {
    "seed": 0,
    "data": {
        "pool": TRAINING_POOL,
        "train": TRAIN_LIST,
        "val": VAL_LIST,
        "frames": 4,
        "batch_size": 6,
    },
    "model": {"name": "tiny", "pretrained": WEIGHTS},
    # rates large enough to make a wrong gradient visible after a few steps
    "train": {"epochs": 10, "lr": 1.0e-3, "warmup_epochs": 1, "accumulation": 1},
    "eval": {"batch_size": 8},
}
# the tiny backbone has 4 visual and 3 text blocks
_PROMPTS = {"vision_depth": 3, "vision_tokens": 4, "text_depth": 2, "text_tokens": 4}
_BMPT = {**_PROMPTS, "exchange_width": 16, "space_time_blocks": [1, 3]}
_BDC = {"reduced_width": 8, "space_time_blocks": [1, 3]}
_BASE_AND_NOVEL = ["base_to_novel/val_base", "base_to_novel/val_novel"]


@dataclass(frozen=True)
class Run:
    """A config of `configs/methods` and the sections that change it."""

    method: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether there are losses to record."""
        return self.method != "zero_shot"


RUNS = {
    "zero_shot": Run("zero_shot", {"data": {"train": None}}),
    "vifi_clip": Run("vifi_clip"),
    "vifi_clip_prompts": Run("vifi_clip_prompts", {"method": _PROMPTS}),
    "bdc_clip": Run("bdc_clip", {"method": _BDC}),
    "bike": Run("bike", {"method": {"temporal_layers": 2}}),
    "bmpt": Run("bmpt", {"method": _BMPT}),
    "bmpt_batch_gated": Run("bmpt", {"method": {**_BMPT, "exchange": "batch_gated"}}),
    "bmpt_texts": Run(
        "bmpt",
        {
            "method": _BMPT,
            "text": {
                "sentences": "inputs/sentences.json",
                "negatives": "inputs/negatives.txt",
                "knowledge": "inputs/knowledge.parquet",
            },
        },
    ),
    "bike_attributes": Run(
        "bike",
        {
            "method": {"temporal_layers": 1, "attributes": True},
            "text": {
                "attributes": ["inputs/attributes_train.parquet", "inputs/attributes_val.parquet"]
            },
        },
    ),
    # what the others leave at its default: loader processes, a grouped order, micro-batches,
    # all weights, order of frames, bf16, a part of every metric of base and novel, WiSE-FT
    "bmpt_all": Run(
        "bmpt",
        {
            "data": {"num_workers": 2, "order": "grouped", "group_shards": 2, "flip": False},
            "method": {**_BMPT, "tune": "all", "temporal_position": "learned"},
            "train": {"accumulation": 3, "lr_prompts": 1.0e-2, "precision": "bf16"},
            "eval": {"manifests": _BASE_AND_NOVEL, "wise_ft": 0.5},
        },
    ),
}


def prepare_runs(checkout: Checkout) -> Facts:
    """Write the backbone and the text files that runs read.

    Returns:
        What the commands that make features of texts have written, by file.
    """
    inputs = checkout.work / "inputs"
    inputs.mkdir(exist_ok=True)
    _write_weights(checkout.find("bmpt/**/motion_clip.safetensors"), checkout.work / WEIGHTS)
    pool = checkout.work / TRAINING_POOL
    classes = json.loads((pool / "pool.json").read_text(encoding="utf-8"))["classes"]
    sentences = {name: [f"{name} is seen", f"someone does {name}"] for name in classes}
    (inputs / "sentences.json").write_text(json.dumps(sentences), encoding="utf-8")
    following = [*classes[1:], classes[0]]
    lines = [f"{name} -> {other}\n" for name, other in zip(classes, following, strict=True)]
    (inputs / "negatives.txt").write_text("".join(lines), encoding="utf-8")
    (inputs / "lexicon.txt").write_text("".join(f"{name}\n" for name in classes[::7]))

    keys = pq.read_table(pool / "manifests" / f"{TRAIN_LIST}.parquet")["key"].to_pylist()
    width = load_file(checkout.work / WEIGHTS)["text_projection"].shape[1]
    _write_published_features(inputs / "knowledge", keys, width)
    return _make_text_features(checkout)


def ensure_run(checkout: Checkout, name: str, ranks: int = 1) -> None:
    """Train a run unless it is there; its facts are not recorded."""
    if not (_run_folder(checkout, name, ranks) / "results.json").is_file():
        record_run(checkout, name, ranks)


def run_tasks_of(checkout: Checkout) -> dict[str, Callable[[], Facts]]:
    """Return the runs to record, by name: `bmpt/ranks_1` and so on."""
    return {
        f"{name}/ranks_{ranks}": partial(record_run, checkout, name, ranks)
        for name in RUNS
        for ranks in RANKS
    }


def write_config(checkout: Checkout, name: str, ranks: int) -> str:
    """Write the config of a run; return its path below the work folder."""
    run = RUNS[name]
    config: dict[str, Any] = {
        **COMMON,
        "base": str(checkout.method_config(run.method)),
        "run": {"dir": f"runs/{name}/ranks_{ranks}"},
    }
    for section, values in run.sections.items():
        config[section] = {**config.get(section, {}), **values}
    path = f"inputs/{name}_{ranks}.yaml"
    (checkout.work / path).write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def record_run(checkout: Checkout, name: str, ranks: int) -> Facts:
    """Train and score (or only score) on some ranks, and record what the run folder holds."""
    command = "train" if RUNS[name].trains else "eval"
    ended = checkout.on_ranks(ranks, command, write_config(checkout, name, ranks))
    note_failure(f"{name} on {ranks} ranks", ended)
    return {"exit": ended.code, **run_facts(_run_folder(checkout, name, ranks))}


def run_facts(folder: Path) -> Facts:
    """Return what a run folder holds, without times, commits and what depends on them."""
    facts: Facts = {}
    if (folder / "metrics.jsonl").is_file():
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        facts["step_keys"] = sorted({key for row in rows for key in row})
        facts["steps"] = {f"{row['step']:03d}": _without_times(row) for row in rows}
    if (folder / "results.json").is_file():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        facts["results_keys"] = sorted(_key_paths(results))
        facts["results"] = _without_commit(results)
    for path in sorted((folder / "predictions").glob("*.parquet")):
        facts.setdefault("predictions", {})[path.stem] = _predictions(path)
    for path in sorted(folder.glob("*.safetensors")):
        facts.setdefault("weights", {})[path.name] = _weights(path)
    return facts


def _run_folder(checkout: Checkout, name: str, ranks: int) -> Path:
    return checkout.work / "runs" / name / f"ranks_{ranks}"


def _write_weights(shipped: Path, target: Path) -> None:
    """Write the demo's CLIP with seeded token embeddings: it then tells all class names apart."""
    with safe_open(shipped, "numpy") as file:
        metadata = file.metadata()
        # A safetensors file is not a mapping: it has keys() and cannot be iterated.
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    words = tensors["token_embedding.weight"]
    drawn = np.random.default_rng(0).standard_normal(words.shape) * 0.5
    tensors["token_embedding.weight"] = drawn.astype(words.dtype)
    # it has 8 frames, these runs have 4
    del tensors["visual.temporal_embedding"]
    save_file(tensors, target, metadata)


def _write_published_features(folder: Path, keys: list[str], width: int) -> None:
    """Write a seeded unit vector per clip, in the form in which BMPT published its features."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    for key in keys:
        vector = random.standard_normal((1, width)).astype(np.float32)
        stem = key.rpartition("/")[2]
        np.save(folder / f"{stem}_feature.npy", vector / np.linalg.norm(vector))


def _make_text_features(checkout: Checkout) -> Facts:
    """Make the files of knowledge and attributes with the commands, and record their columns."""
    clip = ("--clip-model", "tiny", "--pretrained", WEIGHTS)
    lexicon = ("--lexicon", "inputs/lexicon.txt")
    commands = {
        "knowledge": ("knowledge", TRAINING_POOL, TRAIN_LIST, "--import", "inputs/knowledge"),
        "attributes_train": ("attributes", TRAINING_POOL, TRAIN_LIST, *lexicon),
        "attributes_val": ("attributes", TRAINING_POOL, VAL_LIST, *lexicon),
    }
    facts: Facts = {}
    for name, command in commands.items():
        out = checkout.work / "inputs" / f"{name}.parquet"
        ended = checkout.bmpt(*command, *clip, "--out", f"inputs/{name}.parquet")
        note_failure(name, ended)
        facts[name] = {"exit": ended.code, "columns": table_digests(out) if out.is_file() else None}
    return facts


def _without_times(row: Facts) -> Facts:
    return {key: value for key, value in row.items() if not key.endswith("seconds")}


def _without_commit(results: Facts) -> Facts:
    return {key: value for key, value in results.items() if key not in ("commit", "dirty")}


def _key_paths(value: Any, prefix: str = "") -> set[str]:
    """Return the dotted keys of a JSON value; the entries of a list share theirs."""
    if isinstance(value, list):
        return {path for item in value for path in _key_paths(item, prefix)}
    if not isinstance(value, dict):
        return set()
    paths: set[str] = set()
    for key, item in value.items():
        paths |= {f"{prefix}{key}"} | _key_paths(item, f"{prefix}{key}.")
    return paths


def _predictions(path: Path) -> Facts:
    """Return the rows by key, with scores in full precision, and the sha256 of the file."""
    rows = pq.read_table(path).to_pylist()
    return {
        "sha256": file_sha256(path),
        "order": text_sha256("\n".join(row["key"] for row in rows)),
        "rows": {row["key"]: {key: row[key] for key in row if key != "key"} for row in rows},
    }


def _weights(path: Path) -> Facts:
    """Return the names of the tensors, and one sha256 of all values that no name enters."""
    with safe_open(path, "pt") as file:
        names = sorted(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    # through float64, since NumPy has no bfloat16; exact for every type that is narrower
    values = {name: tensor.double().numpy().tobytes() for name, tensor in tensors.items()}
    digests = sorted(text_sha256(values[name].hex()) for name in names)
    return {"names": names, "sha256": text_sha256("\n".join(digests))}
