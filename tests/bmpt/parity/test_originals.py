"""Every method through its seam against the originals' formulas, for drawn weights, widths, depths
and counts.

`test_parity.py` has the stored outputs of the systems themselves; here nothing is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from bmpt.methods.base import ATTRIBUTES, COSINE, Method
from bmpt.methods.bdc_clip import CLASSIFIER, COVARIANCE, BdcClip
from bmpt.methods.bike import Bike
from bmpt.methods.bmpt import NEGATIVE, Bmpt
from bmpt.methods.components.losses import knowledge_logits
from bmpt.methods.vifi_clip import VifiClip
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.parity.drawn import RELEASED, Drawn, Rows, Sizes, drawn_like
from tests.bmpt.parity.stored_outputs import assert_close
from tests.bmpt.tiny import clip_inputs, random_frames

# an example costs 0.1 s, and so does a step of shrinking one, of which there are hundreds
FEW = settings(
    max_examples=12 if settings.get_current_profile_name() == "same" else 60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


SIZES = st.builds(
    Sizes,
    seed=st.integers(0, 10**9),
    head_width=st.sampled_from([8, 16]),
    vision_heads=st.integers(1, 3),
    vision_layers=st.integers(1, 5),
    text_heads=st.integers(1, 3),
    text_layers=st.integers(1, 4),
    grid=st.integers(1, 3),
    joint_eighths=st.integers(1, 3),
    quick_gelu=st.booleans(),
    context=st.sampled_from([24, 40, 77]),
    clips=st.integers(1, 3),
    views=st.integers(1, 2),
    frames=st.integers(1, 4),
    classes=st.integers(1, 5),
    sentences=st.integers(1, 3),
)
BLOCKS = st.sets(st.integers(0, 4)).map(sorted)
MATCHED = replace(RELEASED, clips=4)  # so that there is something to be told from


def draw_parameters(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Give a module drawn weights, and return them in float64."""
    module.load_state_dict(
        drawn_like({name: value.shape for name, value in module.state_dict().items()}, seed)
    )
    return {name: value.double() for name, value in module.state_dict().items()}


