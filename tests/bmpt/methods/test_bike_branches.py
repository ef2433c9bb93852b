"""BIKE with its attributes branch: it trains beside the video branch and is scored with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bmpt.methods import build_method
from bmpt.methods.base import ATTRIBUTES, COSINE, Method, Targets
from bmpt.methods.bike import Bike
from bmpt.methods.components.losses import matching_sum
from bmpt.texts.class_texts import ClassSentences
from shards.errors import ConfigError
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import run
from tests.bmpt.tiny import (
    JOINT_WIDTH,
    METHOD,
    clip_inputs,
    load_tiny,
    random_frames,
    settings_of,
    training_loss,
)

CLASSES = ("walk", "run", "jump")


def bike(clip: Path, *, attributes: bool = True, **changes: Any) -> Bike:
    of_bike = {"name": "bike", "tune": "image", "temporal_layers": 1, "attributes": attributes}
    settings = settings_of(METHOD, **{**of_bike, **changes})
    method = build_method(load_tiny(clip), settings, num_frames=4, seed=0, classes=CLASSES)
    assert isinstance(method, Bike)
    return method


def loss_of(method: Method, attributes_BD: torch.Tensor | None) -> torch.Tensor:
    texts = method.prepare_classes(ClassSentences(CLASSES, tuple((name,) for name in CLASSES)))
    features = {} if attributes_BD is None else {ATTRIBUTES: attributes_BD}
    targets = Targets(torch.tensor([0, 1, 2]), torch.ones(3), sample_features=features)
    return training_loss(method.train(), random_frames(3, 1, 4, 3, 32, 32), texts, targets)


def gradients(method: Method) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in method.named_parameters() if value.grad is not None}


def test_the_loss_adds_the_match_of_attribute_sentences_and_class_texts(clip: Path) -> None:
    method, sentences_BD = bike(clip), F.normalize(random_frames(3, JOINT_WIDTH), dim=-1)
    with torch.no_grad():
        texts = method.prepare_classes(ClassSentences(CLASSES, tuple((name,) for name in CLASSES)))
        assert method.attributes is not None
        cosines = method.attributes(sentences_BD, method.encode_sentence(texts)[COSINE])
        expected = matching_sum(
            method.clip.logit_scale.exp() * cosines, torch.tensor([0, 1, 2]), torch.ones(3)
        )
        both, video = loss_of(method, sentences_BD), loss_of(method, None)
    torch.testing.assert_close(both - video, expected, rtol=1e-4, atol=1e-5)
    assert expected > 0.1


def test_the_video_branch_trains_as_without_attributes(clip: Path) -> None:
    """The scale too: the release trains the branches one after the other."""
    alone, both = bike(clip, attributes=False), bike(clip)
    both.load_state_dict(alone.state_dict(), strict=False)
    loss_of(alone, None).backward()
    loss_of(both, F.normalize(random_frames(3, JOINT_WIDTH), dim=-1)).backward()
    found = gradients(both)
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(found.pop(name), gradient)
    assert {name.split(".")[0] for name in found} == {"attributes"}
    assert all(gradient.abs().max() > 0 for gradient in found.values())


@torch.no_grad()
def test_scores_are_seven_tenths_of_the_video_and_three_of_the_attributes(clip: Path) -> None:
    method = bike(clip).eval()
    classes = method.class_features(
        method.prepare_classes(ClassSentences(CLASSES, tuple((name,) for name in CLASSES)))
    )
    clips = {
        **method.encode_clips(clip_inputs(random_frames(2, 3, 4, 3, 32, 32))),
        ATTRIBUTES: random_frames(2, JOINT_WIDTH),
    }
    found = method.logits(clips, classes)
    expected = 0.7 * found[COSINE].softmax(dim=-1).mean(dim=1) + 0.3 * found[ATTRIBUTES][
        :, 0
    ].softmax(dim=-1)
    torch.testing.assert_close(method.class_scores(clips, classes), expected)
    assert (expected - found[COSINE].softmax(dim=-1).mean(dim=1)).abs().max() > 1e-3


@torch.no_grad()
def test_each_clip_is_scored_with_its_own_attributes(clip: Path) -> None:
    method, frames, sentences_BD = (
        bike(clip).eval(),
        random_frames(3, 1, 4, 3, 32, 32),
        random_frames(3, JOINT_WIDTH),
    )
    texts = method.prepare_classes(ClassSentences(CLASSES, tuple((name,) for name in CLASSES)))
    scores_BK = method.predict(clip_inputs(frames, torch.ones(3), attributes=sentences_BD), texts)
    for row in range(3):
        alone = slice(row, row + 1)
        clips = {**method.encode_clips(clip_inputs(frames[alone])), ATTRIBUTES: sentences_BD[alone]}
        torch.testing.assert_close(
            scores_BK[alone], method.class_scores(clips, method.class_features(texts))
        )
    assert (
        scores_BK
        - method.predict(clip_inputs(frames, torch.ones(3), attributes=sentences_BD.flip(0)), texts)
    ).abs().max() > 1e-3


def test_a_text_tower_that_trains_is_refused_beside_attributes(clip: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.attributes=true: .*set method\.tune=image"):
        bike(clip, tune="all")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"method": {"attributes": True}},
            r"method\.attributes=true: needs text\.attributes=\[FILE\]",
        ),
        (
            {"text": {"attributes": ["a.parquet"]}},
            r"text\.attributes: bike reads it with method\.attributes=true",
        ),
        (
            {"text": {"knowledge": "k.parquet"}},
            r"text\.knowledge: method bike reads no such file.*method\.name=bmpt",
        ),
    ],
)
def test_a_branch_without_its_file_and_a_file_without_its_branch_are_refused(
    config: MakeConfig, sections: dict[str, Any], said: str
) -> None:
    method = {"name": "bike", "tune": "image", "temporal_layers": 1, **sections.get("method", {})}
    with pytest.raises(ConfigError, match=said):
        run(config(**{**sections, "method": method}))
