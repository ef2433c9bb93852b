"""Properties that every method has for any weights."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bmpt.methods import METHODS
from bmpt.methods.base import COSINE, Features, Method
from bmpt.methods.bmpt import NEGATIVE
from bmpt.texts.class_texts import NEGATIVE_TEMPLATE, ClassSentences
from shards.errors import ConfigError
from tests.bmpt.methods.small_methods import CLASSES, TUNES, method_of, sentences, targets
from tests.bmpt.parity.drawn import RELEASED, Drawn
from tests.bmpt.tiny import VISION_WIDTH, clip_inputs, load_tiny, random_frames, training_loss
from tests.rules.sources import ROOT, relative, source_files, tree_of

NO_PROMPTS = {"vision_depth": 0, "text_depth": 0}
ALL_BLOCKS = [0, 1, 2, 3]
# what leaves of a method nothing but CLIP where a clip is one frame
PLAIN: dict[str, list[dict[str, Any]]] = {
    "zero_shot": [{}],
    "vifi_clip": [{"tune": "all"}, {"tune": "prompts", **NO_PROMPTS}],
    "bdc_clip": [{"tune": "all"}],
    "bmpt": [{"exchange": "none", **NO_PROMPTS}],
    "bike": [
        {"tune": "image", "temporal_layers": 0, "interaction": kind} for kind in ("DP", "VCS")
    ],
}
TRAINED = [name for name in METHODS if name != "zero_shot"]
STEP = 2e-2


@torch.no_grad()
def features_of(method: Method, frames_BVTCHW: torch.Tensor) -> tuple[Features, Features]:
    """(clips, classes) in scoring."""
    texts = method.eval().prepare_classes(sentences())
    return method.encode_clips(clip_inputs(frames_BVTCHW)), method.class_features(texts)


@torch.no_grad()
def logits_of(method: Method, frames_BVTCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """All kinds of logits [B, V, K] in scoring."""
    return method.logits(*features_of(method, frames_BVTCHW))


def assert_same(ours: Features, theirs: Features) -> None:
    """Of all kinds, but for the rounding of sums in another order."""
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-4, atol=1e-4)


def farthest(ours: Features, theirs: Features) -> float:
    """The largest difference of any kind."""
    return max((ours[kind] - theirs[kind]).abs().max().item() for kind in ours)


@pytest.mark.parametrize(
    ("name", "changes"), [(name, changes) for name in PLAIN for changes in PLAIN[name]]
)
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_a_clip_of_one_frame_has_the_logits_of_plain_clip(
    clip: Path, name: str, changes: dict[str, Any], causal: bool
) -> None:
    method = method_of(
        clip, name, num_frames=1, space_time_blocks=ALL_BLOCKS, causal=causal, **changes
    )
    frames, model = random_frames(3, 1, 1, 3, 32, 32), load_tiny(clip).model
    images_BD = F.normalize(model.encode_image(frames.flatten(0, 2)), dim=-1)
    texts_KD = F.normalize(model.encode_text(method.tokenize(sentences().at(0))), dim=-1)
    scale = 1.0 if name == "bike" else model.logit_scale.exp()
    torch.testing.assert_close(
        logits_of(method, frames)[COSINE][:, 0],
        scale * images_BD @ texts_KD.T,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [("bmpt", {"exchange": "none"}), ("vifi_clip", {"tune": "prompts"})],
    ids=["bmpt", "vifi_clip"],
)
@pytest.mark.parametrize("without", ["vision", "text"])
def test_a_tower_with_prompts_of_depth_0_equals_a_tower_without_prompts(
    clip: Path, name: str, changes: dict[str, Any], without: str
) -> None:
    frames = random_frames(2, 1, 4, 3, 32, 32)
    plain = features_of(method_of(clip, "zero_shot"), frames)
    bare = features_of(method_of(clip, name, **changes, **{f"{without}_depth": 0}), frames)
    for tower, ours, theirs in zip(("vision", "text"), bare, plain, strict=True):
        assert torch.equal(ours[COSINE], theirs[COSINE]) == (tower == without)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("trains", [False, True])
@torch.no_grad()
def test_class_features_do_not_depend_on_the_clips_of_a_batch(
    clip: Path, name: str, trains: bool
) -> None:
    """Those of `exchange: batch_gated` do, see `test_batch_gated.py`."""
    method = method_of(clip, name, tune=TUNES[name]).train(trains)
    texts = method.prepare_classes(
        sentences(), sentences() if "negatives" in method.traits.reads else None
    )
    batches = [random_frames(num_clips, 1, 4, 3, 32, 32, seed=num_clips) for num_clips in (2, 3)]
    one, other = (
        method.encode_together(clip_inputs(frames, torch.ones(len(frames))), texts)[1]
        for frames in batches
    )
    assert all(torch.equal(value, other[kind]) for kind, value in one.items())
    assert one.keys() == other.keys() >= {COSINE}


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_class_features_do_not_depend_on_the_other_classes(clip: Path, name: str) -> None:
    method = method_of(clip, name, tune=TUNES[name]).eval()
    long = " ".join(["very"] * 60)
    both = ClassSentences(
        ("walk", "run"), (("a person going to walk",), (f"a {long} quick person",))
    )
    alone = ClassSentences(both.classes[:1], both.sentences[:1])
    together, by_itself = (
        method.class_features(method.prepare_classes(these)) for these in (both, alone)
    )
    shapes = {kind: value.shape for kind, value in by_itself.items() if value.ndim > 0}
    # words of a shorter text alone have fewer places; those behind its EOT are masked
    first = {
        kind: together[kind][tuple(slice(size) for size in shape)] for kind, shape in shapes.items()
    }
    assert_same(first, {kind: by_itself[kind] for kind in shapes})
    assert not any(
        together[kind][:1, by_itself[kind].shape[1] :].any() for kind in {"is_word"} & shapes.keys()
    )


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_clip_features_do_not_depend_on_the_other_clips(clip: Path, name: str) -> None:
    method = method_of(clip, name, tune=TUNES[name]).eval()
    frames = random_frames(3, 2, 4, 3, 32, 32)
    together, alone = (
        method.encode_clips(clip_inputs(frames)),
        method.encode_clips(clip_inputs(frames[1:2])),
    )
    assert_same({kind: value[1:2] for kind, value in together.items()}, alone)


def no_temporal_layers(name: str) -> dict[str, Any]:
    """Settings without which BIKE's temporal transformer would depend on the order of frames."""
    return {"temporal_layers": 0} if name == "bike" else {}


