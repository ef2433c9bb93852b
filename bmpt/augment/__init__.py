"""The table of augmentations: functions of a batch of training clips on the device.

`data.augment` names those that a run applies, in its order, before normalisation. (Crops and flips
are made where frames are decoded, see `shards/sampling/crops.py`.) A new augmentation is a function
and a line here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from bmpt.augment.color import gray
from shards.errors import ConfigError

Augmentation = Callable[[torch.Tensor, Sequence[torch.Generator]], torch.Tensor]
"""Maps frames [B, V, T, 3, H, W], float32 RGB from 0 to 1, to frames of the same shape.

The generators are on the CPU, one per clip. An augmentation draws the random numbers of a clip from
the generator of this clip and from nothing else: a clip is then the same whichever rank and
micro-batch it is computed in.
"""

AUGMENTATIONS: dict[str, Augmentation] = {
    "gray": gray,
}


def check_augmentations(names: Sequence[str]) -> None:
    """Check that all augmentations of a run are known.

    Raises:
        ConfigError: One is not; the message lists those that are.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ConfigError(
                f"data.augment: {name!r} is an unknown augmentation; choose of "
                f"{', '.join(AUGMENTATIONS)}"
            )


def augment(
    frames_BVTCHW: torch.Tensor,
    names: Sequence[str],
    *,
    seed: int,
    epoch: int,
    keys: Sequence[str],
) -> torch.Tensor:
    """Apply augmentations to a batch of clips.

    Args:
        frames_BVTCHW: float32 RGB from 0 to 1.
        names: The augmentations, in the order in which they are applied.
        seed: Seed of the run.
        epoch: Epoch of the clips.
        keys: Keys of the samples of the clips.

    Returns:
        Frames of the same shape: a function of frames, seed, epoch and keys.
    """
    for name in names:
        # On the CPU: their numbers are the same for every device.
        generators = [_generator(name, seed, epoch, key) for key in keys]
        frames_BVTCHW = AUGMENTATIONS[name](frames_BVTCHW, generators)
    return frames_BVTCHW


def _generator(name: str, seed: int, epoch: int, key: str) -> torch.Generator:
    """Return the random numbers of one augmentation of one clip.

    They depend on the name, so that adding an augmentation to a run does not change the others.
    """
    text = f"augment/{name}/{seed}/{epoch}/{key}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
