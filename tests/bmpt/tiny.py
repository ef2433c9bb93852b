"""A CLIP of a few kilobytes of blocks, and configs for it: everything that a test needs to run the
real code."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from bmpt.clip.architecture import build_clip
from bmpt.clip.backbone import Backbone, load_backbone
from bmpt.clip.weights import SPEC_METADATA_KEY, TEMPORAL_KEY
from bmpt.config import RunConfig, load_config
from bmpt.methods import build_method, find_method, validate_method_settings
from bmpt.methods.base import COSINE, ClassTexts, ClipInputs, Method, Targets, TrainingLoss
from bmpt.runtime.distributed import World
from bmpt.settings import MethodSettings
from shards.config import merge

SPEC: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 4},
}
VISION_WIDTH, TEXT_WIDTH, JOINT_WIDTH, LAYERS = 48, 32, 16, 4
VISION_TOKENS = 1 + (32 // 8) ** 2  # CLS and patches
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def spec_with(
    *, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return SPEC with other values in its towers."""
    spec = copy.deepcopy(SPEC)
    spec["vision_cfg"].update(vision or {})
    spec["text_cfg"].update(text or {})
    return spec


def write_clip(
    path: Path,
    *,
    seed: int = 0,
    spec: dict[str, Any] = SPEC,
    temporal_TE: torch.Tensor | None = None,
) -> Path:
    """Write a seeded CLIP with its architecture, and a temporal embedding if one is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(spec)
        with torch.no_grad():
            # open_clip's initial blocks hardly move their input: larger ones make a missing term
            # visible
            for parameter in (
                *model.visual.transformer.parameters(),
                *model.transformer.parameters(),
            ):
                if parameter.ndim == 2:
                    parameter.mul_(3.0)
            model.logit_scale.fill_(math.log(20.0))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if temporal_TE is not None:
        state[TEMPORAL_KEY] = temporal_TE
    save_file(state, path, {SPEC_METADATA_KEY: json.dumps(spec)})
    return path


def method_values(shared: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return shared values that the method of `changes` knows, with the changes on top."""
    name = changes.get("name", shared.get("name", "bmpt"))
    known = find_method(name)[1].model_fields
    return {**{key: value for key, value in shared.items() if key in known}, **changes}


def settings_of(shared: dict[str, Any], **changes: Any) -> MethodSettings:
    """Return settings of a method: shared values that it knows, with changes on top."""
    return validate_method_settings({"name": "bmpt", **method_values(shared, changes)})


METHOD: dict[str, Any] = {
    "name": "bmpt",
    "vision_depth": 3,
    "vision_tokens": 4,
    "text_depth": 3,
    "text_tokens": 4,
    "exchange_width": 8,
    "space_time_blocks": [1, 3],
}


def method_on(clip: Path, *, seed: int = 0, **changes: Any) -> Method:
    """Build a method for clips of 4 frames on a fresh copy of the CLIP: `METHOD` with changes."""
    return build_method(load_tiny(clip), settings_of(METHOD, **changes), num_frames=4, seed=seed)


def load_tiny(clip: Path) -> Backbone:
    """Load the CLIP; every call gives another model object."""
    return load_backbone("tiny", str(clip))


def tiny_values(clip: Path, pool: Path, run_dir: Path) -> dict[str, Any]:
    """A config: bmpt over 8 training clips in 2 steps an epoch, 2 epochs."""
    return {
        "seed": 0,
        "run": {"dir": str(run_dir)},
        "data": {
            "pool": str(pool),
            "train": "few_shot/train_k2",
            "val": "few_shot/val",
            "frames": 4,
            "batch_size": 4,
        },
        "model": {"name": "tiny", "pretrained": str(clip)},
        "method": METHOD,
        "train": {"epochs": 2, "lr": 1e-3, "lr_prompts": 1e-2, "warmup_epochs": 0},
        "eval": {"batch_size": 5},
    }


def write_config(
    folder: Path, clip: Path, pool: Path, *, run: str = "run", **sections: Any
) -> Path:
    """Write `<folder>/<run>.yaml` whose run folder is `<folder>/<run>`; `sections` are merged on
    top."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}.yaml"
    values = tiny_values(clip, pool, folder / run)
    values["method"] = method_values(values["method"], sections.get("method", {}))
    values = merge(values, sections)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def make_config(
    folder: Path, clip: Path, pool: Path, *, run: str = "run", **sections: Any
) -> RunConfig:
    """The same as an object, read from that file."""
    return load_config(write_config(folder, clip, pool, run=run, **sections))


def encode_classes(method: Method, ids_KS: torch.Tensor) -> torch.Tensor:
    """Cosine features [K, D] of one sentence a class."""
    return method.encode_sentence(ClassTexts((), ids_KS.unsqueeze(1)))[COSINE]


def clip_inputs(
    frames_BVTCHW: torch.Tensor,
    weights_B: torch.Tensor | None = None,
    **features: torch.Tensor | None,
) -> ClipInputs:
    """Return clips as a method reads them: of weight 1 by default, with features of samples."""
    if weights_B is None:
        weights_B = torch.ones(len(frames_BVTCHW))
    given = {kind: value for kind, value in features.items() if value is not None}
    return ClipInputs(frames_BVTCHW, weights_B, given)


def training_loss(
    method: Method, frames_BVTCHW: torch.Tensor, texts: ClassTexts, targets: Targets
) -> torch.Tensor:
    """Return the loss of clips as the training loop computes it."""
    inputs = ClipInputs(frames_BVTCHW, targets.weights_B, targets.sample_features)
    return TrainingLoss(method)(inputs, texts, targets)


def cosine_logits(
    method: Method,
    frames_BVTCHW: torch.Tensor,
    ids_KS: torch.Tensor,
    classes_KD: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cosine logits [B, K], the mean over views; class features are computed unless they are
    given."""
    classes_KD = encode_classes(method, ids_KS) if classes_KD is None else classes_KD
    return method.scaled_cosines(
        method.encode_clips(clip_inputs(frames_BVTCHW))[COSINE], classes_KD
    ).mean(dim=1)


def random_frames(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded normal numbers; independent of the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def losses_of(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of metrics.jsonl."""
    return [(row["step"], row["loss"]) for row in metrics_of(run_dir)]
