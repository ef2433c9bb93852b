"""The traffic of a run: what a config, or one manifest of a pool, will read. Needs no model."""

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
from shards.fetching.read_plan import ReadPlan, plan_scoring, plan_text, plan_training
from shards.fetching.request_cost import measure_request_cost
from shards.reader import Pool, open_pool, select
from shards.sampling.plan import check_batch
from shards.storage.open import open_store

_BATCH_SIZE = 64
_MANIFEST = re.compile(
    r"(?:(?P<pool>.+)/)?manifests/(?P<name>[\w-]+/[\w-]+)\.parquet(?P<options>\?.*)?"
)


@dataclass(frozen=True)
class RunPlan:
    """The requests and bytes that a run reads."""

    plans: list[ReadPlan]
    """Plans of the training and of each scored manifest."""

    bytes: int
    """Bytes of all plans."""

    requests: int
    """Requests of all plans."""

    seconds: float | None
    """Time of all plans; None for a pool in a folder."""

    latency_seconds: float
    """Assumed time of a request."""

    bytes_per_second: float
    """Assumed rate of a connection."""

    is_measured: bool
    """Whether these two were measured for this plan; otherwise they are settings."""


def plan_address(address: str, overrides: Sequence[str] = (), *, measure: bool = False) -> RunPlan:
    """Plan a config or a manifest.

    A manifest is planned with the defaults of a config, except for one epoch and batches of at most
    all its samples. A training list is planned as training, any other list as scoring.

    Args:
        address: A config file, the name of a shipped experiment, or
            `POOL/manifests/PROTOCOL/NAME.parquet` with the options of the pool's address.
        overrides: Settings as `a.b=c`.
        measure: Whether to measure the cost of a request first.

    Raises:
        ConfigError, FormatError, StorageError: The message names the address.
    """
    is_url = "://" in address
    # an address with credentials is refused here, before any message shows it
    shown = open_store(address).uri("") if is_url else address
    config, pool = _open_address(address, shown, overrides)
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


def _open_address(address: str, shown: str, overrides: Sequence[str]) -> tuple[RunConfig, Pool]:
    """Return the config and the pool of an address; messages show it as `shown`."""
    if found := _MANIFEST.fullmatch(address):
        pool_address = f"{found['pool'] or '.'}{found['options'] or ''}"
        return _config_of_manifest(pool_address, found["name"], overrides)

    is_url = "://" in address
    if _is_config(address):
        config = load_config(address, overrides)
        return config, open_pool(config.data.pool)

    names = "" if is_url else suggest_names(address, EXPERIMENTS)
    hint = f", or the experiment {names}" if names else ""
    raise ConfigError(
        f"{shown}: is neither a config (.yaml) nor a manifest; give "
        f"POOL/manifests/PROTOCOL/NAME.parquet{hint}"
    )


def _is_config(address: str) -> bool:
    """Whether an address is a config file or the name of a shipped experiment."""
    if "://" in address or address.endswith(".parquet"):
        return False
    if address.endswith((".yaml", ".yml")) or Path(address).is_file():
        return True
    return address in config_names(EXPERIMENTS)


def run_plan_text(plan: RunPlan) -> str:
    """Return a plan as text for a terminal."""
    lines = [plan_text(item) for item in plan.plans]
    if plan.is_measured:
        measured = (
            f"measured: --set data.latency_seconds={plan.latency_seconds:g} "
            f"--set data.bytes_per_second={plan.bytes_per_second:.0f} (used below)"
        )
        lines.insert(0, measured)
    if len(plan.plans) > 1:
        seconds = "" if plan.seconds is None else f", about {plan.seconds:,.1f} s of reading"
        lines.append(f"in all: {plan.bytes:,} bytes, {plan.requests:,} requests{seconds}")
    return "\n".join(lines)


def plan_run(config: RunConfig, pool: Pool) -> list[ReadPlan]:
    """Plan the training, if there is one, and the scoring of each manifest.

    Under torchrun the plans cover all ranks.

    Raises:
        ConfigError, FormatError, StorageError: The message names the key or the file.
    """
    data = config.data
    clip = data.clip_settings(size_px=1)  # the number of pixels has no influence on what is read
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    # Loader processes request at the same time, which divides the time of reading.
    num_processes = max(1, data.num_workers) * world_size

    plans = []
    if data.train is not None:
        manifest = select(pool.manifest(data.train), data.verdicts)
        # An empty list is planned as zero requests; training it would be refused.
        if len(manifest):
            check_batch(
                len(manifest),
                batch_size=data.batch_size,
                accumulation=config.train.accumulation,
                world_size=world_size,
            )
        plan = plan_training(
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
        plans.append(plan)
    for name in config.scored_manifests:
        manifest = select(pool.manifest(name), data.verdicts)
        plan = plan_scoring(pool.store, manifest, clip, data.reading, num_processes=num_processes)
        plans.append(plan)
    return plans


def _config_of_manifest(
    address: str, name: str, overrides: Sequence[str]
) -> tuple[RunConfig, Pool]:
    pool = open_pool(address)
    manifest = pool.manifest(name)
    # The split of a list says how it is read: shuffled for training, or in order.
    use = "train" if manifest.info.split == "train" else "val"
    values = {
        "data": {"pool": address, use: name, "batch_size": min(_BATCH_SIZE, max(1, len(manifest)))},
        "train": {"epochs": 1},
    }
    for override in overrides:
        values = merge(values, parse_override(override))
    return build_settings(RunConfig, values, where="--set"), pool
