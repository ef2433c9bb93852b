"""What class texts cost a run: how often they go through the text tower, how many at once and at
which length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bmpt.config import RunConfig
from bmpt.engine.train import Trainer
from bmpt.evaluation.evaluate import evaluate
from bmpt.methods.base import Method
from bmpt.task import open_task
from tests.bmpt.conftest import MakeConfig
from tests.bmpt.runs import VAL, folder_of
from tests.bmpt.tiny import ALONE

Passes = list[tuple[int, ...]]  # (texts, tokens of each)

# a token a word: the longest class text of all and of the novel classes has 9, that of the base
# classes 7
TEXTS = {
    "Class00": ("a person is on the long red", "a man who is in the car"),
    "Class01": ("run with the dog", "jump over the cat"),
    "Class02": ("a person is in the park with the dog", "a man and a cat are on the sofa"),
    "Class03": ("play the game", "watch the game"),
}
BASE, ALL, NEGATIVE = 7 + 2, 9 + 2, 6 + 2  # tokens with SOT and EOT; of "a video of a person sit"
SLOTS, CONTEXT = 4, 77
STEPS = 4

BMPT: dict[str, Any] = {"name": "bmpt"}
VIFI: dict[str, Any] = {"name": "vifi_clip"}
BDC: dict[str, Any] = {"name": "bdc_clip", "tune": "all", "reduced_width": 4}
BIKE: dict[str, Any] = {"name": "bike", "tune": "image", "temporal_layers": 1}


@dataclass(frozen=True)
class Encoded:
    """What went through the text tower; not what is checked before the first step."""

    training: Passes
    scoring: Passes


Encode = Callable[..., Encoded]


def encode(settings: RunConfig) -> Encoded:
    """Train for four steps and score three lists, of the base classes, the novel ones and all."""
    task = open_task(settings, ALONE, trains=True)
    folder_of(settings).mkdir()
    trainer = Trainer(task, folder_of(settings))
    with noting(task.method) as training:
        assert trainer.run()
    with noting(task.method) as scoring:
        assert evaluate(task, folder=folder_of(settings), checkpoint=None) is not None
    assert trainer.state.step == STEPS
    return Encoded(training, scoring)


@contextmanager
def noting(method: Method) -> Iterator[Passes]:
    """What enters the first block of the text tower."""
    passes: Passes = []
    first = method.clip.transformer.resblocks[0].ln_1  # blocks are walked by their parts
    hook = first.register_forward_hook(
        lambda _, inputs, __: passes.append(tuple(inputs[0].shape[:-1]))
    )
    try:
        yield passes
    finally:
        hook.remove()


@pytest.fixture
def encoded(config: MakeConfig, tmp_path: Path) -> Encode:
    """Passes of a run of a method, with some sentences a class."""

    def of(
        method: dict[str, Any], *, sentences: int = 2, accumulation: int = 1, **text: Any
    ) -> Encoded:
        file = tmp_path / "sentences.json"
        file.write_text(
            json.dumps({name: of_class[:sentences] for name, of_class in TEXTS.items()}),
            encoding="utf-8",
        )
        settings = config(
            method=method,
            text={"sentences": str(file), **text},
            train={"accumulation": accumulation},
            eval={"manifests": [*VAL, "few_shot/val"]},
        )
        return encode(settings)

    return of


@pytest.mark.parametrize(
    ("method", "tokens"),
    [
        pytest.param(BMPT, ALL + SLOTS, id="bmpt"),
        pytest.param({**VIFI, "tune": "prompts"}, ALL + SLOTS, id="vifi_clip prompts"),
        pytest.param({**VIFI, "tune": "text"}, ALL, id="vifi_clip text"),
        pytest.param(BDC, CONTEXT, id="bdc_clip"),
    ],
)
def test_trained_texts_are_encoded_once_a_step_at_any_accumulation(
    encoded: Encode, method: dict[str, Any], tokens: int
) -> None:
    assert encoded(method, accumulation=3).training == [(4, tokens)] * STEPS


def test_negatives_are_encoded_once_a_step_too(encoded: Encode, tmp_path: Path) -> None:
    file = tmp_path / "negatives.txt"
    lines = [
        f"{name} -> {other}\n"
        for name, other in zip(TEXTS, ("sit", "stand", "lie", "fall"), strict=True)
    ]
    file.write_text("".join(lines), encoding="utf-8")
    found = encoded(BMPT, accumulation=3, negatives=str(file)).training
    assert found == [(4, ALL + SLOTS), (4, NEGATIVE + SLOTS)] * STEPS


@pytest.mark.parametrize(
    ("method", "sentences", "accumulation"),
    [
        pytest.param({**VIFI, "tune": "image"}, 2, 3, id="vifi_clip"),
        pytest.param(BIKE, 1, 1, id="bike"),
    ],
)
def test_frozen_texts_are_encoded_once_a_run_each(
    encoded: Encode, method: dict[str, Any], sentences: int, accumulation: int
) -> None:
    found = encoded(method, sentences=sentences, accumulation=accumulation)
    assert found.training == [(4, ALL)] * sentences


@pytest.mark.parametrize(
    ("method", "sentences", "base", "all_"),
    [
        pytest.param(BMPT, 2, BASE + SLOTS, ALL + SLOTS, id="bmpt"),
        pytest.param({**VIFI, "tune": "all"}, 2, BASE, ALL, id="vifi_clip"),
        pytest.param(BDC, 2, CONTEXT, CONTEXT, id="bdc_clip"),
        pytest.param(BIKE, 1, BASE, ALL, id="bike"),
        pytest.param({**BIKE, "counts_padding": True}, 1, CONTEXT, CONTEXT, id="bike over padding"),
    ],
)
def test_each_sentence_is_encoded_once_a_scored_list_of_several_blocks(
    encoded: Encode, method: dict[str, Any], sentences: int, base: int, all_: int
) -> None:
    lists = [(2, base), (2, all_), (4, all_)]
    assert encoded(method, sentences=sentences).scoring == [
        each for each in lists for _ in range(sentences)
    ]
