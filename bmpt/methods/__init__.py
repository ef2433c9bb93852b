"""The methods, one file each. A new one is a file, a line in this table and a YAML in
configs/methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bmpt.clip.backbone import Backbone
from bmpt.config import MethodSettings
from bmpt.methods.base import Method
from bmpt.methods.bdc_clip import BdcClip
from bmpt.methods.bike import Bike
from bmpt.methods.bmpt import Bmpt
from bmpt.methods.vifi_clip import VifiClip
from bmpt.methods.zero_shot import ZeroShot
from shards.errors import ConfigError

METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "vifi_clip": VifiClip,
    "bdc_clip": BdcClip,
    "bmpt": Bmpt,
    "bike": Bike,
}


def method_kind(settings: MethodSettings) -> type[Method]:
    """The class of `method.name`. Raises: ConfigError that lists what there is."""
    if settings.name not in METHODS:
        raise ConfigError(
            f"method.name={settings.name}: is no method; give one of {', '.join(METHODS)}"
        )
    return METHODS[settings.name]


def build_method(
    backbone: Backbone,
    settings: MethodSettings,
    *,
    num_frames: int,
    seed: int,
    classes: Sequence[str] = (),
) -> Method:
    """Make the method on a backbone for some trained classes; new tensors are drawn from `seed`,
    the rest is frozen."""
    kind = method_kind(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = kind(backbone, settings, num_frames=num_frames, classes=classes)
    method.freeze_untrained()
    return method
