"""All-gather of rows with exact gradients, for losses that compare the clips of all ranks.

How it composes with DDP: each rank computes its own part of the loss from the gathered rows, such
that the parts of all ranks sum to the loss. Backward then sums over ranks, so the rows of a rank
receive their gradient of the whole loss, and the gradients of any parameter, before or after the
gather, sum over ranks to the exact one. DDP takes the mean over W ranks, so the part is multiplied
by W, as the training loop does with every loss.

(BIKE returns the gradient of the local slice only. It so trains its towers on 1 / W of their
gradient, but everything after the gather on all of it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from bmpt.clip.precision import widen


@dataclass(frozen=True)
class RowGather:
    """Joins tensors whose first axis holds the rows of this rank, in rank order."""

    counts: tuple[int, ...]
    """Number of rows of each rank; they may differ and be 0."""

    rank: int

    @property
    def own(self) -> slice:
        """Return the positions of this rank's rows among all rows."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])

    def __call__(self, rows_nX: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks [N, ...], half precision as float32.

        Every rank must call it in the same order, and run backward if one does.

        Raises:
            ValueError: The rank has another number of rows than `counts` says.
        """
        if len(rows_nX) != self.counts[self.rank]:
            raise ValueError(
                f"rank {self.rank} announced {self.counts[self.rank]} rows and gives {len(rows_nX)}"
            )
        if len(self.counts) == 1:
            return widen(rows_nX)
        return _Gather.apply(widen(rows_nX), self)


def row_gather(num_rows: int, device: torch.device) -> RowGather:
    """Tell all ranks how many rows this rank has, and return the gather.

    Without a process group the rank is the only one.
    """
    if not dist.is_initialized():
        return RowGather((num_rows,), 0)
    counts_W = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts_W[dist.get_rank()] = num_rows
    dist.all_reduce(counts_W)
    return RowGather(tuple(counts_W.tolist()), dist.get_rank())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_nX: torch.Tensor, gather: RowGather) -> torch.Tensor:
        ctx.own = gather.own
        # gloo gathers equal shapes only
        padded = rows_nX.new_zeros(max(gather.counts), *rows_nX.shape[1:])
        padded[: len(rows_nX)] = rows_nX
        parts = [torch.empty_like(padded) for _ in gather.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, gather.counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total_NX = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_NX)
        return total_NX[ctx.own], None
