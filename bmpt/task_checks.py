"""Checks of a config before and after what it names is opened, and warnings about it.

Checks raise ConfigError, FormatError or StorageError with one line that names the key or file, the
value and the cure. Warnings are sentences that the caller prints.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bmpt.augment import check_augmentations
from bmpt.clip.backbone import Backbone
from bmpt.config import RunConfig
from bmpt.methods import METHODS, find_method
from bmpt.methods.base import COSINE, ClassTexts, Method
from bmpt.runtime.distributed import World
from bmpt.texts.class_texts import ClassSentences, truncation_warning
from shards.errors import ConfigError
from shards.reader import Manifest


def check_config(config: RunConfig, world: World, *, trains: bool) -> None:
    """Check settings against each other, before anything is opened.

    Raises:
        ConfigError: The settings cannot be run.
    """
    if config.train.precision == "fp16" and world.device.type != "cuda":
        raise ConfigError("train.precision=fp16: needs a GPU; set bf16 or fp32")
    if trains and config.data.train is None:
        raise ConfigError(
            "data.train is not set: name a manifest, for example --set "
            "data.train=few_shot/train_k16 (a method that trains nothing is scored with `bmpt "
            "eval`)"
        )
    # Configs can be made without `load_config`, which has checked the name.
    find_method(config.method.name)
    check_augmentations(config.data.augment)
    if not config.scored_manifests:
        raise ConfigError(
            "nothing to score: set eval.manifests=[base_to_novel/val_base] or data.val"
        )
    if trains and config.method.traits.compares_clips:
        check_compared_clips(config)
    check_text_files(config)


def check_compared_clips(config: RunConfig) -> None:
    """Check that a method whose loss compares clips sees all of them at once.

    Raises:
        ConfigError: A setting splits a batch or smooths its labels.
    """
    name, train = config.method.name, config.train
    if train.accumulation > 1:
        raise ConfigError(
            f"train.accumulation={train.accumulation}: {name} compares the clips that are computed "
            "at once with each other; set 1"
        )
    if train.label_smoothing > 0:
        raise ConfigError(
            f"train.label_smoothing={train.label_smoothing}: {name} trains towards all clips of "
            "the same label and has its own targets; set 0"
        )


def check_text_files(config: RunConfig) -> None:
    """Check that the method reads the files that `text` names, and has those that it needs.

    Raises:
        ConfigError: It does not read one, or lacks one.
    """
    name, traits = config.method.name, config.method.traits
    # A setting that would be ignored is refused.
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


def check_trains(method: Method) -> None:
    """Check that a method has parameters to train.

    Raises:
        ConfigError: It has none.
    """
    if not method.trained_groups():
        raise ConfigError(
            f"method.name={method.settings.name}: trains nothing; score it with `bmpt eval CONFIG`"
        )


@torch.no_grad()
def check_class_texts(
    config: RunConfig, method: Method, texts_by_name: Mapping[str, ClassTexts]
) -> None:
    """Check that the text features of all classes differ.

    No training could tell classes apart whose text features are identical for every sentence.

    Args:
        config: The config.
        method: The method, on the device of the texts.
        texts_by_name: Class texts by the name of their list.

    Raises:
        ConfigError: Two classes of a list have the same features.
    """
    file = config.text.sentences or config.text.paraphrases
    for name, texts in texts_by_name.items():
        equal = _equal_classes(method, texts)
        if equal is not None:
            others = "text.template" if file is None else f"other texts in {file}"
            raise ConfigError(
                f"{name}: the classes {equal[0]!r} and {equal[1]!r} have the same text feature: "
                f"{config.model.name} does not know their words, or their texts are equal; take "
                f"another model or {others}"
            )


def _equal_classes(method: Method, texts: ClassTexts) -> tuple[str, str] | None:
    """Return two classes whose features are equal for every sentence, or None."""
    # by class: for each sentence so far, the number of its feature among the distinct ones
    numbers_by_class: list[tuple[int, ...]] = [()] * len(texts.names)
    for index in range(texts.num_sentences):
        # Most lists differ in their first sentence, so the others are rarely encoded.
        features_KD = method.encode_sentence(texts, index)[COSINE]
        _, numbers_K = features_KD.unique(dim=0, return_inverse=True)
        numbers_by_class = [
            (*numbers, number)
            for numbers, number in zip(numbers_by_class, numbers_K.tolist(), strict=True)
        ]
        if len(set(numbers_by_class)) == len(texts.names):
            return None

    first_by_numbers: dict[tuple[int, ...], str] = {}
    for class_name, numbers in zip(texts.names, numbers_by_class, strict=True):
        first = first_by_numbers.setdefault(numbers, class_name)
        if first != class_name:
            return first, class_name
    return None


def backbone_warnings(config: RunConfig, backbone: Backbone, method: Method) -> list[str]:
    """Return warnings about assumptions on the weights, and about weights that are left out."""
    warnings = [] if backbone.note is None else [backbone.note]
    if backbone.temporal_TE is not None and method.temporal_TE is None:
        warnings.append(
            f"model.pretrained={config.model.pretrained}: its temporal embedding of "
            f"{len(backbone.temporal_TE)} frames is left out, so its features differ from those it "
            "was tuned for; set method.temporal_position=learned"
        )
    return warnings


def training_warnings(config: RunConfig, manifest: Manifest) -> list[str]:
    """Return warnings about missing training clips and a warm-up that never ends."""
    info, warnings = manifest.info, []
    if info.missing > 0:
        # A class without a clip in the pool has no row with its label.
        num_classes = len(info.classes)
        num_empty = num_classes - len(set(manifest.table["label"].to_pylist()))
        warnings.append(
            f"data.train={config.data.train}: {info.missing} of its {info.expected} clips are not "
            f"in the pool, and {num_empty} of {num_classes} classes have none"
        )
    if config.train.warmup_epochs >= config.train.epochs:
        warnings.append(
            f"train.warmup_epochs={config.train.warmup_epochs:g}: is all of "
            f"train.epochs={config.train.epochs}; the rate only rises"
        )
    return warnings


def text_warnings(
    sentences: ClassSentences, what: str, method: Method, backbone: Backbone
) -> list[str]:
    """Return warnings about class texts: of their look-up, and of texts that are truncated.

    Args:
        sentences: The texts.
        what: What they are, as the warning says it.
        method: The method, whose prompts shorten texts.
        backbone: The CLIP with the tokenizer.
    """
    every = [text for texts in sentences.sentences for text in texts]
    truncated = truncation_warning(backbone, every, num_slots=method.num_slots, what=what)
    return [*sentences.notes, *([truncated] if truncated else [])]
