"""Ranks: one process, or as many as torchrun starts (gloo on the CPU, nccl on GPUs)."""

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
    """The ranks of a run, seen from this process."""

    rank: int
    """Number of this process."""

    size: int
    """Number of processes."""

    device: torch.device
    """Device that this process computes on."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0


def start_world(*, threads: int) -> World:
    """Join the ranks that torchrun announces in the environment, or be the only rank.

    Args:
        threads: CPU threads of this process. Every topology must use the same number, so that sums
            are taken in one order.

    Raises:
        ConfigError: A node has more ranks than GPUs.
    """
    torch.set_num_threads(threads)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(local_rank)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


def choose_device(local_rank: int = 0) -> torch.device:
    """Take the GPU of a rank of this node, or the CPU on a node without GPUs.

    float32 is then float32 on either.

    Raises:
        ConfigError: The node has GPUs, but none for this rank.
    """
    # cuDNN computes convolutions, here the patch embedding, in TF32 unless told otherwise, and an
    # environment variable may ask for it in matrix products. With the first, cosine logits move by
    # 3e-4 to 1e-3 of the largest (emulated on a CPU).
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
    """Check that a rank of this node has a GPU.

    Raises:
        ConfigError: The node has more ranks than GPUs.
    """
    if local_rank >= num_gpus:
        raise ConfigError(
            f"this node has {num_gpus} GPUs, none for its rank {local_rank}; set --nproc-per-node "
            f"{num_gpus}"
        )


@contextmanager
def explain_out_of_memory(num_clips: int, hint: str) -> Iterator[None]:
    """Turn an error of GPU memory into one line that says how many clips did not fit.

    Args:
        num_clips: Clips that are computed at once.
        hint: How the user can solve it, the end of the message.

    Raises:
        ConfigError: The memory of the GPU is too small.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise ConfigError(f"the GPU has no memory for {num_clips} clips at once; {hint}") from None


def leave_world(exit_code: int) -> None:
    """Leave the process group; under gloo the process ends here.

    Processes that stepped an optimiser under gloo sometimes abort while the interpreter shuts down
    (`terminate called without an active exception`), so the shutdown is skipped. After a failure
    the other ranks may never reach a barrier: torchrun ends them.
    """
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
    """Return the sums of some numbers over all ranks, on every rank."""
    if world.size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=world.device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def all_gather(value: Any, world: World) -> list[Any]:
    """Return the values of all ranks in rank order, on every rank."""
    if world.size == 1:
        return [value]
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, value)
    return gathered


def gather_to_main(value: Any, world: World) -> list[Any] | None:
    """Return the values of all ranks in rank order on the main rank, None on the others."""
    if world.size == 1:
        return [value]
    gathered: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, gathered)
    return gathered


def broadcast_from_main(value: Any, world: World) -> Any:
    """Return the value of the main rank, on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


@contextmanager
def raise_main_errors_everywhere(world: World) -> Iterator[None]:
    """Re-raise the main rank's error on every rank; otherwise the other ranks would deadlock.

    It is for work that only the main rank does, such as writing files, and costs one broadcast.

    Raises:
        BmptError: The error of the main rank. Another rank raises its own error as it is.
    """
    error: BmptError | None = None
    try:
        yield
    except BmptError as caught:
        if not world.is_main:
            raise
        error = caught
    error = broadcast_from_main(error, world)
    if error is not None:
        raise error
