"""Rules for the keys of the published checkpoints of ViFi-CLIP, BDC-CLIP, BMPT and BIKE.

The first three save no token embedding: they embed their class texts once, outside the model, and
store the result as buffers. ViFi-CLIP names its input prompt VPT and the deeper ones VPT_shallow;
BMPT names them the other way round."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bmpt.clip.weights import without_prefixes

Group = Literal["clip", "prompts", "heads", "dropped"]

SYSTEMS = ("vifi_clip", "bdc_clip", "bmpt", "bike")
TOKEN_EMBEDDING = "token_embedding.weight"
# entries of a checkpoint beside its state dicts, which an import ignores
LEFT_OUT = frozenset(
    {
        "optimizer",
        "lr_scheduler",
        "scaler",
        "max_accuracy",
        "epoch",
        "config",
        "optimizer_state_dict",
    }
)
BIKE_STATES = ("model_state_dict", "fusion_model_state_dict")
INPUT_PROMPTS = {
    ("vifi_clip", "image"): "image_encoder.VPT",
    ("vifi_clip", "text"): "prompt_learner.ctx",
    ("bmpt", "image"): "image_encoder.VPT_shallow",
}
_DEEP_PROMPT = {"vifi_clip": "VPT_shallow", "bmpt": "VPT"}

_BUFFER = (
    "embeddings of the training classes' texts, computed again from each manifest's class texts"
)
_DEAD = "never used by the released forward"
_ADAPTERS = (
    r"logits_scale_vision|(?:vision|text)_norm\.(?:weight|bias)|(?:vision|text)_reduce\.weight"
    r"|vision_[qk]_proj\.weight"
)
_CLASSIFIER = r"vision_bdc_head(?:_downstream)?\.(?:weight|bias)"
_BLOCK = r"transformer\.resblocks\.(\d+)"
_RESIDUAL_BLOCK = (
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "ln_1.weight",
    "ln_1.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)
_BIKE_POSITIONS = f"{BIKE_STATES[1]}.frame_position_embeddings.weight"
_BIKE_BLOCK = rf"{BIKE_STATES[1]}\.{_BLOCK}\."
_BIKE_ATTRIBUTES = frozenset(
    f"{BIKE_STATES[1]}.{tower}_fc.{layer}.{name}"
    for tower in ("query", "sentence")
    for layer in (0, 2)
    for name in ("weight", "bias")
)
_BDC_ADAPTERS = frozenset(
    {
        "logits_scale_vision",
        "vision_norm.weight",
        "vision_norm.bias",
        "text_norm.weight",
        "text_norm.bias",
        "vision_reduce.weight",
        "text_reduce.weight",
        "vision_q_proj.weight",
        "vision_k_proj.weight",
    }
)


def _one_of(*names: str) -> str:
    """Return a pattern that matches only these names."""
    return f"(?:{'|'.join(re.escape(name) for name in names)})"


@dataclass(frozen=True)
class Rule:
    """Assigns the keys that match a pattern to a group."""

    pattern: str
    """Regular expression for the whole key."""
    group: Group
    """Purpose of the keys."""
    target: str = ""
    """Replacement that gives the CLIP name, or the reason for which keys are dropped."""


# CLIP inside ViFi-CLIP, BDC-CLIP and BMPT
_VIDEO_CLIP = (
    Rule(
        r"prompt_learner\.(?:token_prefix|token_suffix|(?:neg_)?complete_text_embeddings)",
        group="dropped",
        target=_BUFFER,
    ),
    Rule(r"image_encoder\.(.+)", group="clip", target=r"visual.\1"),
    Rule(r"text_encoder\.(.+)", group="clip", target=r"\1"),
)
# The first rule that matches a key counts.
RULES: Mapping[str, tuple[Rule, ...]] = {
    "vifi_clip": (
        Rule(
            rf"prompt_learner\.ctx|image_encoder\.VPT|(?:image|text)_encoder\.{_BLOCK}\.VPT_shallow",
            group="prompts",
        ),
        *_VIDEO_CLIP,
        Rule("logit_scale", group="clip", target="logit_scale"),
    ),
    "bdc_clip": (
        Rule(f"{_ADAPTERS}|{_CLASSIFIER}", group="heads"),
        *_VIDEO_CLIP,
        Rule("logit_scale_clip", group="clip", target="logit_scale"),
    ),
    "bmpt": (
        Rule(rf"image_encoder\.VPT_shallow|(?:image|text)_encoder\.{_BLOCK}\.VPT", group="prompts"),
        Rule(f"{_ADAPTERS}|{_CLASSIFIER}", group="dropped", target=_DEAD),
        Rule(
            r"(?:image|text)_encoder\.transformer\.(?:resblocks\.\d+\.cross_modal_interaction"
            r"|cross_modal_interactions\.\d+)\.(?:v2t|t2v)_mlp\.[02]\.(?:weight|bias)",
            group="dropped",
            target=_DEAD,
        ),
        *_VIDEO_CLIP,
        Rule("logit_scale_clip", group="clip", target="logit_scale"),
    ),
    "bike": (
        Rule(_one_of(_BIKE_POSITIONS, *sorted(_BIKE_ATTRIBUTES)), group="heads"),
        Rule(_BIKE_BLOCK + _one_of(*_RESIDUAL_BLOCK), group="heads"),
        Rule(r"model_state_dict\.(.+)", group="clip", target=r"\1"),
    ),
}


@dataclass(frozen=True)
class SortedKeys:
    """The keys of a checkpoint by their purpose."""

    clip: dict[str, str] = field(default_factory=dict)
    """CLIP's weights, {key: CLIP's name}."""
    prompts: list[str] = field(default_factory=list)
    """Prompt tokens."""
    heads: list[str] = field(default_factory=list)
    """Adapters, classifiers and other layers beside CLIP."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Keys without use, {key: reason}."""
    missing: list[str] = field(default_factory=list)
    """Expected keys that the checkpoint does not have, in its own spelling where there is one."""
    unexpected: list[str] = field(default_factory=list)
    """Keys that no rule covers."""


