"""The gradient of one optimiser step in float64, by the engine on any number of ranks, and with the
class texts encoded in every micro-batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from bmpt.engine.step import StepGradient, class_encoder
from bmpt.methods import build_method
from bmpt.methods.base import ClipInputs, Targets
from bmpt.runtime.distributed import World, leave_world, start_world
from bmpt.texts.class_texts import ClassSentences
from shards.sampling.plan import micro_slices, rank_slice
from tests.bmpt.methods.method_parts import drawn
from tests.bmpt.tiny import METHOD, load_tiny, random_frames, settings_of

CLASSES = ("walk", "run", "jump")
LABELS, WEIGHTS = (0, 1, 2, 1, 0, 2), (1.0, 1.0, 0.0, 1.0, 1.0, 1.0)
SENTENCE = (1, 0, 1)
# settings of a method; micro-batches of a rank
CASES: list[tuple[dict[str, Any], int]] = [
    ({"name": "bmpt"}, 3),
    ({"name": "bmpt", "exchange": "none", "text_tokens": 1}, 2),
    ({"name": "bmpt", "tune": "all"}, 1),
    ({"name": "vifi_clip", "tune": "both"}, 3),
    ({"name": "vifi_clip", "tune": "image"}, 2),
    ({"name": "vifi_clip", "tune": "prompts"}, 2),
    ({"name": "bdc_clip", "tune": "all", "reduced_width": 4}, 2),
    ({"name": "bike", "tune": "all", "temporal_layers": 1}, 1),
    ({"name": "bike", "tune": "image", "temporal_layers": 1, "interaction": "DP"}, 1),
]


def step(
    clip: Path, case: int, world: World, *, encodes_once: bool = True
) -> dict[str, torch.Tensor]:
    """Gradients of all that trains, on one rank, of a step of 6 clips of which one could not be
    read.

    Beside them under `loss` and `texts` its loss and how many class texts this rank encoded for
    it."""
    changes, accumulation = CASES[case]
    settings = settings_of(METHOD, **changes)
    method = build_method(load_tiny(clip), settings, num_frames=4, seed=0, classes=CLASSES).train()
    # prompts, gates and new layers leave their start, but not the tower, whose spread of weights
    # matters
    drawn(method, 1)
    method.clip.double().load_state_dict(
        {key: value.double() for key, value in load_tiny(clip).model.state_dict().items()}
    )
    each = 1 if settings.name == "bike" else 2
    sentences = ClassSentences(
        CLASSES, tuple((f"to {name}", f"{name} once more")[:each] for name in CLASSES)
    )
    negatives = (
        ClassSentences(CLASSES, (("sit",) * 2, ("stand",) * 2, ("lie",) * 2))
        if settings.name == "bmpt"
        else None
    )
    texts = method.prepare_classes(sentences, negatives)
    classes = class_encoder(method, texts, world) if encodes_once else None
    gradient = StepGradient(method, texts, world, classes=classes)
    frames_BVTCHW, knowledge_BD = (
        random_frames(6, 1, 4, 3, 32, 32).double(),
        random_frames(6, 16, seed=3).double(),
    )
    places = micro_slices(*rank_slice(len(LABELS), world.rank, world.size), accumulation)
    inputs = []
    for start, stop in places:
        features = {"knowledge": knowledge_BD[start:stop]} if settings.name == "bmpt" else {}
        weights_B = torch.tensor(WEIGHTS).double()[start:stop]
        targets = Targets(torch.tensor(LABELS)[start:stop], weights_B, 0.1, features)
        inputs.append((ClipInputs(frames_BVTCHW[start:stop], weights_B, features), targets))
    loss_scale = world.size / sum(WEIGHTS)
    texts_encoded = torch.tensor(0)

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        texts_encoded.add_(len(output))

    method.clip.transformer.resblocks[0].ln_1.register_forward_hook(count)
    loss = gradient.accumulate(
        inputs,
        num_batches=len(inputs),
        sentence_K=torch.tensor(SENTENCE) % each,
        loss_scale=loss_scale,
    )
    found = {
        name: value.grad for name, value in method.named_parameters() if value.grad is not None
    }
    return {**found, "loss": torch.tensor(loss, dtype=torch.float64), "texts": texts_encoded}


def main(clip: Path, folder: Path) -> None:
    """Write what each rank computed of every case."""
    world = start_world(threads=1)
    torch.save([step(clip, case, world) for case in range(len(CASES))], folder / f"{world.rank}.pt")
    leave_world(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
