"""Scoring of manifests with a method; writes predictions and results.json."""

from __future__ import annotations

import json
import subprocess
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmpt.checkpoints.checkpoint import CheckpointInfo, config_sha256
from bmpt.checkpoints.wise_ft import apply_wise_ft
from bmpt.clip.normalize import normalize
from bmpt.evaluation.predictions import PredictionBatch, check_complete, join_batches, to_parquet
from bmpt.methods.base import ClipInputs, Features
from bmpt.runtime import run_folder
from bmpt.runtime.distributed import (
    explain_out_of_memory,
    gather_to_main,
    raise_main_errors_everywhere,
)
from bmpt.runtime.failures import name_failures, share_failures
from bmpt.runtime.metrics import TOP, count_correct, harmonic_mean, percent, top_classes
from bmpt.sample_features import take_rows
from bmpt.task import Split, Task
from shards.cli import warn
from shards.errors import ConfigError
from shards.files import write_file
from shards.loader import EvalLoader, build_eval_loader
from shards.progress import NullProgress, Progress
from shards.sampling.plan import RankSlice
from shards.stream.batches import ClipBatch
from shards.stream.failures import FailureRule, failure_limit
from shards.stream.settings import BlockSettings

RESULTS_FORMAT = 1
HM_PARTS = ("base_to_novel/val_base", "base_to_novel/val_novel")


def evaluate(
    task: Task,
    *,
    folder: Path,
    checkpoint: CheckpointInfo | None,
    progress: Progress = NullProgress(),
) -> dict[str, Any] | None:
    """Score all manifests of a task.

    The main rank writes predictions and results.json.

    Args:
        task: The task, whose method has the trained tensors.
        folder: The run folder.
        checkpoint: Where the trained tensors come from, for results.json.
        progress: Shows the scored blocks of each manifest.

    Returns:
        The content of results.json on the main rank, None on the others.

    Raises:
        StorageError: On all ranks: a file cannot be written, or `data.max_failures` samples in a
            row could not be read.
        ConfigError: On all ranks: scores are not finite. On one rank: its GPU has too little
            memory.
    """
    wise_ft = task.config.eval.wise_ft
    if task.base is not None and wise_ft is not None:
        apply_wise_ft(task.method, task.base, wise_ft)

    entries = []
    for name, split in task.eval_splits.items():
        warning = task.method.scoring_warning(split.texts)
        if warning is not None and task.world.is_main:
            warn(f"{name}: {warning}")
        # After the warning: scoring takes minutes.
        predictions = _score(task, name, split, progress)
        with raise_main_errors_everywhere(task.world):
            if predictions is not None:
                entries.append(_write_predictions(name, task, split, predictions, folder))
        if predictions is not None:
            name_failures(
                name,
                predictions.failed_keys(),
                num_samples=len(predictions.keys),
                reasons=folder / entries[-1]["predictions"],
            )

    with raise_main_errors_everywhere(task.world):
        if not task.world.is_main:
            return None
        results = _results(task, entries, checkpoint)
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        write_file(folder / run_folder.RESULTS, text.encode())
    return results


@torch.no_grad()
def _score(task: Task, name: str, split: Split, progress: Progress) -> PredictionBatch | None:
    """Return the predictions of a manifest on the main rank, None on the others.

    A block of rows is computed by one rank; the class texts are encoded once.

    Raises:
        StorageError: On all ranks: `data.max_failures` samples in a row could not be read.
    """
    world, num_samples = task.world, len(split.manifest)
    rule = FailureRule(failure_limit(task.config.data.max_failures, num_samples))
    num_blocks = ceil(num_samples / task.config.eval.batch_size)
    blocks = iter(_build_loader(task, split))

    method = task.method.eval()
    batches = []
    with task.autocast():
        classes = None
        if not method.traits.couples_towers:
            classes = method.class_features(split.texts)
        # in each round every rank has the next block, until there are no more
        for first in range(0, num_blocks, world.size):
            clips = next(blocks, None)
            # All ranks count the same samples in the order of the manifest, and stop together.
            rule.count(share_failures([] if clips is None else clips.failures, world))
            if clips is not None:
                batches.append(_predict(task, split, clips, classes))
                progress.update(name, min(first + world.size, num_blocks), num_blocks)

    gathered = gather_to_main(batches, world)
    if gathered is None:
        return None
    predictions = join_batches([batch for of_rank in gathered for batch in of_rank])
    check_complete(predictions, num_samples)
    return predictions


