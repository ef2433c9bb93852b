"""The device of a rank, and errors of its memory."""

from __future__ import annotations

import pytest
import torch

from bmpt.runtime.distributed import check_has_gpu, choose_device, explain_out_of_memory
from shards.errors import ConfigError


@pytest.mark.parametrize(("local_rank", "num_gpus"), [(2, 2), (3, 2), (1, 1)])
def test_more_ranks_than_gpus_are_refused_with_the_number_to_start(
    local_rank: int, num_gpus: int
) -> None:
    sentence = (
        f"^this node has {num_gpus} GPUs, none for its rank {local_rank}; set --nproc-per-node "
        f"{num_gpus}$"
    )
    with pytest.raises(ConfigError, match=sentence):
        check_has_gpu(local_rank, num_gpus)


@pytest.mark.parametrize(("local_rank", "num_gpus"), [(0, 1), (1, 2), (0, 8), (7, 8)])
def test_a_rank_with_a_gpu_is_not_refused(local_rank: int, num_gpus: int) -> None:
    """The check returns nothing: that it does not raise is the whole test."""
    check_has_gpu(local_rank, num_gpus)


def test_float32_is_not_rounded_to_tf32_on_the_device_that_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch starts
    torch.backends.cuda.matmul.allow_tf32 = True  # as some images start it
    device = choose_device()
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_only_an_error_of_memory_is_explained_as_one() -> None:
    with (
        pytest.raises(ConfigError, match=r"^the GPU has no memory for 3 clips at once; take 2$"),
        explain_out_of_memory(3, "take 2"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(3, "take 2"):
        raise RuntimeError("shapes do not fit")
