"""Small real pools for tests: smooth random frames through the project's own writer, no video
build."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.format.jpeg import Image, encode_rgb
from shards.format.schema import (
    FORMAT_VERSION,
    MANIFEST_SCHEMA,
    POOL_CARD,
    SAMPLES,
    SAMPLES_SCHEMA,
    Encoding,
    ManifestInfo,
    PoolCard,
    ShardEntry,
    count_samples,
    fingerprint,
    manifest_table,
    pool_id,
)
from shards.format.writer import ShardWriter, encode_sample
from shards.reader import Pool, open_pool

DATASET = "toy"
SHOTS = 2


def make_pool(
    path: Path,
    *,
    classes: int = 4,
    samples_per_class: int = 3,
    frames: int = 12,
    height: int = 48,
    width: int = 64,
    seed: int = 0,
    samples_per_shard: int = 5,
) -> Pool:
    """Write a pool of `classes * samples_per_class` samples and open it; the same arguments give
    the same bytes.

    Manifests: few_shot/{train_k2,val} over all classes,
        base_to_novel/{train_base_s1,val_base,val_novel} with
    the first half of the classes as base. A class has its own colour, so that it can be told from
    the others."""
    names = [f"Class{index:02d}" for index in range(classes)]
    rows, entries = _write_shards(
        path, names, samples_per_class, frames, (height, width), seed, samples_per_shard
    )
    table = pa.Table.from_pylist(
        sorted(rows, key=lambda row: row["key"].encode()), schema=SAMPLES_SCHEMA
    )
    pq.write_table(table, path / SAMPLES, compression="zstd", write_page_checksum=True)
    identity = pool_id((row["key"], row["sha256"]) for row in rows)
    base, novel = names[: -(-classes // 2)], names[-(-classes // 2) :]
    _write_manifest(path, "few_shot/train_k2", names, _shots(rows, names, train=True), identity)
    _write_manifest(path, "few_shot/val", names, _shots(rows, names, train=False), identity)
    _write_manifest(
        path, "base_to_novel/train_base_s1", base, _shots(rows, base, train=True), identity
    )
    _write_manifest(path, "base_to_novel/val_base", base, _shots(rows, base, train=False), identity)
    _write_manifest(
        path,
        "base_to_novel/val_novel",
        novel,
        [row for row in rows if row["class_name"] in novel],
        identity,
    )
    card = PoolCard(
        format_version=FORMAT_VERSION,
        dataset=DATASET,
        pool_id=identity,
        classes=names,
        encoding=Encoding(short_side_px=max(8, min(height, width))),
        libraries={},
        counts=count_samples(table),
        shards=entries,
    )
    (path / POOL_CARD).write_text(card.to_json(), encoding="utf-8")
    return open_pool(path)


def smooth_frames(
    rng: np.random.Generator, *, num_frames: int, height: int, width: int, hue: float = 0.0
) -> list[Image]:
    """A moving wave: frames RGB uint8 [height, width, 3]; `hue` in [0, 1) sets the colour."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(1, 5, size=2)
    tint = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3])))
    images = []
    for index in range(num_frames):
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (waves[0] * x + waves[1] * y + index / num_frames))
        images.append((255 * (0.4 * wave[..., None] + 0.6 * tint)).clip(0, 255).astype(np.uint8))
    return images


def _write_shards(
    path: Path,
    names: Sequence[str],
    samples_per_class: int,
    num_frames: int,
    size: tuple[int, int],
    seed: int,
    samples_per_shard: int,
) -> tuple[list[dict[str, Any]], list[ShardEntry]]:
    """Write all samples, class by class; returns the rows of samples.parquet and the shards'
    entries."""
    height, width = size
    rng = np.random.default_rng(seed)
    plan = [(name, index) for name in names for index in range(samples_per_class)]
    rows: list[dict[str, Any]] = []
    entries: list[ShardEntry] = []
    for number, start in enumerate(range(0, len(plan), samples_per_shard)):
        writer = ShardWriter(path / "shards", f"{DATASET}-{number:06d}")
        for name, index in plan[start : start + samples_per_shard]:
            hue = names.index(name) / len(names)
            images = smooth_frames(rng, num_frames=num_frames, height=height, width=width, hue=hue)
            row = _sample_row(f"{name}/{name}_{index:02d}", name, num_frames, size)
            facts = {
                key: row[key] for key in ("key", "class_name", "num_frames_decoded", "source_index")
            }
            writer.append(
                row,
                encode_sample(
                    row["key"], [encode_rgb(image, quality=90) for image in images], facts
                ),
            )
        entries.append(writer.finish())
        rows.extend(writer.rows)
        (path / "shards" / f".{DATASET}-{number:06d}.jsonl").unlink()  # as closing a build does
    return rows, entries


def _sample_row(
    key: str, class_name: str, num_frames: int, size: tuple[int, int]
) -> dict[str, Any]:
    """A row of samples.parquet before it has a place in a shard."""
    height, width = size
    return {
        **dict.fromkeys(SAMPLES_SCHEMA.names),
        "key": key,
        "verdict": "ok",
        "class_name": class_name,
        "source_path": f"{key}.avi",
        "fps": 25.0,
        "duration_seconds": num_frames / 25.0,
        "width": width,
        "height": height,
        "rotation_degrees": 0,
        "num_frames_stated": num_frames,
        "num_frames_decoded": num_frames,
        "num_decoder_errors": 0,
        "stored_width": width,
        "stored_height": height,
        "source_index": list(range(num_frames)),
        "source_time_seconds": [index / 25.0 for index in range(num_frames)],
    }


def _shots(
    rows: Sequence[dict[str, Any]], names: Sequence[str], *, train: bool
) -> list[dict[str, Any]]:
    """The first SHOTS samples of each class, or the rest of them."""
    chosen = []
    for name in names:
        of_class = [row for row in rows if row["class_name"] == name]
        chosen.extend(of_class[:SHOTS] if train else of_class[SHOTS:])
    return chosen


def _write_manifest(
    path: Path, manifest: str, names: Sequence[str], rows: Sequence[dict[str, Any]], identity: str
) -> None:
    """Write one manifest; labels are indices into `names`."""
    protocol, name = manifest.split("/")
    labelled = [{**row, "label": names.index(row["class_name"])} for row in rows]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    info = ManifestInfo(
        dataset=DATASET,
        protocol=protocol,
        name=name,
        part="novel" if "novel" in name else "base" if "base" in name else "all",
        split="train" if name.startswith("train") else "val",
        shot=SHOTS if name.startswith("train") else None,
        seed=1 if name.endswith("_s1") else None,
        classes=list(names),
        labels="csv",
        source="drawn, seed 0",
        source_sha256=digest,
        classes_sha256=digest,
        expected=len(rows),
        found=len(rows),
        short=0,
        damaged=0,
        missing=0,
        pool_id=identity,
        fingerprint=fingerprint(
            manifest, names, ((row["key"], row["label"], row["sha256"]) for row in labelled)
        ),
    )
    target = path / "manifests" / f"{manifest}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    listed = [{column: row[column] for column in MANIFEST_SCHEMA.names} for row in labelled]
    pq.write_table(
        manifest_table(info, listed), target, compression="zstd", write_page_checksum=True
    )
