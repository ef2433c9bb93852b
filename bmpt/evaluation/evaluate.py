"""Score manifests with a method and write predictions and results.json."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmpt.checkpoints.checkpoint import CheckpointInfo, config_sha256, write_file
from bmpt.checkpoints.wise_ft import apply_wise_ft
from bmpt.clip.normalize import normalize
from bmpt.evaluation.predictions import Block, join_blocks, to_parquet
from bmpt.methods.base import ClipInputs
from bmpt.runtime import run_folder
from bmpt.runtime.distributed import errors_of_main, gather_to_main, saying_memory
from bmpt.runtime.failures import failure_limit, name_failures, share_failures
from bmpt.runtime.metrics import TOP, count_correct, harmonic_mean, percent, top_classes
from bmpt.sample_features import take_rows
from bmpt.task import Split, Task
from shards.errors import ConfigError
from shards.loader import build_eval_loader
from shards.sampling.plan import RankSlice
from shards.stream.failures import FailureRule
from shards.stream.settings import BlockSettings

RESULTS_FORMAT = 1
HM_PARTS = ("base_to_novel/val_base", "base_to_novel/val_novel")
Progress = Callable[[str, int, int], None]


def evaluate(
    task: Task, *, folder: Path, checkpoint: CheckpointInfo | None, progress: Progress
) -> dict[str, Any] | None:
    """Score all manifests; the main rank writes predictions and results.json and returns the
    results.

    Raises: on all ranks StorageError for files and samples, ConfigError for scores that are not
        finite; ConfigError of
    one rank whose GPU has no memory."""
    wise_ft = task.config.eval.wise_ft
    if task.base is not None and wise_ft is not None:
        apply_wise_ft(task.method, task.base, wise_ft)
    entries = []
    for name, split in task.scored.items():
        note = task.method.scoring_warning(split.texts)
        if note is not None and task.world.is_main:
            print(f"warning: {name}: {note}", file=sys.stderr)
        block = _score(task, split, lambda *at, name=name: progress(name, *at))
        with errors_of_main(task.world):
            if block is not None:
                entries.append(_write_predictions(name, task, split, block, folder))
        if block is not None:
            failed = [
                key for key, why in zip(block.keys, block.failures, strict=True) if why is not None
            ]
            name_failures(
                name,
                failed,
                num_samples=len(block.keys),
                reasons=folder / entries[-1]["predictions"],
            )
    with errors_of_main(task.world):
        if not task.world.is_main:
            return None
        results = _results(task, entries, checkpoint)
        write_file(
            folder / run_folder.RESULTS,
            (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode(),
        )
    return results


@torch.no_grad()
def _score(task: Task, split: Split, progress: Callable[[int, int], None]) -> Block | None:
    """Predictions of a whole manifest on the main rank; blocks go whole to ranks, class texts are
    encoded once.

    Raises: StorageError on all ranks, when `data.max_failures` samples in a row of the manifest
        could not be read."""
    world, backbone, num_samples = task.world, task.backbone, len(split.manifest)
    rule = FailureRule(failure_limit(task.config.data.max_failures, num_samples))
    settings = BlockSettings(
        block_size=task.config.eval.batch_size,
        num_workers=task.config.data.num_workers,
        max_failures=None,  # counted over all ranks, below
        reading=task.config.data.reading,
    )
    loader = build_eval_loader(
        task.pool, split.manifest, task.clip, settings, RankSlice(world.rank, world.size)
    )
    num_blocks = -(-num_samples // task.config.eval.batch_size)
    method = task.method.eval()
    with task.autocast():
        classes = (
            None if method.settings.traits.couples_towers else method.class_features(split.texts)
        )
        blocks, of_this_rank = [], iter(loader)
        for first in range(
            0, num_blocks, world.size
        ):  # in each round every rank has the next block, as far as they go
            clips = next(of_this_rank, None)
            rule.count(share_failures([] if clips is None else clips.failures, world))
            if clips is None:
                continue
            with saying_memory(len(clips.keys), "lower eval.batch_size"):
                frames = normalize(
                    clips.frames_BVTCHW.to(world.device), backbone.image_mean, backbone.image_std
                )
                features = take_rows(split.sample_features, clips.positions_B, world.device)
                inputs = ClipInputs(frames, clips.weights_B.to(world.device), features)
                scores_BK = method.predict(inputs, split.texts, classes=classes)
                scores_BK = scores_BK.float().cpu()
            blocks.append(
                Block(
                    clips.positions_B.numpy(),
                    clips.keys,
                    clips.labels_B.numpy(),
                    scores_BK.numpy(),
                    clips.failures,
                )
            )
            progress(min(first + world.size, num_blocks), num_blocks)
    gathered = gather_to_main(blocks, world)
    return (
        None
        if gathered is None
        else join_blocks([block for of_rank in gathered for block in of_rank])
    )


def _write_predictions(
    name: str, task: Task, split: Split, block: Block, folder: Path
) -> dict[str, Any]:
    """Write the predictions of one manifest and return its entry of results.json.

    Raises: ConfigError for scores by which no class can be ranked; StorageError."""
    info = split.manifest.info
    file = f"{run_folder.PREDICTIONS}/{info.protocol}.{info.name}.parquet"
    is_scored_N = np.array([failure is None for failure in block.failures], dtype=bool)
    wrong_N = np.flatnonzero(is_scored_N & ~np.isfinite(block.scores_NK).all(axis=1))
    if len(wrong_N):
        raise ConfigError(
            f"{name}: the scores of {block.keys[wrong_N[0]]} are not finite ({len(wrong_N)} of {len(block.keys)} "
            "samples), as of weights that diverged in training: score those of a run with a lower train.lr"
            f"{', or set train.precision=bf16' if task.config.train.precision == 'fp16' else ''}"
        )
    top_NP = top_classes(block.scores_NK)
    write_file(folder / file, to_parquet(block, top_NP))
    scored = int(is_scored_N.sum())
    correct = [
        count_correct(top_NP[is_scored_N], block.labels_N[is_scored_N], count) for count in (1, TOP)
    ]
    verdicts = [
        v
        for v, scored_ in zip(split.manifest.table["verdict"].to_pylist(), is_scored_N, strict=True)
        if scored_
    ]
    return {
        "manifest": name,
        "fingerprint": info.fingerprint,
        "classes": len(info.classes),
        "clips": task.config.eval.clips,
        "crops": task.config.eval.crops,
        "frames": task.config.data.frames,
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
    task: Task, entries: list[dict[str, Any]], checkpoint: CheckpointInfo | None
) -> dict[str, Any]:
    """results.json: no time stamp, so that the same run gives the same bytes."""
    top1 = {entry["manifest"]: entry["top1"] for entry in entries}
    has_parts = all(name in top1 for name in HM_PARTS)
    commit, dirty = git_state(Path(__file__).parent)
    return {
        "format_version": RESULTS_FORMAT,
        "method": task.config.method.name,
        "dataset": task.pool.card.dataset,
        "pool_id": task.pool.card.pool_id,
        "seed": task.config.seed,
        "config_sha256": config_sha256(task.config),
        "commit": commit,
        "dirty": dirty,
        "model": {"name": task.backbone.name, "weights_sha256": task.backbone.weights_sha256},
        **({"text_files": dict(task.text_files)} if task.text_files else {}),
        "checkpoint": None if checkpoint is None else vars(checkpoint),
        **({} if task.config.eval.wise_ft is None else {"wise_ft": task.config.eval.wise_ft}),
        "evaluations": entries,
        "hm": harmonic_mean([top1[name] for name in HM_PARTS]) if has_parts else None,
        "hm_of": list(HM_PARTS) if has_parts else None,
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """(short commit, whether tracked files differ from it) of the checkout around `folder`; (None,
    None) outside."""
    answers = []
    for command in (
        ["rev-parse", "--short", "HEAD"],
        ["status", "--porcelain", "--untracked-files=no"],
    ):
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None, None
        answers.append(answer.stdout.strip())
    return answers[0], bool(answers[1])