@pytest.mark.parametrize("name", METHODS)
def test_logits_without_a_temporal_position_do_not_depend_on_the_order_of_frames(
    clip: Path, name: str
) -> None:
    """Bike's temporal transformer says it, see `test_bike.py`; a causal mask too, see
    `test_seam.py`."""
    method = method_of(clip, name, tune=TUNES[name], **no_temporal_layers(name))
    frames = random_frames(2, 2, 4, 3, 32, 32)
    in_order = logits_of(method, frames)
    for order in ([2, 0, 3, 1], [3, 2, 1, 0]):
        assert_same(logits_of(method, frames[:, :, order]), in_order)
    assert farthest(logits_of(method, frames[:, :, [0, 0, 1, 1]]), in_order) > 1e-2, (
        "it does read the frames"
    )


@pytest.mark.parametrize("name", TRAINED)
def test_a_new_temporal_position_changes_logits_only_once_it_is_trained(
    clip: Path, name: str
) -> None:
    frames = random_frames(1, 1, 4, 3, 32, 32)
    without, learned = (
        method_of(clip, name, tune=TUNES[name], temporal_position=kind, **no_temporal_layers(name))
        for kind in ("none", "learned")
    )
    before = logits_of(without, frames)
    assert all(
        torch.equal(value, before[kind]) for kind, value in logits_of(learned, frames).items()
    )
    assert learned.temporal_TE is not None
    with torch.no_grad():
        learned.temporal_TE.copy_(random_frames(4, VISION_WIDTH, seed=5))
    assert farthest(logits_of(learned, frames), logits_of(learned, frames.flip(2))) > 1e-2


def moving_bar(num_clips: int) -> tuple[torch.Tensor, list[int]]:
    """Clips of a bright bar that goes to the right, each followed by its reverse; labels 0 and
    1."""
    clips = 0.3 * random_frames(num_clips, 1, 4, 3, 32, 32)
    for frame in range(4):
        clips[:, :, frame, :, :, 8 * frame : 8 * (frame + 1)] += 3.0
    return torch.stack([clips, clips.flip(2)], dim=1).flatten(0, 1), [0, 1] * num_clips