def _build_loader(task: Task, split: Split) -> EvalLoader:
    settings = BlockSettings(
        block_size=task.config.eval.batch_size,
        num_workers=task.config.data.num_workers,
        max_failures=None,  # counted over all ranks, in `_score`
        reading=task.config.data.reading,
    )
    rank_slice = RankSlice(task.world.rank, task.world.size)
    return build_eval_loader(task.pool, split.manifest, task.clip_settings, settings, rank_slice)


def _predict(
    task: Task, split: Split, clips: ClipBatch, classes: Features | None
) -> PredictionBatch:
    """Return the predictions of a block."""
    device, backbone = task.world.device, task.backbone
    with explain_out_of_memory(len(clips.keys), "lower eval.batch_size"):
        frames = normalize(clips.frames_BVTCHW.to(device), backbone.image_mean, backbone.image_std)
        features = take_rows(split.sample_features, clips.positions_B, device)
        inputs = ClipInputs(frames, clips.weights_B.to(device), features)
        # numpy has no bfloat16
        scores_BK = task.method.predict(inputs, split.texts, classes=classes).float().cpu()
    return PredictionBatch(
        positions_N=clips.positions_B.numpy(),
        keys=clips.keys,
        labels_N=clips.labels_B.numpy(),
        scores_NK=scores_BK.numpy(),
        failures=clips.failures,
    )


def _write_predictions(
    name: str, task: Task, split: Split, predictions: PredictionBatch, folder: Path
) -> dict[str, Any]:
    """Write the predictions of a manifest and return its entry of results.json.

    Raises:
        ConfigError: Scores are not finite, so that they cannot rank classes.
        StorageError: The file cannot be written.
    """
    info, num_samples = split.manifest.info, len(predictions.keys)
    is_scored_N = np.array([failure is None for failure in predictions.failures], dtype=bool)
    is_finite_N = np.isfinite(predictions.scores_NK).all(axis=1)
    wrong_N = np.flatnonzero(is_scored_N & ~is_finite_N)
    if len(wrong_N):
        is_fp16 = task.config.train.precision == "fp16"
        or_bf16 = ", or set train.precision=bf16" if is_fp16 else ""
        raise ConfigError(
            f"{name}: the scores of {predictions.keys[wrong_N[0]]} are not finite ({len(wrong_N)} "
            f"of {num_samples} samples), as of weights that diverged in training: score those of a "
            f"run with a lower train.lr{or_bf16}"
        )

    file = f"{run_folder.PREDICTIONS}/{info.protocol}.{info.name}.parquet"
    top_NP = top_classes(predictions.scores_NK)
    write_file(folder / file, to_parquet(predictions, top_NP))

    # A sample that could not be read is counted as failed, never as wrong.
    scored = int(is_scored_N.sum())
    scored_top_NP, scored_labels_N = top_NP[is_scored_N], predictions.labels_N[is_scored_N]
    correct_top1 = count_correct(scored_top_NP, scored_labels_N, 1)
    correct_top5 = count_correct(scored_top_NP, scored_labels_N, TOP)
    verdicts = np.array(split.manifest.table["verdict"].to_pylist())[is_scored_N].tolist()
    return {
        "manifest": name,
        "fingerprint": info.fingerprint,
        "classes": len(info.classes),
        "clips": task.config.eval.clips,
        "crops": task.config.eval.crops,
        "frames": task.config.data.frames,
        "expected": info.expected,
        "scored": scored,
        "failed": num_samples - scored,
        "missing": info.missing,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "top1": percent(correct_top1, scored),
        "top5": percent(correct_top5, scored),
        "correct_top1": correct_top1,
        "predictions": file,
    }


def _results(
    task: Task, entries: list[dict[str, Any]], checkpoint: CheckpointInfo | None
) -> dict[str, Any]:
    """Return the content of results.json, without a time stamp: equal runs give equal bytes."""
    top1 = {entry["manifest"]: entry["top1"] for entry in entries}
    # HM needs both lists.
    has_parts = all(name in top1 for name in HM_PARTS)
    commit, dirty = git_state(Path(__file__).parent)
    wise_ft = task.config.eval.wise_ft
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
        **({} if wise_ft is None else {"wise_ft": wise_ft}),
        "evaluations": entries,
        "hm": harmonic_mean([top1[name] for name in HM_PARTS]) if has_parts else None,
        "hm_of": list(HM_PARTS) if has_parts else None,
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return (short commit, whether tracked files differ from it) of the checkout of a folder.

    It is (None, None) outside a checkout.
    """
    try:
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
