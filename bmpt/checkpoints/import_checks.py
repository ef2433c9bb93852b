"""Checks of a published checkpoint: its layout, its keys, and the base that it was tuned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bmpt.checkpoints.import_report import list_names
from bmpt.checkpoints.published_keys import TOKEN_EMBEDDING, SortedKeys, split_published_state
from bmpt.checkpoints.published_tensors import Tensors
from bmpt.clip.backbone import Backbone
from shards.errors import ConfigError, FormatError

_SYSTEM_HINT = "give the system that wrote it as --system"


def check_published_state(file: Path, system: str, loaded: Any) -> tuple[Tensors, list[str]]:
    """Split the content of a checkpoint file, and check that it has the layout of its system.

    Returns:
        The state dict without prefixes, and the names of the other entries.

    Raises:
        FormatError: if the content has another layout.
    """
    try:
        state, left_out = split_published_state(system, loaded)
    except KeyError as error:
        raise FormatError(
            f"{file}: is not a checkpoint of {system}: it has no {error}; {_SYSTEM_HINT}"
        ) from None
    except (AttributeError, TypeError):
        raise FormatError(
            f"{file}: is not a checkpoint of {system}: it holds no state dict; {_SYSTEM_HINT}"
        ) from None
    except ValueError as error:
        raise FormatError(
            f"{file}: has entries that are unknown for {system}: {error}; {_SYSTEM_HINT}"
        ) from None

    others = [name for name, value in state.items() if not torch.is_tensor(value)]
    if others:
        raise FormatError(f"{file}: {list_names(others)}: not a tensor; {_SYSTEM_HINT}")
    return state, left_out


def check_keys(file: Path, system: str, keys: SortedKeys, base: Backbone) -> None:
    """Check that the file has every key of its system and no other.

    Raises:
        FormatError: listing missing and unexpected keys.
    """
    if keys.missing or keys.unexpected:
        raise FormatError(
            f"{file}: does not have the keys of a {system} checkpoint on {base.name}: unexpected "
            f"{list_names(keys.unexpected)}; missing {list_names(keys.missing)}; "
            f"{_SYSTEM_HINT} and the CLIP it was tuned from as --model"
        )


def check_shapes(file: Path, state: Tensors, keys: SortedKeys, base: Backbone) -> None:
    """Check the shapes of weights and prompts.

    Raises:
        ConfigError: for weights of another width than the base's, or prompts that differ between
            blocks.
    """
    weights = base.model.state_dict()
    expected = {key: weights[name].shape for key, name in keys.clip.items()}

    first_of_tower: dict[bool, str] = {}
    for key in keys.prompts:
        width = base.vision_width if key.startswith("image_") else base.text_width
        first = first_of_tower.setdefault(key.startswith("image_"), key)
        expected[key] = torch.Size((*state[first].shape[:1], width))

    wrong = []
    for key, shape in expected.items():
        if state[key].shape != shape:
            wrong.append(f"{key} is {list(state[key].shape)}, the base has {list(shape)}")
    if wrong:
        raise ConfigError(
            f"{file}: was not tuned from {base.name}: {list_names(wrong)}; "
            "give its architecture as --model"
        )


def check_token_embedding(file: Path, tuned: Tensors, base: Backbone) -> None:
    """Check that a token embedding, which no system tunes, is the base's.

    Raises:
        ConfigError: if it is another one.
    """
    ours = base.model.state_dict()[TOKEN_EMBEDDING]
    if TOKEN_EMBEDDING in tuned and not torch.equal(tuned[TOKEN_EMBEDDING].float(), ours):
        raise ConfigError(
            f"{file}: was not tuned from {base.name} ({base.weights_sha256[:12]}): its token "
            "embedding is another; give the weights it was tuned from as --pretrained"
        )


def check_text_tower(file: str, clip: Tensors, base: Backbone) -> None:
    """Check that the text tower is the base's.

    Args:
        file: name of the checkpoint, for messages.
        clip: CLIP's weights of the import, float32.
        base: the CLIP that was tuned.

    Raises:
        ConfigError: naming the weights that differ.
    """
    weights = base.model.state_dict()
    tuned = []
    for name, value in clip.items():
        is_text = not name.startswith(("visual.", "logit_scale"))
        if is_text and not torch.equal(value, weights[name].float()):
            tuned.append(name)
    if tuned:
        raise ConfigError(
            f"{file}: its text tower is not that of {base.name}, whose "
            f"features an attributes head compares: {list_names(tuned)}; "
            "give the weights it was tuned from as --pretrained"
        )
