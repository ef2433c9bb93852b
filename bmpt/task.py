"""A config with everything that it names opened and checked: mistakes show before a run folder is
made."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bmpt.augment import check_augmentations
from bmpt.checkpoints.wise_ft import base_weights
from bmpt.clip.backbone import Backbone, load_backbone
from bmpt.config import RunConfig
from bmpt.methods import METHODS, build_method, find_method
from bmpt.methods.base import COSINE, ClassTexts, Method
from bmpt.runtime.distributed import World
from bmpt.sample_features import read_sample_features
from bmpt.settings import TextSettings
from bmpt.texts.class_texts import ClassSentences, class_sentences, cut_warning, negative_sentences
from shards.errors import ConfigError
from shards.reader import Manifest, Pool, open_pool, require_samples, select
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.plan import check_batch


@dataclass(frozen=True)
class Split:
    """A manifest as the config selects it, and its class texts.

    sample_features: features [N, D] of its samples by kind, on the CPU"""

    manifest: Manifest
    texts: ClassTexts
    sample_features: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What training and evaluation work on; made by `open_task`.

    base: the untuned weights, where `eval.wise_ft` mixes them into what is scored
    text_files: sha256 of the files that `text` names, by key, 64 hex digits"""

    config: RunConfig
    world: World
    pool: Pool
    backbone: Backbone
    method: Method
    train: Split | None
    scored: dict[str, Split]
    base: dict[str, torch.Tensor] | None = None
    text_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def clip(self) -> ClipSettings:
        """How clips are cut for this backbone."""
        return self.config.data.clip_settings(self.backbone.image_size_px)

    def autocast(self) -> torch.autocast:
        """The context of `train.precision`."""
        precision = self.config.train.precision
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return torch.autocast(self.world.device.type, dtype=dtype, enabled=precision != "fp32")


def open_task(
    config: RunConfig, world: World, *, trains: bool, trained_classes: Sequence[str] = ()
) -> Task:
    """Open pool, manifests, backbone and method. Raises: ConfigError, FormatError, StorageError in
    one line.

    trained_classes: of the checkpoint that is scored"""
    if config.train.precision == "fp16" and world.device.type != "cuda":
        raise ConfigError("train.precision=fp16: needs a GPU; set bf16 or fp32")
    if trains and config.data.train is None:
        raise ConfigError(
            "data.train is not set: name a manifest, for example --set data.train=few_shot/train_k16 "
            "(what trains nothing is scored with `bmpt eval`)"
        )
    find_method(config.method.name)  # before anything is read
    check_augmentations(config.data.augment)
    pool = open_pool(config.data.pool)
    names = [config.data.train] if trains and config.data.train is not None else []
    names += _names_to_score(config)
    manifests = {name: select(pool.manifest(name), config.data.verdicts) for name in names}
    backbone = load_backbone(config.model.name, config.model.pretrained, seed=config.seed)
    if trains and config.data.train is not None:
        trained_classes = manifests[config.data.train].info.classes
    method = build_method(
        backbone,
        config.method,
        num_frames=config.data.frames,
        seed=config.seed,
        classes=trained_classes,
    )
    if trains and method.settings.traits.compares_clips:
        _check_clips_together(config)
    if trains and not method.trained_groups():
        raise ConfigError(
            f"method.name={config.method.name}: trains nothing; score it with `bmpt eval CONFIG`"
        )
    _check_text_files(config)
    splits: dict[str, Split] = {}
    notes = _notes_on_backbone(config, backbone, method)
    for name, manifest in manifests.items():
        is_train = trains and name == config.data.train
        splits[name], found = _open_split(
            config, manifest, method, backbone, world, is_train=is_train
        )
        notes += found
    if trains and config.data.train is not None:
        notes += notes_on_training(config, manifests[config.data.train])
    for note in dict.fromkeys(notes) if world.is_main else ():
        print(f"warning: {note}", file=sys.stderr)
    task = Task(
        config=config,
        world=world,
        pool=pool,
        backbone=backbone,
        method=method.to(world.device),
        train=splits[config.data.train] if trains and config.data.train is not None else None,
        scored={name: splits[name] for name in _names_to_score(config)},
        base=None if config.eval.wise_ft is None else base_weights(method),
        text_files=_hash_text_files(config.text),
    )
    _check_loaders(task)
    _check_texts(task)
    return task


