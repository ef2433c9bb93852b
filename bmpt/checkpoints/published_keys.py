"""What the checkpoints that ViFi-CLIP, BDC-CLIP, BMPT and BIKE publish hold, key by key.

The first three save no token embedding: they compute the embeddings of their class texts once,
    outside the model,
and keep those as buffers. ViFi-CLIP calls its input prompt VPT and the deeper ones VPT_shallow;
BMPT the reverse."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bmpt.clip.weights import without_prefixes

Group = Literal["clip", "prompts", "heads", "dropped"]

SYSTEMS = ("vifi_clip", "bdc_clip", "bmpt", "bike")
TOKEN_EMBEDDING = "token_embedding.weight"
# entries of a checkpoint beside its state dicts, which importing leaves alone
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
    "embeddings of the training classes' texts, made anew from the class texts of each manifest"
)
_DEAD = "never used by the released forward"
_ADAPTERS = r"logits_scale_vision|(?:vision|text)_norm\.(?:weight|bias)|(?:vision|text)_reduce\.weight|vision_[qk]_proj\.weight"
_CLASSIFIER = r"vision_bdc_head(?:_downstream)?\.(?:weight|bias)"
_BLOCK = r"transformer\.resblocks\.(\d+)"
_RESIDUAL_BLOCK = (
    *(
        f"attn.{name}"
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    ),
    *(
        f"{layer}.{name}"
        for layer in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for name in ("weight", "bias")
    ),
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
        "vision_reduce.weight",
        "text_reduce.weight",
        "vision_q_proj.weight",
        "vision_k_proj.weight",
    }
    | {f"{tower}_norm.{name}" for tower in ("vision", "text") for name in ("weight", "bias")}
)


def _one_of(*names: str) -> str:
    """A pattern that these names alone match."""
    return f"(?:{'|'.join(re.escape(name) for name in names)})"


@dataclass(frozen=True)
class Rule:
    """Keys that match `pattern` whole belong to `group`; target: the CLIP name, or why they are
    dropped."""

    pattern: str
    group: Group
    target: str = ""


_VIDEO_CLIP = (  # CLIP inside ViFi-CLIP, BDC-CLIP and BMPT
    Rule(
        r"prompt_learner\.(?:token_prefix|token_suffix|(?:neg_)?complete_text_embeddings)",
        group="dropped",
        target=_BUFFER,
    ),
    Rule(r"image_encoder\.(.+)", group="clip", target=r"visual.\1"),
    Rule(r"text_encoder\.(.+)", group="clip", target=r"\1"),
)
RULES: Mapping[str, tuple[Rule, ...]] = {  # the first that matches counts
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
    """The keys of a checkpoint by purpose: clip and dropped with their CLIP name and reason."""

    clip: dict[str, str] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def state_of(system: str, loaded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the state dict without prefixes, entries that are left out); BIKE's two become one, under
    their names.

    Raises: TypeError for what is no mapping, KeyError naming the entry that is not there,
        ValueError naming entries
    that nothing explains."""
    if not isinstance(loaded, Mapping):
        raise TypeError(f"{type(loaded).__name__} is no mapping")
    names = BIKE_STATES if system == "bike" else ("model",)
    if system != "bike" and "model" not in loaded:
        return without_prefixes(loaded), []  # the state dict itself
    others = sorted(loaded.keys() - set(names))
    unexplained = [name for name in others if name not in LEFT_OUT]
    if unexplained:
        raise ValueError(", ".join(unexplained))
    states = {name: without_prefixes(loaded[name]) for name in names}
    if system != "bike":
        return states["model"], others
    return {
        f"{name}.{key}": value for name, state in states.items() for key, value in state.items()
    }, others


def sort_keys(system: str, keys: Iterable[str], clip_names: Collection[str]) -> SortedKeys:
    """Sort the keys of a system's checkpoint by `RULES`; clip_names: all weights of the base model.

    missing: keys that should be there, in the checkpoint's spelling where it has one for them."""
    found = SortedKeys()
    for key in keys:
        rule = next((rule for rule in RULES[system] if re.fullmatch(rule.pattern, key)), None)
        if rule is None:
            found.unexpected.append(key)
        elif rule.group == "clip":
            name = re.sub(rule.pattern, rule.target, key)
            if name in clip_names:
                found.clip[key] = name
            else:
                found.unexpected.append(key)
        elif rule.group == "dropped":
            found.dropped[key] = rule.target
        else:
            (found.prompts if rule.group == "prompts" else found.heads).append(key)
    given = {TOKEN_EMBEDDING} if system != "bike" else set()
    found.missing.extend(sorted(set(clip_names) - set(found.clip.values()) - given))
    found.missing.extend(sorted(_expected_prompts(system, found.prompts) - set(found.prompts)))
    found.missing.extend(sorted(_expected_heads(system, found.heads) - set(found.heads)))
    return found


def deep_prompts(keys: Iterable[str], tower: str) -> dict[int, str]:
    """The prompts of blocks 1 and deeper of the `image` or `text` tower: {block: key},
    ascending."""
    matches = [re.match(rf"{tower}_encoder\.{_BLOCK}\.", key) for key in keys]
    return dict(sorted((int(match[1]), match.string) for match in matches if match))


def has_attributes(keys: Iterable[str]) -> bool:
    """Whether BIKE's attributes head, or a part of it, is among the keys."""
    return not _BIKE_ATTRIBUTES.isdisjoint(keys)


def temporal_layers(keys: Iterable[str]) -> int:
    """Blocks of BIKE's temporal transformer, counted to the deepest: 6 in what it published, 0
    without one."""
    matches = [re.match(_BIKE_BLOCK, key) for key in keys]
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _expected_prompts(system: str, keys: Collection[str]) -> set[str]:
    """Prompts stand in blocks 1, 2, ... without a gap, over an input prompt where the system has
    one."""
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
    """A head of BIKE is there whole or not at all; BDC-CLIP's adapters and one classifier always
    are."""
    if system == "bdc_clip":
        classifier = "vision_bdc_head"
        if not any(key.startswith(f"{classifier}.") for key in keys):
            classifier = "vision_bdc_head_downstream"
        return {*_BDC_ADAPTERS, f"{classifier}.weight", f"{classifier}.bias"}
    if system != "bike":
        return set()
    blocks = [
        f"{BIKE_STATES[1]}.transformer.resblocks.{block}"
        for block in range(max(1, temporal_layers(keys)))
    ]
    temporal = {
        _BIKE_POSITIONS,
        *(f"{block}.{name}" for block in blocks for name in _RESIDUAL_BLOCK),
    }
    heads = (temporal, _BIKE_ATTRIBUTES)
    return {name for head in heads if not head.isdisjoint(keys) for name in head}
