"""Augmentations of training clips: what they do, and that they depend on the clip alone."""

from __future__ import annotations

import pytest
import torch

from bmpt.augment import AUGMENTATIONS, augment
from shards.errors import ConfigError
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import folder_of, run
from tests.bmpt.tiny import losses_of

KEYS = [f"Class/clip_{number:03d}" for number in range(200)]


def frames_of(num_clips: int) -> torch.Tensor:
    """Frames [B, 1, 2, 3, 4, 4] from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((num_clips, 1, 2, 3, 4, 4), generator=generator)


def test_no_augmentation_returns_the_very_frames() -> None:
    frames = frames_of(3)
    assert augment(frames, (), seed=0, epoch=0, keys=KEYS[:3]) is frames


def test_gray_makes_the_channels_of_a_fifth_of_the_clips_equal() -> None:
    frames = frames_of(200)
    ours = augment(frames, ("gray",), seed=0, epoch=0, keys=KEYS)
    is_gray = (ours.std(dim=3) < 1e-6).flatten(1).all(dim=1)
    assert 20 <= int(is_gray.sum()) <= 60
    torch.testing.assert_close(ours[~is_gray], frames[~is_gray])
    red, green, blue = frames[is_gray].unbind(dim=3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    torch.testing.assert_close(ours[is_gray][:, :, :, 0], luma)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmented_clip_does_not_depend_on_its_batch(name: str) -> None:
    frames = frames_of(40)
    together = augment(frames, (name,), seed=1, epoch=2, keys=KEYS[:40])
    for start in range(0, 40, 8):
        some = slice(start, start + 8)
        alone = augment(frames[some], (name,), seed=1, epoch=2, keys=KEYS[:40][some])
        torch.testing.assert_close(alone, together[some], rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"keys": KEYS[::-1]}])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_is_drawn_from_seed_epoch_and_key(
    name: str, change: dict[str, object]
) -> None:
    frames = frames_of(200)
    how: dict[str, object] = {"seed": 0, "epoch": 0, "keys": KEYS}
    first, again, other = (
        augment(frames, (name,), **kwargs)  # type: ignore[arg-type]
        for kwargs in (how, how, how | change)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_with_an_augmentation_does_not_depend_on_micro_batches(
    config: MakeConfig,
) -> None:
    losses = {}
    for name, data, accumulation in (
        ("plain", {}, 1),
        ("gray", {"augment": ["gray"]}, 1),
        ("gray_split", {"augment": ["gray"]}, 2),
    ):
        train = {"accumulation": accumulation, "epochs": 3}
        settings = config(run=name, data=data, train=train)
        run(settings)
        losses[name] = [loss for _, loss in losses_of(folder_of(settings))]
    assert losses["gray_split"][0] == pytest.approx(losses["gray"][0], rel=1e-6)
    assert losses["gray_split"] == pytest.approx(losses["gray"], rel=1e-3)
    assert losses["gray"][0] != pytest.approx(losses["plain"][0], rel=1e-3)


def test_an_unknown_augmentation_is_refused_with_the_known_ones(config: MakeConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.augment: 'sepia' is an unknown augmentation; choose of gray"
    ):
        run(config(data={"augment": "sepia"}))