def _check_clips_together(config: RunConfig) -> None:
    """Raises: ConfigError for settings that a loss of clips among each other cannot have."""
    name, train = config.method.name, config.train
    if train.accumulation > 1:
        raise ConfigError(
            f"train.accumulation={train.accumulation}: {name} compares the clips that are computed at once with each "
            "other; set 1"
        )
    if train.label_smoothing > 0:
        raise ConfigError(
            f"train.label_smoothing={train.label_smoothing}: {name} trains towards clips of equal label, whose shares "
            "are its own; set 0"
        )


def _open_split(
    config: RunConfig,
    manifest: Manifest,
    method: Method,
    backbone: Backbone,
    world: World,
    *,
    is_train: bool,
) -> tuple[Split, list[str]]:
    """(a manifest with its texts, what a person should know of them); negatives and knowledge
    belong to training."""
    classes, text = manifest.info.classes, config.text
    sentences = class_sentences(classes, text)
    negatives = None
    if is_train and text.negatives is not None:
        negatives = negative_sentences(
            classes,
            text.negatives,
            sentences.num_sentences,
            texts=text.sentences,
            raw_names=text.raw_names,
        )
    texts = method.prepare_classes(sentences, negatives).to(world.device)
    notes = _notes_on(sentences, "class texts", method, backbone)
    if negatives is not None:
        notes += _notes_on(negatives, "negatives", method, backbone)
    keys = manifest.table["key"].to_pylist()
    features = read_sample_features(text, keys, backbone, is_train=is_train)
    split = Split(manifest, texts, features)
    return split, notes


def _notes_on_backbone(config: RunConfig, backbone: Backbone, method: Method) -> list[str]:
    """What was assumed of its weights, and what they hold that the method leaves out."""
    notes = [] if backbone.note is None else [backbone.note]
    if backbone.temporal_TE is None or method.temporal_TE is not None:
        return notes
    return [
        *notes,
        f"model.pretrained={config.model.pretrained}: its temporal embedding of {len(backbone.temporal_TE)} frames is "
        "left out, so that its features are others than it was tuned for; set method.temporal_position=learned",
    ]


def notes_on_training(config: RunConfig, manifest: Manifest) -> list[str]:
    """What is short of what the config says."""
    info, notes = manifest.info, []
    if info.missing > 0:
        with_clips = set(manifest.table["label"].to_pylist())
        notes.append(
            f"data.train={config.data.train}: {info.missing} of its {info.expected} clips are not in the pool, and "
            f"{len(info.classes) - len(with_clips)} of {len(info.classes)} classes have none"
        )
    if config.train.warmup_epochs >= config.train.epochs:
        notes.append(
            f"train.warmup_epochs={config.train.warmup_epochs:g}: is all of train.epochs={config.train.epochs}; the "
            "rate only rises"
        )
    return notes


def _notes_on(texts: ClassSentences, what: str, method: Method, backbone: Backbone) -> list[str]:
    """What a look-up found that a person should know, and how many texts are cut."""
    every = [sentence for of_class in texts.sentences for sentence in of_class]
    cut = cut_warning(backbone, every, num_slots=method.num_slots, what=what)
    return [*texts.notes, *([cut] if cut else [])]


