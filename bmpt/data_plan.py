"""What a config, or one manifest of a pool, will read; needs no model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bmpt.config import EXPERIMENTS, RunConfig, load_config
from shards.config import build_settings, merge, parse_override
from shards.config_names import config_names, suggest_names
from shards.errors import ConfigError
from shards.fetching.request_cost import measure_request_cost
from shards.fetching.traffic import ReadPlan, plan_scoring, plan_text, plan_training
from shards.reader import Pool, open_pool, select
from shards.sampling.plan import check_batch
from shards.storage.open import open_store

_BATCH_SIZE = 64
_MANIFEST = re.compile(
    r"(?:(?P<pool>.+)/)?manifests/(?P<name>[\w-]+/[\w-]+)\.parquet(?P<options>\?.*)?"
)


@dataclass(frozen=True)
class RunPlan:
    """What a run reads.

    latency_seconds, bytes_per_second: of a request, as the plans reckon; is_measured: just now, not
        a setting
    bytes, requests, seconds: of all plans; seconds is None for a folder"""

    plans: list[ReadPlan]
    bytes: int
    requests: int
    seconds: float | None
    latency_seconds: float
    bytes_per_second: float
    is_measured: bool


def plan_address(address: str, overrides: Sequence[str] = (), *, measure: bool = False) -> RunPlan:
    """Plan a config file or a manifest, `POOL/manifests/PROTOCOL/NAME.parquet` and the options of
    the pool's address.

    A manifest is planned with the defaults of a config, but for one epoch and batches of at most
    all its samples: a training list as training, any other as scoring. measure: first measure what
        a request costs.
    Raises: ConfigError, FormatError, StorageError."""
    is_url = "://" in address
    shown = (
        open_store(address).uri("") if is_url else address
    )  # refuses credentials before any message has them
    if found := _MANIFEST.fullmatch(address):
        config, pool = _config_of_manifest(
            f"{found['pool'] or '.'}{found['options'] or ''}", found["name"], overrides
        )
    elif not (is_url or address.endswith(".parquet")) and (
        address.endswith((".yaml", ".yml"))
        or Path(address).is_file()
        or address in config_names(EXPERIMENTS)
    ):
        config = load_config(address, overrides)
        pool = open_pool(config.data.pool)
    else:
        names = "" if is_url else suggest_names(address, EXPERIMENTS)
        hint = f", or the experiment {names}" if names else ""
        raise ConfigError(
            f"{shown}: is neither a config (.yaml) nor a manifest; "
            f"give POOL/manifests/PROTOCOL/NAME.parquet{hint}"
        )
    if measure:
        cost = measure_request_cost(pool)
        measured = {
            "latency_seconds": cost.latency_seconds,
            "bytes_per_second": cost.bytes_per_second,
        }
        config = config.model_copy(update={"data": config.data.model_copy(update=measured)})
    plans = plan_run(config, pool)
    seconds = [plan.seconds for plan in plans if plan.seconds is not None]
    return RunPlan(
        plans=plans,
        bytes=sum(plan.all_bytes for plan in plans),
        requests=sum(plan.all_requests for plan in plans),
        seconds=sum(seconds) if seconds else None,
        latency_seconds=config.data.latency_seconds,
        bytes_per_second=config.data.bytes_per_second,
        is_measured=measure,
    )


def run_plan_text(plan: RunPlan) -> str:
    """A run's plan for people."""
    lines = [plan_text(item) for item in plan.plans]
    if plan.is_measured:
        lines.insert(
            0,
            f"measured: --set data.latency_seconds={plan.latency_seconds:g} "
            f"--set data.bytes_per_second={plan.bytes_per_second:.0f} (used below)",
        )
    if len(plan.plans) > 1:
        seconds = "" if plan.seconds is None else f", about {plan.seconds:,.1f} s of reading"
        lines.append(f"in all: {plan.bytes:,} bytes, {plan.requests:,} requests{seconds}")
    return "\n".join(lines)


def plan_run(config: RunConfig, pool: Pool) -> list[ReadPlan]:
    """Plan the training, if there is one, and the scoring of each manifest; under torchrun for all
    of its ranks.

    Raises: ConfigError, FormatError, StorageError."""
    data = config.data
    clip = data.clip_settings(size_px=1)  # the number of pixels has no influence on what is read
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    num_processes = max(1, data.num_workers) * world_size
    plans = []
    if data.train is not None:
        manifest = select(pool.manifest(data.train), data.verdicts)
        if len(manifest):
            check_batch(
                len(manifest),
                batch_size=data.batch_size,
                accumulation=config.train.accumulation,
                world_size=world_size,
            )
        plans.append(
            plan_training(
                pool.store,
                manifest,
                clip,
                data.reading,
                order=data.order,
                group_shards=data.group_shards,
                seed=config.seed,
                batch_size=data.batch_size,
                epochs=config.train.epochs,
                num_processes=num_processes,
            )
        )
    for name in config.scored_manifests:
        manifest = select(pool.manifest(name), data.verdicts)
        plans.append(
            plan_scoring(pool.store, manifest, clip, data.reading, num_processes=num_processes)
        )
    return plans


def _config_of_manifest(
    address: str, name: str, overrides: Sequence[str]
) -> tuple[RunConfig, Pool]:
    pool = open_pool(address)
    manifest = pool.manifest(name)
    use = "train" if manifest.info.split == "train" else "val"
    values = {
        "data": {"pool": address, use: name, "batch_size": min(_BATCH_SIZE, max(1, len(manifest)))},
        "train": {"epochs": 1},
    }
    for override in overrides:
        values = merge(values, parse_override(override))
    return build_settings(RunConfig, values, where="--set"), pool
