"""The batch types that the loader hands to the training loop."""

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
    """B clips of one view each."""

    frames_BVTCHW: torch.Tensor
    """uint8 RGB, channels last in memory. Converting to float can change the layout in the same
    pass."""

    labels_B: torch.Tensor
    """int64, index into the manifest's classes."""

    weights_B: torch.Tensor
    """float32, 1 for a clip; 0 for the placeholder of an unreadable sample, whose frames are
    black."""

    positions_B: torch.Tensor
    """int64, row in the manifest."""

    keys: list[str]
    """Keys of the samples."""

    failures: list[str | None]
    """Why a sample could not be read; None for a clip."""


@dataclass(frozen=True)
class MicroBatch:
    """The clips that one rank computes at once."""

    clips: ClipBatch

    epoch: int
    """From 0."""

    step: int
    """Optimiser step of the epoch, from 0."""

    micro: int
    """Micro-batch of the step, from 0."""

    reads: ReadStats
    """Cost of reading its samples."""


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch on its way from a loader process to the training process."""

    plan: MicroPlan

    slot: int | None
    """Slot of the buffers that holds the frames."""

    frames: torch.Tensor | None
    """The frames, if no slot was free when they were made."""

    labels: list[int]
    keys: list[str]
    failures: list[str | None]
    reads: ReadStats

    def unpack(self, clip: ClipSettings, buffers: BatchBuffers) -> MicroBatch:
        """Return the micro-batch as tensors, in the training process; frames are not copied."""
        import torch

        # The tensor of a slot keeps the slot; letting go of the batch frees it for the next one.
        frames = self.frames
        if frames is None:
            assert self.slot is not None
            frames = buffers.hand_out(self.slot, len(self.keys) * clip.clip_bytes)

        is_read = [failure is None for failure in self.failures]
        clips = ClipBatch(
            frames_BVTCHW=as_clips(frames, clip).unsqueeze(1),
            labels_B=torch.tensor(self.labels, dtype=torch.int64),
            weights_B=torch.tensor(is_read, dtype=torch.float32),
            positions_B=torch.from_numpy(self.plan.rows),
            keys=self.keys,
            failures=self.failures,
        )
        return MicroBatch(clips, self.plan.epoch, self.plan.step, self.plan.micro, self.reads)


def as_clips(frames: torch.Tensor, clip: ClipSettings) -> torch.Tensor:
    """Return bytes as clips [B, T, 3, H, W], channels last in memory."""
    return frames.view(-1, clip.frames, clip.size_px, clip.size_px, 3).permute(0, 1, 4, 2, 3)
