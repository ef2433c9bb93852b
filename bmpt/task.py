"""A config with the pool, the model, and the texts that it names, opened and checked.

Mistakes show here, before a run folder is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bmpt.checkpoints.wise_ft import base_weights
from bmpt.clip.backbone import Backbone, load_backbone
from bmpt.config import RunConfig
from bmpt.methods import build_method
from bmpt.methods.base import ClassTexts, Method
from bmpt.runtime.distributed import World
from bmpt.sample_features import read_sample_features
from bmpt.settings import TextSettings
from bmpt.task_checks import (
    backbone_warnings,
    check_class_texts,
    check_config,
    check_trains,
    text_warnings,
    training_warnings,
)
from bmpt.texts.class_texts import class_sentences, negative_sentences
from shards.errors import ConfigError
from shards.files import os_error_text
from shards.reader import Manifest, Pool, open_pool, require_samples, select
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.plan import check_batch


@dataclass(frozen=True)
class Split:
    """A manifest as the config selects it, with its texts and features."""

    manifest: Manifest

    texts: ClassTexts
    """Class texts, on the device."""

    sample_features: dict[str, torch.Tensor] = field(default_factory=dict)
    """Features [N, D] of the samples by kind, on the CPU."""


@dataclass(frozen=True)
class Task:
    """The opened inputs of training and evaluation; made by `open_task`."""

    config: RunConfig
    world: World
    pool: Pool
    backbone: Backbone
    method: Method

    train_split: Split | None
    """The training data; None if the task only scores."""

    eval_splits: dict[str, Split]
    """The data to score, by the name of its manifest."""

    base: dict[str, torch.Tensor] | None = None
    """The untuned weights, if `eval.wise_ft` mixes them into the scored ones."""

    text_files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the files that `text` names, by key, as 64 hex digits."""

    warnings: tuple[str, ...] = ()
    """Sentences for the caller to print."""

    @property
    def clip_settings(self) -> ClipSettings:
        """Return how clips are cut for this backbone."""
        return self.config.data.clip_settings(self.backbone.image_size_px)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of `train.precision`."""
        precision = self.config.train.precision
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return torch.autocast(self.world.device.type, dtype=dtype, enabled=precision != "fp32")


def open_task(
    config: RunConfig, world: World, *, trains: bool, trained_classes: Sequence[str] = ()
) -> Task:
    """Open pool, manifests, backbone and method, and check that they fit together.

    Args:
        config: The config.
        world: The ranks of the run.
        trains: Whether to open the training data too.
        trained_classes: Without training, the classes of the checkpoint that is scored.

    Raises:
        ConfigError, FormatError, StorageError: The message is one line.
    """
    check_config(config, world, trains=trains)
    train_name = config.data.train if trains else None

    # Cheap mistakes first: the manifests are read before the weights, which can take minutes.
    pool = open_pool(config.data.pool)
    names = list(config.scored_manifests)
    if train_name is not None:
        names.insert(0, train_name)
    manifests = {name: select(pool.manifest(name), config.data.verdicts) for name in names}

    backbone = load_backbone(config.model.name, config.model.pretrained, seed=config.seed)
    if train_name is not None:
        # a classifier is built for the classes of the training list
        trained_classes = manifests[train_name].info.classes
    method = build_method(
        backbone,
        config.method,
        num_frames=config.data.frames,
        seed=config.seed,
        classes=trained_classes,
    )
    if trains:
        check_trains(method)

    # Texts and features depend on the tokenizer and the text tower.
    warnings = backbone_warnings(config, backbone, method)
    splits = {}
    for name, manifest in manifests.items():
        is_train = name == train_name
        splits[name], found = _open_split(config, manifest, method, backbone, world, is_train)
        warnings += found
    if train_name is not None:
        warnings += training_warnings(config, manifests[train_name])

    task = Task(
        config=config,
        world=world,
        pool=pool,
        backbone=backbone,
        method=method.to(world.device),
        train_split=None if train_name is None else splits[train_name],
        eval_splits={name: splits[name] for name in config.scored_manifests},
        base=None if config.eval.wise_ft is None else base_weights(method),
        text_files=hash_text_files(config.text),
        # lists of the same classes give the same warnings: each is kept once
        warnings=tuple(dict.fromkeys(warnings)),
    )
    _check_task(task)
    return task


def _open_split(
    config: RunConfig,
    manifest: Manifest,
    method: Method,
    backbone: Backbone,
    world: World,
    is_train: bool,
) -> tuple[Split, list[str]]:
    """Return a manifest with its texts and features, and warnings about the texts.

    Negatives are read for training only.
    """
    classes, text = manifest.info.classes, config.text
    sentences = class_sentences(classes, text)
    warnings = text_warnings(sentences, "class texts", method, backbone)

    negatives = None
    if is_train and text.negatives is not None:
        negatives = negative_sentences(
            classes,
            text.negatives,
            sentences.num_sentences,
            texts=text.sentences,
            raw_names=text.raw_names,
        )
        warnings += text_warnings(negatives, "negatives", method, backbone)
    texts = method.prepare_classes(sentences, negatives).to(world.device)

    # Features are stored by key and needed by row.
    keys = manifest.table["key"].to_pylist()
    features = read_sample_features(text, keys, backbone, is_train=is_train)
    return Split(manifest, texts, features), warnings


def _check_task(task: Task) -> None:
    """Check the sizes of manifests and batches, and that class texts differ.

    Raises:
        ConfigError: A manifest is empty, ranks and samples cannot share a batch, or two classes
            have the same text features.
    """
    texts_by_name = {name: split.texts for name, split in task.eval_splits.items()}
    if task.train_split is not None:
        require_samples(task.train_split.manifest)
        check_batch(
            # the same check that the loader makes, without its shared memory
            len(task.train_split.manifest),
            batch_size=task.config.data.batch_size,
            accumulation=task.config.train.accumulation,
            world_size=task.world.size,
        )
        texts_by_name = {"data.train": task.train_split.texts, **texts_by_name}
    for split in task.eval_splits.values():
        require_samples(split.manifest)
    check_class_texts(task.config, task.method, texts_by_name)


def hash_text_files(text: TextSettings) -> dict[str, str]:
    """Return the sha256 of every file that the section `text` names, by key.

    Raises:
        ConfigError: A file cannot be read. Scoring has not read the files of training before.
    """
    files: dict[str, Path | None] = {
        "sentences": text.sentences,
        "paraphrases": text.paraphrases,
        "negatives": text.negatives,
        "knowledge": text.knowledge,
    }
    files |= {f"attributes.{number}": file for number, file in enumerate(text.attributes)}
    return {key: _hash_text_file(key, file) for key, file in files.items() if file is not None}


def _hash_text_file(key: str, file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"text.{key}={file}: cannot be read: {os_error_text(error)}; correct it, or set "
            f"text.{key}=null and another run.dir where nothing is trained"
        ) from None