def _check_text_files(config: RunConfig) -> None:
    """Raise ConfigError for text files that the method does not read, or one that it needs."""
    name, traits = config.method.name, config.method.traits
    given = [key for key in ("negatives", "knowledge", "attributes") if getattr(config.text, key)]
    unread = [key for key in given if key not in traits.reads]
    for key in unread:
        if key in traits.reads_with:
            raise ConfigError(
                f"text.{key}: {name} reads it with {traits.reads_with[key]}; set both or none of "
                "them"
            )
    if unread:
        keys = ", ".join(f"text.{key}" for key in unread)
        what = "none of them" if len(unread) > 1 else "no such file"
        raise ConfigError(
            f"{keys}: method {name} reads {what}; leave out what it does not read, or set "
            f"method.name={_reader_of(unread[-1])}"
        )
    for key, setting in traits.reads_with.items():
        if key in traits.reads and key not in given:
            raise ConfigError(
                f"{setting}: needs text.{key}=[FILE], which `bmpt {key} POOL MANIFEST --out FILE` "
                "makes of each list"
            )


def _reader_of(key: str) -> str:
    """Return the first method that can read a key of the section `text`."""
    for name, (_, settings) in METHODS.items():
        traits = settings.model_validate({}).traits
        if key in traits.reads or key in traits.reads_with:
            return name
    raise ValueError(f"no method reads text.{key}")


def _hash_text_files(text: TextSettings) -> dict[str, str]:
    """What the texts are that `text` names by their paths alone. Raises: ConfigError."""
    files = {
        key: getattr(text, key) for key in ("sentences", "paraphrases", "negatives", "knowledge")
    }
    files |= {f"attributes.{number}": file for number, file in enumerate(text.attributes)}
    return {key: _hash_text_file(key, file) for key, file in files.items() if file is not None}


def _hash_text_file(key: str, file: Path) -> str:
    """Raises: ConfigError for a file that is gone: scoring has not read what belongs to
    training."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"text.{key}={file}: cannot be read: {error.strerror or error}; correct it, or set text.{key}=null and "
            "another run.dir where nothing is trained"
        ) from None


@torch.no_grad()
def _check_texts(task: Task) -> None:
    """Raises: ConfigError for two classes with one feature a sentence, which no training could tell
    apart."""
    file = task.config.text.sentences or task.config.text.paraphrases
    for name, split in {
        **({"data.train": task.train} if task.train else {}),
        **task.scored,
    }.items():
        classes = split.manifest.info.classes
        groups_of: list[tuple[int, ...]] = [()] * len(
            classes
        )  # for each sentence, which class features are equal
        for index in range(split.texts.num_sentences):
            _, groups_K = task.method.encode_sentence(split.texts, index)[COSINE].unique(
                dim=0, return_inverse=True
            )
            groups_of = [
                (*groups, group) for groups, group in zip(groups_of, groups_K.tolist(), strict=True)
            ]
            if len(set(groups_of)) == len(classes):
                break
        first_of: dict[tuple[int, ...], str] = {}
        for class_name, groups in zip(classes, groups_of, strict=True):
            if first_of.setdefault(groups, class_name) != class_name:
                raise ConfigError(
                    f"{name}: the classes {first_of[groups]!r} and {class_name!r} have the same text feature: "
                    f"{task.config.model.name} does not know their words, or their texts are equal; take another model "
                    f"or {f'other texts in {file}' if file is not None else 'text.template'}"
                )


def _names_to_score(config: RunConfig) -> list[str]:
    """Raises: ConfigError if there is nothing to score."""
    names = list(config.scored_manifests)
    if not names:
        raise ConfigError(
            "nothing to score: set eval.manifests=[base_to_novel/val_base] or data.val"
        )
    return names


def _check_loaders(task: Task) -> None:
    """Raises: ConfigError for an empty manifest, or a batch that its samples and the ranks cannot
    share."""
    if task.train is not None:
        require_samples(task.train.manifest)
        check_batch(
            len(task.train.manifest),
            batch_size=task.config.data.batch_size,
            accumulation=task.config.train.accumulation,
            world_size=task.world.size,
        )

    for split in task.scored.values():
        require_samples(split.manifest)
