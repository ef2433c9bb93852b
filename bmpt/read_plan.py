"""What a config will read, manifest by manifest; needs no model."""

from __future__ import annotations

import os

from bmpt.config import TrainConfig
from shards.loader import ClipSettings, select
from shards.orders import make_order
from shards.read_plan import ReadPlan, plan_scoring, plan_training
from shards.reader import open_pool


def plan_run(config: TrainConfig) -> list[ReadPlan]:
    """Plan the training, if there is one, and the scoring of each manifest; under torchrun for all of its ranks.

    Raises: ConfigError, FormatError, StorageError."""
    data = config.data
    pool = open_pool(data.pool)
    clip = ClipSettings(
        frames=data.frames, size_px=1, sampling=data.sampling, crop=data.crop, flip=data.flip
    )  # pixels decide no byte
    num_processes = max(1, data.num_workers) * int(os.environ.get("WORLD_SIZE", 1))
    plans = []
    if data.train is not None:
        manifest = select(pool.manifest(data.train), data.verdicts)
        plans.append(
            plan_training(
                pool.store,
                manifest,
                clip,
                data.reading,
                order=make_order(manifest.table["shard"], data.order, seed=config.seed, group_shards=data.group_shards),
                batch_size=data.batch_size,
                epochs=config.train.epochs,
                num_processes=num_processes,
            )
        )
    for name in config.scored_manifests:
        manifest = select(pool.manifest(name), data.verdicts)
        plans.append(plan_scoring(pool.store, manifest, clip, data.reading, num_processes=num_processes))
    return plans