def split_published_state(
    system: str, loaded: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Split the content of a checkpoint file into its state dict and the other entries.

    Args:
        system: one of SYSTEMS.
        loaded: content of the file.

    Returns:
        The state dict without prefixes such as `module.`, and the names of the other entries.
        BIKE's two state dicts become one, with their names as prefixes.

    Raises:
        TypeError: if the content is not a mapping.
        KeyError: naming a state dict that is missing.
        ValueError: naming entries that are neither state dicts nor in LEFT_OUT.
    """
    if not isinstance(loaded, Mapping):
        raise TypeError(f"{type(loaded).__name__} is not a mapping")

    names = BIKE_STATES if system == "bike" else ("model",)
    if system != "bike" and "model" not in loaded:
        # The content is the state dict itself.
        return without_prefixes(loaded), []

    others = sorted(loaded.keys() - set(names))
    unexplained = [name for name in others if name not in LEFT_OUT]
    if unexplained:
        raise ValueError(", ".join(unexplained))

    if system != "bike":
        return without_prefixes(loaded["model"]), others
    joined = {}
    for name in names:
        for key, value in without_prefixes(loaded[name]).items():
            joined[f"{name}.{key}"] = value
    return joined, others


def sort_keys(system: str, keys: Iterable[str], clip_names: Collection[str]) -> SortedKeys:
    """Sort the keys of a checkpoint by `RULES`.

    Args:
        system: one of SYSTEMS.
        keys: of the checkpoint.
        clip_names: names of all weights of the base model.
    """
    result = SortedKeys()
    for key in keys:
        rule = next((rule for rule in RULES[system] if re.fullmatch(rule.pattern, key)), None)
        if rule is None:
            result.unexpected.append(key)
        elif rule.group == "clip":
            name = re.sub(rule.pattern, rule.target, key)
            if name in clip_names:
                result.clip[key] = name
            else:
                result.unexpected.append(key)
        elif rule.group == "dropped":
            result.dropped[key] = rule.target
        elif rule.group == "prompts":
            result.prompts.append(key)
        else:
            result.heads.append(key)

    # BIKE saves the token embedding, the others do not.
    not_saved = {TOKEN_EMBEDDING} if system != "bike" else set()
    result.missing.extend(sorted(set(clip_names) - set(result.clip.values()) - not_saved))
    result.missing.extend(sorted(_expected_prompts(system, result.prompts) - set(result.prompts)))
    result.missing.extend(sorted(_expected_heads(system, result.heads) - set(result.heads)))
    return result


def deep_prompts(keys: Iterable[str], tower: str) -> dict[int, str]:
    """Return the prompts of blocks 1 and deeper, {block: key}, in ascending order.

    Args:
        keys: of a checkpoint.
        tower: `image` or `text`.
    """
    matches = [re.match(rf"{tower}_encoder\.{_BLOCK}\.", key) for key in keys]
    return dict(sorted((int(match[1]), match.string) for match in matches if match))


def has_attributes(keys: Iterable[str]) -> bool:
    """Return whether a part of BIKE's attributes head is among the keys."""
    return not _BIKE_ATTRIBUTES.isdisjoint(keys)


def temporal_layers(keys: Iterable[str]) -> int:
    """Return the number of blocks of BIKE's temporal transformer, up to the deepest key.

    Its published checkpoints have 6; 0 means that there is none.
    """
    matches = [re.match(_BIKE_BLOCK, key) for key in keys]
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _expected_prompts(system: str, keys: Collection[str]) -> set[str]:
    """Return the prompts up to the deepest block: no block is left out between them.

    There is also an input prompt if the system has one.
    """
    expected: set[str] = set()
    for tower in ("image", "text"):
        deepest = max(deep_prompts(keys, tower), default=0)
        expected |= {
            f"{tower}_encoder.transformer.resblocks.{block}.{_DEEP_PROMPT[system]}"
            for block in range(1, deepest)
        }
        if deepest > 0 and (system, tower) in INPUT_PROMPTS:
            expected.add(INPUT_PROMPTS[system, tower])
    return expected


def _expected_heads(system: str, keys: Collection[str]) -> set[str]:
    """Return the keys of the heads: a head of BIKE is complete or absent, and BDC-CLIP always has
    its adapters and one classifier."""
    if system == "bdc_clip":
        classifier = "vision_bdc_head"
        if not any(key.startswith(f"{classifier}.") for key in keys):
            classifier = "vision_bdc_head_downstream"
        return {*_BDC_ADAPTERS, f"{classifier}.weight", f"{classifier}.bias"}
    if system != "bike":
        return set()

    temporal = {_BIKE_POSITIONS}
    for block in range(max(1, temporal_layers(keys))):
        prefix = f"{BIKE_STATES[1]}.transformer.resblocks.{block}"
        temporal |= {f"{prefix}.{name}" for name in _RESIDUAL_BLOCK}

    expected: set[str] = set()
    for head in (temporal, _BIKE_ATTRIBUTES):
        if not head.isdisjoint(keys):
            expected |= head
    return expected