def draw_prompts(
    method: VifiClip | Bmpt, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Give a method prompts as large as other tokens, and return them (vision, text) in float64."""
    method.vision_LPE.copy_(random_frames(*method.vision_LPE.shape, seed=seed))
    method.text_LPE.copy_(random_frames(*method.text_LPE.shape, seed=seed + 1))
    return list(method.vision_LPE.double()), list(method.text_LPE.double())


def stacked(rows: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """[B, V, ...]."""
    return torch.stack([torch.stack(list(views)) for views in rows])


def assert_cost(ours: torch.Tensor, theirs: float) -> None:
    """Of float32 logits of up to 100, and of float64 ones."""
    assert ours.item() == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def assert_cosines(drawn: Drawn, method: Method, videos: Rows, texts: Rows) -> None:
    """Logits and scores over all sentences and views; logits and loss of a step with one of
    each."""
    scale = drawn.clip.scale
    joined = [naive.mean_sentence(of_class) for of_class in texts]
    expected = stacked(
        [[naive.scaled_cosines(scale, view, joined) for view in views] for views in videos]
    )
    ours = method.prepare_classes(drawn.sentences)
    clips, classes = (
        method.eval().encode_clips(clip_inputs(drawn.frames_BVTCHW)),
        method.class_features(ours),
    )
    assert_close(method.logits(clips, classes)[COSINE], expected)
    assert_close(method.class_scores(clips, classes), expected.mean(dim=1))
    step = [naive.scaled_cosines(scale, views[0], drawn.step(texts)) for views in videos]
    method.train()
    clips, classes = (
        method.encode_clips(clip_inputs(drawn.frames_BVTCHW[:, :1])),
        method.encode_sentence(drawn.drawn_texts(ours)),
    )
    assert_close(method.logits(clips, classes)[COSINE][:, 0], torch.stack(step))
    assert_cost(method.loss_sum(clips, classes, drawn.targets()), drawn.cross_entropies(step))


@FEW
@example(sizes=RELEASED, name="vifi_clip")
@given(sizes=SIZES, name=st.sampled_from(["vifi_clip", "zero_shot"]))
@torch.no_grad()
def test_vifi_clip_and_plain_clip_are_the_originals(sizes: Sizes, name: str) -> None:
    drawn = Drawn(sizes)
    method = drawn.method(name, tune="all")
    assert_cosines(drawn, method, drawn.videos(), drawn.texts(drawn.sentences))


@FEW
@example(sizes=RELEASED, depths=(9, 3), tokens=(6, 5))
@given(
    sizes=SIZES,
    depths=st.tuples(st.integers(0, 5), st.integers(1, 4)),
    tokens=st.tuples(st.integers(1, 4), st.integers(1, 6)),
)
@torch.no_grad()
def test_vifi_clips_prompts_are_the_originals(
    sizes: Sizes, depths: tuple[int, int], tokens: tuple[int, int]
) -> None:
    drawn = Drawn(sizes)
    sized: dict[str, Any] = {
        "vision_depth": depths[0],
        "vision_tokens": tokens[0],
        "text_depth": depths[1],
        "text_tokens": tokens[1],
    }
    method = drawn.method("vifi_clip", tune="prompts", **sized)
    assert isinstance(method, VifiClip)
    vision, text = draw_prompts(method, sizes.seed)
    spaced = tuple(
        tuple(text.replace("_", " ") for text in of_class) for of_class in drawn.sentences.sentences
    )
    texts = drawn.texts(replace(drawn.sentences, sentences=spaced), slots=tokens[1], prompts=text)
    assert_cosines(drawn, method, drawn.videos(prompts=vision), texts)


@FEW
@example(sizes=RELEASED, depths=(10, 6), tokens=(4, 3), blocks=None)
@given(
    sizes=SIZES,
    depths=st.tuples(st.integers(0, 5), st.integers(0, 4)),
    tokens=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    blocks=BLOCKS,
)
@torch.no_grad()
def test_bmpt_without_an_exchange_is_the_release_with_negatives_and_knowledge(
    sizes: Sizes, depths: tuple[int, int], tokens: tuple[int, int], blocks: list[int] | None
) -> None:
    drawn = Drawn(sizes)
    sized: dict[str, Any] = {
        "vision_depth": depths[0],
        "vision_tokens": tokens[0],
        "text_depth": depths[1],
        "text_tokens": tokens[1],
    }
    weighted: dict[str, Any] = {"negative_weight": 0.5, "knowledge_weight": 2.0}
    method = drawn.method("bmpt", exchange="none", blocks=blocks, **sized, **weighted)
    assert isinstance(method, Bmpt)
    vision, deeper = draw_prompts(method, sizes.seed)
    text = [None, *deeper]
    videos = drawn.videos(prompts=vision, blocks=(3, 7, 11) if blocks is None else blocks)
    texts = drawn.texts(drawn.sentences, prompts=text)
    assert_cosines(drawn, method, videos, texts)

    knowledge_BD = 3 * random_frames(sizes.clips, 8 * sizes.joint_eighths, seed=sizes.seed + 2)
    step, pushed = drawn.step(texts), drawn.step(drawn.texts(drawn.negatives, prompts=text))
    cosines = [naive.scaled_cosines(drawn.clip.scale, views[0], step) for views in videos]
    negatives = [naive.scaled_cosines(drawn.clip.scale, views[0], pushed) for views in videos]
    knowledge = [
        naive.scaled_cosines(drawn.clip.scale, vector, step) for vector in knowledge_BD.double()
    ]
    method.train()
    both = drawn.drawn_texts(method.prepare_classes(drawn.sentences, drawn.negatives))
    clips, classes = (
        method.encode_clips(clip_inputs(drawn.frames_BVTCHW[:, :1])),
        method.encode_sentence(both),
    )
    assert_close(
        method.scaled_cosines(clips[COSINE], classes[NEGATIVE])[:, 0], torch.stack(negatives)
    )
    scale = method.clip.logit_scale.exp()
    assert_close(knowledge_logits(knowledge_BD, classes[COSINE], scale), torch.stack(knowledge))
    margins = [
        naive.negative_margin(*rows) for rows in zip(cosines, negatives, drawn.labels, strict=True)
    ]
    costs = (
        drawn.cross_entropies(cosines),
        drawn.cross_entropies(knowledge, hard=True),
        drawn.summed(margins),
    )
    expected = costs[0] + 2.0 * costs[1] + 0.5 * costs[2]
    assert_cost(method.loss_sum(clips, classes, drawn.targets(knowledge=knowledge_BD)), expected)


@FEW
@given(
    sizes=SIZES,
    depths=st.tuples(st.integers(2, 5), st.integers(2, 4)),
    tokens=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    blocks=BLOCKS,
)
@torch.no_grad()
def test_bmpts_exchange_is_its_formula(
    sizes: Sizes, depths: tuple[int, int], tokens: tuple[int, int], blocks: list[int]
) -> None:
    drawn = Drawn(
        replace(
            sizes, vision_layers=max(2, sizes.vision_layers), text_layers=max(2, sizes.text_layers)
        )
    )
    sized: dict[str, Any] = {
        "vision_depth": depths[0],
        "vision_tokens": tokens[0],
        "text_depth": depths[1],
        "text_tokens": tokens[1],
    }
    method = drawn.method(
        "bmpt", exchange="bidirectional", exchange_width=7, blocks=blocks, **sized
    )
    assert isinstance(method, Bmpt)
    assert method.exchange is not None
    weights = draw_parameters(method.exchange, sizes.seed)
    layers = [
        naive.below(weights, f"layers.{index}.") for index in range(len(method.exchange.layers))
    ]
    vision, text = naive.exchanged(layers, *draw_prompts(method, sizes.seed))
    texts = drawn.texts(drawn.sentences, slots=tokens[1], prompts=text)
    assert_cosines(drawn, method, drawn.videos(prompts=vision, blocks=blocks), texts)


@FEW
@example(sizes=RELEASED, blocks=None, reduced=12, floors=True)
@given(sizes=SIZES, blocks=BLOCKS, reduced=st.integers(2, 7), floors=st.booleans())
@torch.no_grad()
def test_bdc_clips_three_logits_scores_and_loss_are_the_originals(
    sizes: Sizes, blocks: list[int] | None, reduced: int, floors: bool
) -> None:
    drawn = Drawn(sizes)
    shares = {COSINE: 0.2, CLASSIFIER: 0.3, COVARIANCE: 0.5}
    extra: dict[str, Any] = {
        "reduced_width": reduced,
        "floors_scale": floors,
        "coefficients": tuple(shares.values()),
    }
    method = drawn.method("bdc_clip", tune="all", blocks=blocks, **extra)
    assert isinstance(method, BdcClip)
    draw_parameters(method.heads, sizes.seed)
    # between two multiples of the divisor: where float32 and float64 floor alike
    method.heads.logits_scale_vision.fill_(math.log(5 * drawn.dice.randint(2, 20) + 2.5))
    heads = {name: value.double() for name, value in method.heads.state_dict().items()}
    tokens = drawn.tokens(blocks=(3, 7, 11) if blocks is None else blocks)
    covariances = [[naive.video_covariance(heads, view) for view in views] for views in tokens]
    texts: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    for of_class in drawn.ids(drawn.sentences):
        found = [(naive.text_tokens(drawn.clip, ids_S), naive.eot(ids_S)) for ids_S in of_class]
        texts.append(
            [(words[end], naive.text_covariance(heads, words, end)) for words, end in found]
        )

    def logits(
        row: int, view: int, classes: Sequence[Any], *, trains: bool
    ) -> dict[str, torch.Tensor]:
        cosines, of_texts = zip(*classes, strict=True)
        scale = naive.covariance_scale(heads, trains=trains, floors=floors)
        return {
            COSINE: naive.scaled_cosines(
                drawn.clip.scale, naive.pooled(tokens[row][view]), cosines
            ),
            CLASSIFIER: naive.linear(heads, "vision_bdc_head", covariances[row][view]),
            COVARIANCE: naive.scaled_cosines(scale, covariances[row][view], of_texts),
        }

    joined = [tuple(map(naive.mean_sentence, zip(*of_class, strict=True))) for of_class in texts]
    expected = [
        [logits(row, view, joined, trains=False) for view in range(sizes.views)]
        for row in range(sizes.clips)
    ]
    ours = method.prepare_classes(drawn.sentences)
    clips, classes = (
        method.eval().encode_clips(clip_inputs(drawn.frames_BVTCHW)),
        method.class_features(ours),
    )
    found_logits = method.logits(clips, classes)
    for kind in shares:
        assert_close(
            found_logits[kind], stacked([[view[kind] for view in views] for views in expected])
        )
    fused = [
        naive.fused({kind: [view[kind] for view in views] for kind in shares}, shares)
        for views in expected
    ]
    assert_close(method.class_scores(clips, classes), torch.stack(fused))

    step = [logits(row, 0, drawn.step(texts), trains=True) for row in range(sizes.clips)]
    method.train()
    clips, classes = (
        method.encode_clips(clip_inputs(drawn.frames_BVTCHW[:, :1])),
        method.encode_sentence(drawn.drawn_texts(ours)),
    )
    found_logits = method.logits(clips, classes)
    for kind in shares:
        assert_close(found_logits[kind][:, 0], torch.stack([row[kind] for row in step]))
    cost = sum(drawn.cross_entropies([row[kind] for row in step]) for kind in shares)
    assert_cost(method.loss_sum(clips, classes, drawn.targets()), cost)


@FEW
@example(
    sizes=RELEASED, interaction="VCS", layers=6, counts_padding=True, dual=False, attributes=False
)
@example(sizes=MATCHED, interaction="DP", layers=1, counts_padding=True, dual=True, attributes=True)
@given(
    sizes=SIZES,
    interaction=st.sampled_from(["DP", "VCS"]),
    layers=st.integers(0, 3),
    counts_padding=st.booleans(),
    dual=st.booleans(),
    attributes=st.booleans(),
)
@torch.no_grad()
def test_bikes_branches_scores_and_loss_are_the_originals(
    sizes: Sizes, interaction: str, layers: int, counts_padding: bool, dual: bool, attributes: bool
) -> None:
    drawn = Drawn(replace(sizes, sentences=1))
    extra: dict[str, Any] = {
        "interaction": interaction,
        "temporal_layers": layers,
        "counts_padding": counts_padding,
    }
    method = drawn.method("bike", tune="image", dual_softmax=dual, attributes=attributes, **extra)
    assert isinstance(method, Bike)
    videos = [[view[:, 0] for view in views] for views in drawn.tokens()]
    if method.temporal is not None:
        weights, heads = (
            draw_parameters(method.temporal, sizes.seed),
            max(1, drawn.backbone.text_width // 64),
        )
        videos = [
            [naive.temporal_transformer(weights, view, heads) for view in views] for views in videos
        ]
    words = [
        (naive.text_tokens(drawn.clip, ids_S), naive.eot(ids_S))
        for [ids_S] in drawn.ids(drawn.sentences)
    ]

    def cosines(frames_TD: torch.Tensor) -> torch.Tensor:
        if interaction == "DP":
            return torch.stack([naive.mean_frame_cosine(frames_TD, row[end]) for row, end in words])
        counted = [row if counts_padding else row[: end + 1] for row, end in words]
        return torch.stack(
            [
                naive.spotted_cosine(frames_TD, row[end], list(these))
                for (row, end), these in zip(words, counted, strict=True)
            ]
        )

    expected: dict[str, Rows] = {COSINE: [[cosines(view) for view in views] for views in videos]}
    attributes_BD = None
    if method.attributes is not None:
        head = draw_parameters(method.attributes, sizes.seed)
        attributes_BD = 3 * random_frames(sizes.clips, drawn.backbone.joint_width, seed=sizes.seed)
        expected[ATTRIBUTES] = [
            [torch.stack([naive.attribute_cosine(head, sentence, row[end]) for row, end in words])]
            * sizes.views
            for sentence in attributes_BD.double()
        ]
    ours = method.prepare_classes(drawn.sentences)
    clips = method.eval().encode_clips(clip_inputs(drawn.frames_BVTCHW, attributes=attributes_BD))
    classes = method.class_features(ours)
    found = method.logits(clips, classes)
    assert found.keys() == expected.keys()
    for kind, rows in expected.items():
        assert_close(found[kind], stacked(rows))
    shares = {COSINE: 0.7, ATTRIBUTES: 0.3} if attributes else {COSINE: 1.0}
    scores = [
        naive.fused({kind: expected[kind][row] for kind in expected}, shares)
        for row in range(sizes.clips)
    ]
    assert_close(method.class_scores(clips, classes), torch.stack(scores))

    kept = [index for index, weight in enumerate(drawn.weights) if weight > 0]
    labels, cost = [drawn.labels[index] for index in kept], 0.0
    for rows in expected.values():
        if kept:
            logits_NN = drawn.clip.scale * torch.stack([rows[index][0][labels] for index in kept])
            cost += naive.matching(logits_NN, labels, dual=dual).sum().item()
    method.train()
    inputs = clip_inputs(drawn.frames_BVTCHW[:, :1], attributes=attributes_BD)
    clips, classes = method.encode_clips(inputs), method.encode_sentence(ours)
    assert_cost(method.loss_sum(clips, classes, drawn.targets()), cost)
