"""Ranks: one process alone, or as many as torchrun starts (gloo on CPU, nccl on GPU)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shards.errors import BmptError, ConfigError


@dataclass(frozen=True)
class World:
    """Where this process stands among `size` ranks, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0


def start_world(*, threads: int) -> World:
    """Join the ranks that torchrun announces by its environment, or stand alone.

    threads: CPU threads of this process, the same for every topology, so that sums are taken in one
        order.
    Raises: ConfigError for more ranks on a node than GPUs."""
    torch.set_num_threads(threads)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(local_rank)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


def choose_device(local_rank: int = 0) -> torch.device:
    """Take the GPU of a rank of this node, the CPU where there is none; float32 is then float32 on
    either.

    Raises: ConfigError for a rank without a GPU beside ranks that have one."""
    # cuDNN computes convolutions, here the patch embedding, in TF32 unless told otherwise, and an
    # environment variable
    # may ask for it in products: with the first, cosine logits move by 3e-4 to 1e-3 of the largest
    # (emulated on a CPU)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 0:
        return torch.device("cpu")
    check_has_gpu(local_rank, num_gpus)
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def check_has_gpu(local_rank: int, num_gpus: int) -> None:
    """Raises: ConfigError for more ranks on a node than it has GPUs."""
    if local_rank >= num_gpus:
        raise ConfigError(
            f"this node has {num_gpus} GPUs, none for its rank {local_rank}; set --nproc-per-node {num_gpus}"
        )


@contextmanager
def saying_memory(num_clips: int, cure: str) -> Iterator[None]:
    """Raises: ConfigError where so many clips, computed at once, do not fit into the memory of the
    GPU."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ConfigError(f"the GPU has no memory for {num_clips} clips at once; {cure}") from None


def leave_world(exit_code: int) -> None:
    """Leave the process group; under gloo the process ends here.

    Processes that stepped an optimiser under gloo sometimes abort while the interpreter shuts down
    (`terminate called without an active exception`), so shutting down is left out. After a failure
    the other
    ranks may never come to a barrier: torchrun ends them."""
    if not dist.is_initialized():
        return
    is_gloo = dist.get_backend() == "gloo"
    if exit_code == 0:
        dist.barrier()
        dist.destroy_process_group()
    if is_gloo:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def sum_over_ranks(values: list[float], world: World) -> list[float]:
    """Add up a few numbers over all ranks."""
    if world.size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=world.device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_to_all(value: Any, world: World) -> list[Any]:
    """All ranks' values in rank order, on every rank."""
    if world.size == 1:
        return [value]
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, value)
    return gathered


def gather_to_main(value: Any, world: World) -> list[Any] | None:
    """All ranks' values in rank order, on the main rank; None elsewhere."""
    if world.size == 1:
        return [value]
    gathered: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, gathered)
    return gathered


def from_main(value: Any, world: World) -> Any:
    """The main rank's value, on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@contextmanager
def errors_of_main(world: World) -> Iterator[None]:
    """Raise on all ranks what the main rank raises within: the others would wait for it without
    end.

    For what the main rank does alone, as writing files; costs an exchange.
    Raises: BmptError of the main rank; another rank's own error as it is."""
    error: BmptError | None = None
    try:
        yield
    except BmptError as caught:
        if not world.is_main:
            raise
        error = caught
    error = from_main(error, world)
    if error is not None:
        raise error
