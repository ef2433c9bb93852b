"""A config with everything that it names opened and checked: mistakes show before a run folder is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bmpt.classes import class_texts
from bmpt.clip import Backbone, load_backbone
from bmpt.config import TrainConfig
from bmpt.engine.distributed import World
from bmpt.methods import build_method
from bmpt.methods.base import Method
from shards.errors import ConfigError
from shards.loader import ClipSettings, build_eval_loader, build_train_loader, select
from shards.reader import Manifest, Pool, open_pool


@dataclass(frozen=True)
class Split:
    """A manifest as the config selects it, and the token ids [K, S] of its class texts."""

    manifest: Manifest
    ids_KS: torch.Tensor


@dataclass(frozen=True)
class Task:
    """What training and evaluation work on; made by `open_task`."""

    config: TrainConfig
    world: World
    pool: Pool
    backbone: Backbone
    method: Method
    train: Split | None
    scored: dict[str, Split]

    @property
    def clip(self) -> ClipSettings:
        """How clips are cut for this backbone."""
        data = self.config.data
        return ClipSettings(
            frames=data.frames,
            size_px=self.backbone.image_size_px,
            sampling=data.sampling,
            crop=data.crop,
            flip=data.flip,
            scaled_decode=data.scaled_decode,
        )

    def autocast(self) -> torch.autocast:
        """The context of `train.precision`."""
        precision = self.config.train.precision
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return torch.autocast(self.world.device.type, dtype=dtype, enabled=precision != "fp32")


def open_task(config: TrainConfig, world: World, *, trains: bool) -> Task:
    """Open pool, manifests, backbone and method. Raises: ConfigError, FormatError, StorageError in one line."""
    if config.train.precision == "fp16" and world.device.type != "cuda":
        raise ConfigError("train.precision=fp16: needs a GPU; set bf16 or fp32")
    if trains and config.data.train is None:
        raise ConfigError(
            "data.train is not set: name a manifest, for example --set data.train=few_shot/train_k16 "
            "(what trains nothing is scored with `bmpt eval`)"
        )
    pool = open_pool(config.data.pool)
    names = [config.data.train] if trains and config.data.train is not None else []
    names += _names_to_score(config)
    manifests = {name: select(pool.manifest(name), config.data.verdicts) for name in names}
    backbone = load_backbone(config.model.name, config.model.pretrained, seed=config.seed)
    method = build_method(backbone, config.method, num_frames=config.data.frames, seed=config.seed)
    if trains and not method.trained_groups():
        raise ConfigError(f"method.name={config.method.name}: trains nothing; score it with `bmpt eval CONFIG`")
    splits = {
        name: Split(manifest, method.prepare_texts(class_texts(manifest.info.classes, config.text)).to(world.device))
        for name, manifest in manifests.items()
    }
    task = Task(
        config=config,
        world=world,
        pool=pool,
        backbone=backbone,
        method=method.to(world.device),
        train=splits[config.data.train] if trains and config.data.train is not None else None,
        scored={name: splits[name] for name in _names_to_score(config)},
    )
    _check_loaders(task)
    _check_texts(task)
    return task


@torch.no_grad()
def _check_texts(task: Task) -> None:
    """Raises: ConfigError for two classes with one feature, which no training could tell apart."""
    for name, split in {**({"data.train": task.train} if task.train else {}), **task.scored}.items():
        _, groups_K = task.method.encode_classes(split.ids_KS).unique(dim=0, return_inverse=True)
        first_of: dict[int, str] = {}
        for class_name, group in zip(split.manifest.info.classes, groups_K.tolist(), strict=True):
            if first_of.setdefault(group, class_name) != class_name:
                raise ConfigError(
                    f"{name}: the classes {first_of[group]!r} and {class_name!r} have the same text feature: "
                    f"{task.config.model.name} does not know their words, or their texts are equal; take another model "
                    "or text.template"
                )


def _names_to_score(config: TrainConfig) -> list[str]:
    """Raises: ConfigError if there is nothing to score."""
    names = list(config.scored_manifests)
    if not names:
        raise ConfigError("nothing to score: set eval.manifests=[base_to_novel/val_base] or data.val")
    return names


def _check_loaders(task: Task) -> None:
    """Raises: ConfigError for an empty manifest, or a batch that its samples and the ranks cannot share."""
    config, world_size = task.config, task.world.size
    if task.train is not None:
        build_train_loader(
            task.pool,
            task.train.manifest,
            task.clip,
            batch_size=config.data.batch_size,
            accumulation=config.train.accumulation,
            num_workers=0,
            seed=config.seed,
            order=config.data.order,
            group_shards=config.data.group_shards,
            world_size=world_size,
        )
    block_size = config.eval.batch_size
    for split in task.scored.values():
        build_eval_loader(task.pool, split.manifest, task.clip, block_size=block_size, num_workers=0)
