"""One training step of BIKE's loss over a gathered batch: alone by a call, on ranks under
torchrun."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bmpt.methods.components.bike_video import TemporalTransformer, spotted_cosines, word_mask
from bmpt.methods.components.gather import RowGather, row_gather
from bmpt.methods.components.losses import matching_sum
from bmpt.runtime.distributed import World, leave_world, start_world
from tests.bmpt.methods.method_parts import drawn, ids_with_eot
from tests.bmpt.tiny import random_frames

LABELS, WEIGHTS = (0, 1, 0, 2, 1), (1.0, 0.0, 1.0, 1.0, 1.0)
NUM_CLASSES, T, PIXELS, WIDTH, CONTEXT = 3, 2, 5, 4, 3
# clips of each of two ranks, and whether the softmax is dual
CASES = [((2, 3), False), ((4, 1), True), ((0, 5), False), ((5, 0), True)]


class Matcher(nn.Module):
    """Trained parts before and after the gather, and class texts that are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(PIXELS, WIDTH)
        self.after = TemporalTransformer(WIDTH, num_heads=2, num_layers=1, max_frames=T)
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.rows: torch.Tensor | None = None

    def forward(
        self, frames_nTP: torch.Tensor, labels_N: torch.Tensor, gather: RowGather
    ) -> torch.Tensor:
        """Logits [N, N] of all clips and the class texts of all clips."""
        self.rows = self.tower(frames_nTP)
        self.rows.retain_grad()
        frames_NTD = self.after(gather(self.rows))
        classes_KD = random_frames(NUM_CLASSES, WIDTH, seed=1).double()
        words_KSD = random_frames(NUM_CLASSES, CONTEXT, WIDTH, seed=2).double()
        is_word_KS = word_mask(ids_with_eot(0, 2, 1, context=CONTEXT))
        of = (classes_KD[labels_N], words_KSD[labels_N], is_word_KS[labels_N])
        return self.log_scale.exp() * spotted_cosines(frames_NTD, *of)


@dataclass(frozen=True)
class Step:
    """part: this rank's of the loss; rows: gradient by the rows of its clips; gradients: of the
    parameters."""

    part: torch.Tensor
    rows: torch.Tensor
    gradients: dict[str, torch.Tensor]


def step(counts: tuple[int, ...], rank: int, *, dual: bool) -> Step:
    """Compute one rank's step; `counts` of one number is one process alone."""
    matcher = drawn(Matcher(), 0)
    model: nn.Module = matcher if len(counts) == 1 else DistributedDataParallel(matcher)
    start = sum(counts[:rank])
    clips = random_frames(len(LABELS), T, PIXELS, seed=3).double()[start : start + counts[rank]]
    gather = row_gather(len(clips), clips.device)
    here = slice(start, start + counts[rank])
    assert gather.own == here
    labels_N, weights_N = (
        gather(torch.tensor(LABELS)[here]),
        gather(torch.tensor(WEIGHTS).double()[here]),
    )
    part = matching_sum(
        model(clips, labels_N, gather), labels_N, weights_N, own=gather.own, dual=dual
    )
    part = part / weights_N.sum()
    (len(counts) * part).backward()  # for DDP's mean
    assert matcher.rows is not None
    assert matcher.rows.grad is not None
    gradients = {
        name: value.grad for name, value in matcher.named_parameters() if value.grad is not None
    }
    return Step(part.detach(), matcher.rows.grad, gradients)


def main(folder: Path) -> None:
    """Write what each rank computed of every case."""
    world: World = start_world(threads=1)
    done: list[dict[str, Any]] = [
        vars(step(counts, world.rank, dual=dual)) for counts, dual in CASES
    ]
    torch.save(done, folder / f"{world.rank}.pt")
    leave_world(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
