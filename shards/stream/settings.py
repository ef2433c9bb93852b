"""Settings of the training stream and of an evaluation: how a loader makes batches."""

from __future__ import annotations

from pydantic import Field

from shards.config import Settings
from shards.fetching.frames import ReadSettings
from shards.sampling.orders import OrderSettings
from shards.stream.failures import MAX_FAILURES


class LoaderSettings(Settings):
    """Settings that training and evaluation loaders share."""

    num_workers: int = Field(
        0, ge=0, description="loader processes of this rank; 0 decodes in the calling process"
    )
    max_failures: int | None = Field(
        MAX_FAILURES,
        ge=1,
        description="unreadable samples in a row of this rank that end the stream; null if the "
        "caller counts over all ranks",
    )
    reading: ReadSettings = ReadSettings()


class StreamSettings(LoaderSettings, OrderSettings):
    """How the training stream is ordered and cut into batches."""

    batch_size: int = Field(
        ge=1, description="clips of one optimiser step over all ranks and micro-batches"
    )
    accumulation: int = Field(1, ge=1, description="micro-batches of one optimiser step")
    seed: int = Field(ge=0, description="seed of the order and of the random numbers of samples")
    epochs: int | None = Field(
        None, ge=1, description="epochs of the run: nothing beyond is read ahead; null for no end"
    )


class BlockSettings(LoaderSettings):
    """How an evaluation is cut into blocks."""

    block_size: int = Field(ge=1, description="rows of one block; the same for any number of ranks")