@pytest.mark.parametrize("name", ["vifi_clip", "bmpt"])
@pytest.mark.parametrize("temporal", ["none", "learned"])
def test_training_learns_the_direction_of_motion_only_with_a_temporal_position(
    clip: Path, name: str, temporal: str
) -> None:
    method = method_of(clip, name, tune="prompts", temporal_position=temporal)
    texts = method.prepare_classes(
        ClassSentences(("right", "left"), (("to the right",), ("to the left",)))
    )
    frames, labels = moving_bar(3)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=STEP)
    for _ in range(25):
        optimizer.zero_grad()
        training_loss(method, frames, texts, targets(labels)).backward()
        optimizer.step()
    with torch.no_grad():
        scores_BK = method.eval().class_scores(
            method.encode_clips(clip_inputs(frames)), method.class_features(texts)
        )
    right = (scores_BK.argmax(dim=1) == torch.tensor(labels)).float().mean().item()
    if temporal == "learned":
        assert right == 1.0
    else:
        torch.testing.assert_close(scores_BK[::2], scores_BK[1::2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_in_bf16_has_the_loss_and_finite_float32_gradients(clip: Path, name: str) -> None:
    method = method_of(clip, name, tune=TUNES[name], temporal_position="learned").train()
    texts, frames = method.prepare_classes(sentences()), random_frames(3, 1, 4, 3, 32, 32)
    with torch.no_grad():
        exact = training_loss(method, frames, texts, targets([0, 1, 2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = training_loss(method, frames, texts, targets([0, 1, 2]))
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05, abs=0.2)
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert gradients
    assert all(
        gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients
    )


@settings(max_examples=12)
@example(text_tokens=8, exchange="none", template="{}")
@example(text_tokens=16, exchange="bidirectional", template="{}")
@example(text_tokens=72, exchange="bidirectional", template=NEGATIVE_TEMPLATE)
@given(
    text_tokens=st.integers(2, 76),
    exchange=st.sampled_from(["none", "bidirectional"]),
    template=st.sampled_from(["{}", NEGATIVE_TEMPLATE]),
)
@torch.no_grad()
def test_short_negatives_are_apart_or_refused(
    text_tokens: int, exchange: str, template: str
) -> None:
    """In the release prompts overwrite all words of a short one, and such negatives become one
    vector."""
    drawn = Drawn(replace(RELEASED, head_width=16, vision_layers=2, text_layers=3))
    sized: dict[str, Any] = {"vision_depth": 2, "text_depth": 3, "text_tokens": text_tokens}
    method = drawn.method("bmpt", exchange=exchange, blocks=[], **sized).train()
    negatives = ClassSentences(
        CLASSES, tuple((template.format(name),) for name in ("sit", "stand", "lie"))
    )
    long = " ".join(["indeed"] * 72)  # the classes' own texts are never the short ones
    classes = ClassSentences(CLASSES, tuple((f"{name} {long}",) for name in CLASSES))
    words = len(template.split())
    room = (
        words if exchange == "none" else 77 - 2 - words
    )  # its last word must stay; SOT and EOT do
    if text_tokens > room:
        with pytest.raises(ConfigError, match=r"method\.(text_tokens=|exchange=none overwrites)"):
            method.prepare_classes(classes, negatives)
        return
    features_KD = method.encode_sentence(method.prepare_classes(classes, negatives))[NEGATIVE]
    assert torch.pdist(features_KD).min() > 1e-3  # collapsed ones are equal to 1e-7


def test_no_model_names_a_device_or_a_half_precision() -> None:
    files = [
        *source_files("bmpt/methods"),
        *(ROOT / "bmpt" / "clip" / f"{name}.py" for name in ("towers", "backbone")),
    ]
    assert len(files) > 12
    named = [
        (relative(file), node.lineno)
        for file in files
        for node in ast.walk(tree_of(file))
        if (
            isinstance(node, ast.Attribute) and node.attr in {"cuda", "half", "float16", "bfloat16"}
        )
        or (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith("cuda")
        )
    ]
    assert named == [], "a model runs where and in what it is put"
