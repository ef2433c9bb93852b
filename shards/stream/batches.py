"""Batches of clips on their way from the loader workers to the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shards.fetching.frames import ReadStats
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.plan import MicroPlan
from shards.stream.batch_buffers import BatchBuffers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ClipBatch:
    """B clips of one view each.

    frames_BVTCHW: uint8 RGB, channels last in memory: whoever makes floats of it turns it over in
        the same pass
    labels_B: int64, index into the manifest's classes
    weights_B: float32, 1; 0 for an empty place, whose frames are black
    positions_B: int64, row in the manifest
    keys: of the samples
    failures: why a place is empty, None for the others"""

    frames_BVTCHW: torch.Tensor
    labels_B: torch.Tensor
    weights_B: torch.Tensor
    positions_B: torch.Tensor
    keys: list[str]
    failures: list[str | None]


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes at once: micro-batch `micro` of optimiser step `step` of `epoch`, all
    from 0.

    reads: what reading its samples took"""

    clips: ClipBatch
    epoch: int
    step: int
    micro: int
    reads: ReadStats


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch on its way from a loader worker: no tensor but frames that found no place in
    the buffers."""

    plan: MicroPlan
    place: int | None
    frames: torch.Tensor | None
    labels: list[int]
    keys: list[str]
    failures: list[str | None]
    reads: ReadStats

    def unpack(self, clip: ClipSettings, buffers: BatchBuffers) -> MicroBatch:
        """Make tensors of it, in the process that trains; the frames are not copied."""
        import torch

        frames = self.frames
        if frames is None:
            assert self.place is not None
            frames = buffers.lend(self.place, len(self.keys) * clip.clip_bytes)
        clips = ClipBatch(
            frames_BVTCHW=as_clips(frames, clip).unsqueeze(1),
            labels_B=torch.tensor(self.labels, dtype=torch.int64),
            weights_B=torch.tensor(
                [failure is None for failure in self.failures], dtype=torch.float32
            ),
            positions_B=torch.from_numpy(self.plan.rows),
            keys=self.keys,
            failures=self.failures,
        )
        return MicroBatch(clips, self.plan.epoch, self.plan.step, self.plan.micro, self.reads)


def as_clips(frames: torch.Tensor, clip: ClipSettings) -> torch.Tensor:
    """Bytes as [B, T, 3, H, W], channels last in memory."""
    return frames.view(-1, clip.frames, clip.size_px, clip.size_px, 3).permute(0, 1, 4, 2, 3)
