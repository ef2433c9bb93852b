"""Score manifests with a method and write predictions and results.json."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmpt.augment import normalize
from bmpt.classes import class_texts
from bmpt.clip import Backbone
from bmpt.config import TrainConfig
from bmpt.engine.checkpoint import CheckpointInfo, config_sha256, write_file
from bmpt.engine.distributed import World, gather_to_main
from bmpt.evaluation.metrics import TOP, count_correct, harmonic_mean, percent, top_classes
from bmpt.evaluation.predictions import Block, join_blocks, to_parquet
from bmpt.methods.base import Method
from shards.errors import ConfigError
from shards.loader import ClipSettings, build_eval_loader, select
from shards.reader import Manifest, Pool

RESULTS = "results.json"
RESULTS_FORMAT = 1
HM_PARTS = ("base_to_novel/val_base", "base_to_novel/val_novel")
Progress = Callable[[str, int, int], None]


def manifests_to_score(config: TrainConfig) -> tuple[str, ...]:
    """`eval.manifests`, else `data.val`. Raises: ConfigError if there is neither."""
    if config.eval.manifests:
        return config.eval.manifests
    if config.data.val is None:
        raise ConfigError("nothing to score: set eval.manifests=[base_to_novel/val_base] or data.val")
    return (config.data.val,)


def clip_settings(config: TrainConfig, backbone: Backbone) -> ClipSettings:
    """How clips are cut for this backbone."""
    data = config.data
    return ClipSettings(
        frames=data.frames,
        size_px=backbone.image_size_px,
        sampling=data.sampling,
        crop=data.crop,
        flip=data.flip,
    )


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The autocast context of `train.precision`. Raises: ConfigError for fp16 without a GPU."""
    precision = config.train.precision
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision=fp16: needs a GPU; set bf16 or fp32")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def evaluate(
    method: Method,
    backbone: Backbone,
    pool: Pool,
    config: TrainConfig,
    world: World,
    *,
    run_dir: Path,
    checkpoint: CheckpointInfo | None,
    progress: Progress,
) -> dict[str, Any] | None:
    """Score all manifests; the main rank writes predictions and results.json and returns the results."""
    names = manifests_to_score(config)
    manifests = [select(pool.manifest(name), config.data.verdicts) for name in names]  # before the first forward
    entries = []
    for name, manifest in zip(names, manifests, strict=True):
        block = _score(method, backbone, pool, manifest, config, world, lambda *at, name=name: progress(name, *at))
        if block is not None:
            entries.append(_write_predictions(name, manifest, block, config, run_dir))
    if not world.is_main:
        return None
    results = _results(entries, backbone, pool, config, checkpoint)
    write_file(run_dir / RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    return results


@torch.no_grad()
def _score(
    method: Method,
    backbone: Backbone,
    pool: Pool,
    manifest: Manifest,
    config: TrainConfig,
    world: World,
    progress: Callable[[int, int], None],
) -> Block | None:
    """Predictions of a whole manifest on the main rank; blocks go whole to ranks, class texts are encoded once."""
    loader = build_eval_loader(
        pool,
        manifest,
        clip_settings(config, backbone),
        block_size=config.eval.batch_size,
        num_workers=config.data.num_workers,
        rank=world.rank,
        world_size=world.size,
    )
    method.eval()
    with autocast(config, world.device):
        ids_KS = method.prepare_texts(class_texts(manifest.info.classes, config.text)).to(world.device)
        classes_KD = method.encode_classes(ids_KS)
        blocks = []
        for done, clips in enumerate(loader, start=1):
            frames = normalize(clips.frames_BVTCHW.to(world.device), backbone.image_mean, backbone.image_std)
            scores_BK = method(frames, ids_KS, classes_KD).float().cpu().numpy()
            blocks.append(
                Block(clips.positions_B.numpy(), clips.keys, clips.labels_B.numpy(), scores_BK, clips.failures)
            )
            progress(done, len(loader))
    gathered = gather_to_main(blocks, world)
    return None if gathered is None else join_blocks([block for of_rank in gathered for block in of_rank])


def _write_predictions(
    name: str, manifest: Manifest, block: Block, config: TrainConfig, run_dir: Path
) -> dict[str, Any]:
    """Write the predictions of one manifest and return its entry of results.json."""
    info = manifest.info
    file = f"predictions/{info.protocol}.{info.name}.parquet"
    top_NP = top_classes(block.scores_NK)
    write_file(run_dir / file, to_parquet(block, top_NP))
    is_scored_N = np.array([failure is None for failure in block.failures], dtype=bool)
    scored = int(is_scored_N.sum())
    correct = [count_correct(top_NP[is_scored_N], block.labels_N[is_scored_N], count) for count in (1, TOP)]
    verdicts = manifest.table["verdict"].to_pylist()
    return {
        "manifest": name,
        "fingerprint": info.fingerprint,
        "classes": len(info.classes),
        "clips": config.eval.clips,
        "crops": config.eval.crops,
        "frames": config.data.frames,
        "expected": info.expected,
        "scored": scored,
        "failed": len(block.keys) - scored,
        "missing": info.missing,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "top1": percent(correct[0], scored),
        "top5": percent(correct[1], scored),
        "correct_top1": correct[0],
        "predictions": file,
    }


def _results(
    entries: list[dict[str, Any]],
    backbone: Backbone,
    pool: Pool,
    config: TrainConfig,
    checkpoint: CheckpointInfo | None,
) -> dict[str, Any]:
    """results.json: no time stamp, so that the same run gives the same bytes."""
    top1 = {entry["manifest"]: entry["top1"] for entry in entries}
    has_parts = all(name in top1 for name in HM_PARTS)
    commit, dirty = git_state(Path(__file__).parent)
    return {
        "format_version": RESULTS_FORMAT,
        "method": config.method.name,
        "dataset": pool.card.dataset,
        "pool_id": pool.card.pool_id,
        "seed": config.seed,
        "config_sha256": config_sha256(config),
        "commit": commit,
        "dirty": dirty,
        "model": {"name": backbone.name, "weights_sha256": backbone.weights_sha256},
        "checkpoint": None if checkpoint is None else vars(checkpoint),
        "evaluations": entries,
        "hm": harmonic_mean([top1[name] for name in HM_PARTS]) if has_parts else None,
        "hm_of": list(HM_PARTS) if has_parts else None,
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """(short commit, whether tracked files differ from it) of the checkout around `folder`; (None, None) outside."""
    answers = []
    for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            answer = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None, None
        answers.append(answer.stdout.strip())
    return answers[0], bool(answers[1])
