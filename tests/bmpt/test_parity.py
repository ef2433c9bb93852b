"""Our towers and methods against logits that the original systems computed with the same weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bmpt.classes import class_texts
from bmpt.clip import Backbone, load_backbone
from bmpt.config import MethodSettings, TextSettings
from bmpt.losses import knowledge_logits, matching_sum
from bmpt.methods import build_method
from bmpt.methods.bdc import BdcHeads
from bmpt.methods.bike_attributes import AttributeHead
from bmpt.methods.bike_video import TemporalTransformer, mean_frame_cosines, spotted_cosines, word_mask
from bmpt.methods.bmpt import Bmpt
from bmpt.methods.fusion import mean_over_sentences
from bmpt.towers import encode_frames, encode_text_tokens, encode_texts, take_eot
from bmpt.weights import read_safetensors
from tests.bmpt.tiny import cosine_logits, encode_classes

TOLERANCE = 1e-4  # of the largest logit
REFERENCES = ("clip_tiny", "vifi", "bdc", "bmpt", "bike")


def reference_folder() -> Path:
    """$BMPT_REFERENCE_DIR, which must then be complete, else fixtures/reference of $BMPT_SHARED or of ../shared.

    Skips the test if no such folder is named and none is there."""
    named = os.environ.get("BMPT_REFERENCE_DIR")
    if named:
        missing = [name for name in REFERENCES if not (Path(named) / f"{name}.safetensors").is_file()]
        if missing:
            pytest.fail(f"BMPT_REFERENCE_DIR={named}: has no {', '.join(missing)} (.safetensors)")
        return Path(named)
    shared = os.environ.get("BMPT_SHARED") or Path(__file__).resolve().parents[3] / "shared"
    folder = Path(shared) / "fixtures" / "reference"
    if not folder.is_dir():
        pytest.skip("needs the reference outputs: ../shared/fixtures/reference beside the checkout")
    return folder


@pytest.fixture(scope="module")
def reference() -> Path:
    return reference_folder()


def test_a_named_folder_of_reference_outputs_must_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMPT_REFERENCE_DIR", str(tmp_path))
    for name in REFERENCES[:-1]:
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(pytest.fail.Exception, match=f"has no {REFERENCES[-1]} "):
        reference_folder()
    (tmp_path / f"{REFERENCES[-1]}.safetensors").touch()
    assert reference_folder() == tmp_path


@pytest.fixture
def backbone(reference: Path) -> Backbone:
    return load_backbone("reference", str(reference / "clip_tiny.safetensors"))


def read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state, metadata = read_safetensors(file)
    return state, json.loads(metadata["meta"])


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max().item() <= TOLERANCE * expected.abs().max().item()


@pytest.mark.parametrize(("logits", "template"), [("full.logits", "a photo of a {}."), ("zeroshot.logits", "{}")])
@torch.no_grad()
def test_vifi_clip_gives_the_originals_logits(reference: Path, backbone: Backbone, logits: str, template: str) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    settings = MethodSettings(name="vifi_clip", tune="all")
    method = build_method(backbone, settings, num_frames=meta["T"], seed=0)
    texts = class_texts(meta["classes"], TextSettings(template=template, raw_names=True))
    ours = cosine_logits(method, tensors["images"].unsqueeze(1), method.prepare_texts(texts))
    assert_close(ours, tensors[logits])


@torch.no_grad()
def test_zero_shot_gives_the_logits_of_an_untrained_vifi_clip(reference: Path, backbone: Backbone) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    method = build_method(backbone, MethodSettings(name="zero_shot"), num_frames=meta["T"], seed=0)
    texts = class_texts(meta["classes"], TextSettings(template="{}", raw_names=True))
    assert_close(
        cosine_logits(method, tensors["images"].unsqueeze(1), method.prepare_texts(texts)), tensors["zeroshot.logits"]
    )


def bmpt_of_the_release(backbone: Backbone, tensors: dict[str, torch.Tensor], release: dict[str, Any]) -> Bmpt:
    """`exchange: none` with the stored prompts."""
    settings = MethodSettings(
        name="bmpt",
        exchange="none",
        vision_depth=release["vision_depth"],
        vision_tokens=release["vision_ctx"],
        text_depth=release["language_depth"],
        text_tokens=release["language_ctx"],
        space_time_blocks=(3, 7, 11),
    )
    method = build_method(backbone, settings, num_frames=release["num_frames"], seed=0)
    assert isinstance(method, Bmpt)
    deeper = "transformer.resblocks.{}.VPT"
    with torch.no_grad():
        method.vision_LPE[0] = tensors["param.image_encoder.VPT_shallow"]
        for layer in range(1, release["vision_depth"]):
            method.vision_LPE[layer] = tensors[f"param.image_encoder.{deeper.format(layer)}"]
        for layer in range(1, release["language_depth"]):
            method.text_LPE[layer - 1] = tensors[f"param.text_encoder.{deeper.format(layer)}"]
    return method


@pytest.mark.parametrize("sentence", [0, 1])
@torch.no_grad()
def test_bmpt_without_an_exchange_gives_the_releases_logits(reference: Path, backbone: Backbone, sentence: int) -> None:
    tensors, meta = read(reference / "bmpt.safetensors")
    method = bmpt_of_the_release(backbone, tensors, meta["prompt_config"])
    texts = [meta["llm"][name][sentence] for name in meta["classes"]]
    ours = cosine_logits(method, tensors["images"].unsqueeze(1), method.prepare_texts(texts))
    assert_close(ours, tensors[f"train_s{sentence}.logits_cos"])


@pytest.mark.parametrize("sentence", [0, 1])
@torch.no_grad()
def test_bmpts_knowledge_and_negatives_give_the_releases_logits(
    reference: Path, backbone: Backbone, sentence: int
) -> None:
    tensors, meta = read(reference / "bmpt.safetensors")
    method = bmpt_of_the_release(backbone, tensors, meta["prompt_config"])
    classes_KD = encode_classes(method, method.prepare_texts([meta["llm"][name][sentence] for name in meta["classes"]]))
    scale = method.clip.logit_scale.exp()
    ours = knowledge_logits(tensors["knowledge"], classes_KD, scale)
    assert_close(ours, tensors[f"train_s{sentence}.logits_knowledge"])
    texts = [f"a video of a person {name.replace('_', ' ')}" for name in meta["negatives"]]
    negatives = cosine_logits(method, tensors["images"].unsqueeze(1), method.prepare_texts(texts))
    assert_close(negatives, tensors[f"train_s{sentence}.logits_negative"])


@torch.no_grad()
def test_bmpts_mean_over_sentences_gives_the_releases_logits_of_evaluation(reference: Path, backbone: Backbone) -> None:
    tensors, meta = read(reference / "bmpt.safetensors")
    method = bmpt_of_the_release(backbone, tensors, meta["prompt_config"])
    ids_PKS = [method.prepare_texts([meta["llm"][name][p] for name in meta["classes"]]) for p in range(2)]
    classes_KD = mean_over_sentences(torch.stack([encode_classes(method, ids_KS) for ids_KS in ids_PKS]))
    assert_close(
        cosine_logits(method, tensors["images"].unsqueeze(1), ids_PKS[0], classes_KD), tensors["eval.logits_cos"]
    )


def ivlp_prompts(tensors: dict[str, torch.Tensor], first: str, tower: str) -> list[torch.Tensor]:
    """Prompts of all blocks of a tower: those at its input under one name, deeper ones under another."""
    deeper = [f"ivlp.param.{tower}.transformer.resblocks.{layer}.VPT_shallow" for layer in range(1, 12)]
    return [tensors[f"ivlp.param.{first}"], *(tensors[name] for name in deeper if name in tensors)]


@torch.no_grad()
def test_prompts_in_both_towers_give_the_logits_of_vifi_clips_prompting(reference: Path, backbone: Backbone) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    vision = ivlp_prompts(tensors, "image_encoder.VPT", "image_encoder")
    text = ivlp_prompts(tensors, "prompt_learner.ctx", "text_encoder")
    assert (len(vision), len(text)) == (9, 3)
    slots = " ".join(["X"] * len(text[0]))
    ids_KS = backbone.tokenize([f"{slots} {name.replace('_', ' ')}." for name in meta["classes"]])
    classes_KD = F.normalize(encode_texts(backbone.model, ids_KS, prompts=text), dim=-1)
    frames = tensors["images"].flatten(0, 1)
    cls_BTD = encode_frames(backbone.model, frames, num_frames=meta["T"], prompts=vision)[:, 0]
    videos_BD = F.normalize(cls_BTD.unflatten(0, (meta["B"], meta["T"])).mean(dim=1), dim=-1)
    assert_close(backbone.model.logit_scale.exp() * videos_BD @ classes_KD.T, tensors["ivlp.logits"])


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
@torch.no_grad()
def test_a_text_prompt_that_starts_as_words_is_these_words(
    reference: Path, backbone: Backbone, num_tokens: int
) -> None:
    """CTX_INIT of ViFi-CLIP: at the first step prompts of up to 4 tokens stand for "a photo of a"."""
    meta = read(reference / "vifi.safetensors")[1]
    init = backbone.tokenize(["a photo of a"])
    prompt = backbone.model.token_embedding(init[0, 1 : 1 + num_tokens])
    ids_KS = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in meta["classes"]])
    hidden_KS = ids_KS.clone()
    hidden_KS[:, 1 : 1 + num_tokens] = init[0, -1]
    plain = encode_texts(backbone.model, ids_KS)
    assert_close(encode_texts(backbone.model, hidden_KS, prompts=[prompt]), plain)
    assert (encode_texts(backbone.model, hidden_KS) - plain).abs().max() > 1e-2, "the slots' own words are not read"


def bdc_of_the_release(tensors: dict[str, torch.Tensor], **changes: Any) -> BdcHeads:
    state = {name.removeprefix("param."): value for name, value in tensors.items() if name.startswith("param.")}
    state = {name.replace("_head_downstream", "_head"): value for name, value in state.items()}
    reduced, joint = state["vision_reduce.weight"].shape
    heads = BdcHeads(joint, len(state["vision_bdc_head.bias"]), reduced_width=reduced, **changes)
    heads.load_state_dict(state)
    return heads


def bdc_sentence(backbone: Backbone, meta: dict[str, Any], sentence: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(all text tokens, ids) of one sentence a class."""
    ids_KS = backbone.tokenize([meta["llm"][name][sentence] for name in meta["classes"]])
    return encode_text_tokens(backbone.model, ids_KS), ids_KS


def bdc_video_tokens(backbone: Backbone, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> torch.Tensor:
    frames = tensors["images"].flatten(0, 1)
    tokens = encode_frames(backbone.model, frames, num_frames=meta["T"], space_time_blocks=(3, 7, 11))
    return tokens.unflatten(0, (meta["B"], meta["T"]))


@pytest.mark.parametrize("name", ["train_s0", "train_s1", "eval"])
@torch.no_grad()
def test_bdc_clip_gives_the_originals_three_logits(reference: Path, backbone: Backbone, name: str) -> None:
    tensors, meta = read(reference / "bdc.safetensors")
    heads = bdc_of_the_release(tensors, floors_scale=True).train(name != "eval")
    tokens_BTSD = bdc_video_tokens(backbone, tensors, meta)
    sentences = [0, 1] if name == "eval" else [int(name[-1])]
    texts = [bdc_sentence(backbone, meta, sentence) for sentence in sentences]
    classes_KD = mean_over_sentences(torch.stack([take_eot(*text) for text in texts]))
    text_KF = mean_over_sentences(torch.stack([heads.text_features(*text) for text in texts]))
    video_BF = heads.video_features(tokens_BTSD)
    videos_BD = F.normalize(tokens_BTSD[:, :, 0].mean(dim=1), dim=-1)
    assert_close(backbone.model.logit_scale.exp() * videos_BD @ classes_KD.T, tensors[f"{name}.logits_cos"])
    assert_close(heads.classifier_logits(video_BF), tensors[f"{name}.logits_cls"])
    assert_close(heads.covariance_logits(video_BF, text_KF), tensors[f"{name}.logits_bdc"])


def bike_state(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def bike_transformer(tensors: dict[str, torch.Tensor]) -> TemporalTransformer:
    transformer = TemporalTransformer(tensors["frames"].shape[-1], num_heads=1)
    transformer.load_state_dict(bike_state(tensors, "param."))
    return transformer


@torch.no_grad()
def test_the_towers_give_bikes_frames_tokens_and_text_features(reference: Path, backbone: Backbone) -> None:
    tensors, meta = read(reference / "bike.safetensors")
    ids_KS = backbone.tokenize([f"This is a video about {name}" for name in meta["classes"]])
    assert torch.equal(ids_KS, tensors["token_ids"])
    tokens_KSD = encode_text_tokens(backbone.model, ids_KS)
    assert_close(tokens_KSD, tensors["text.tokens"])
    assert_close(take_eot(tokens_KSD, ids_KS), tensors["text.eot"])
    frames = encode_frames(backbone.model, tensors["images"].flatten(0, 1), num_frames=meta["T"])[:, 0]
    assert_close(frames.unflatten(0, (meta["B"], meta["T"])), tensors["frames"])


@pytest.mark.parametrize("header", ["None", "Transf"])
@torch.no_grad()
def test_bikes_video_branch_gives_the_originals_logits(reference: Path, header: str) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    frames_BTD = tensors["frames"] if header == "None" else bike_transformer(tensors)(tensors["frames"])
    assert_close(mean_frame_cosines(frames_BTD, tensors["text.eot"]), tensors[f"{header}.DP.logits"])
    is_word_KS = word_mask(tensors["token_ids"], counts_padding=True)
    ours = spotted_cosines(frames_BTD, tensors["text.eot"], tensors["text.tokens"], is_word_KS)
    assert_close(ours, tensors[f"{header}.VCS.logits"])


@torch.no_grad()
def test_without_the_padding_bikes_logits_are_others(reference: Path) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    is_word_KS = word_mask(tensors["token_ids"])
    ours = spotted_cosines(tensors["frames"], tensors["text.eot"], tensors["text.tokens"], is_word_KS)
    assert (ours - tensors["None.VCS.logits"]).abs().max() > 1e-3


@torch.no_grad()
def test_bikes_attribute_head_gives_the_originals_logits(reference: Path) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    head = AttributeHead(tensors["attr.sentence"].shape[-1])
    head.load_state_dict(bike_state(tensors, "attr.param."))
    assert_close(head(tensors["attr.sentence"], tensors["text.eot"]), tensors["attr.logits"])


def test_bikes_loss_is_the_originals(reference: Path) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    labels_N = tensors["nce.labels"]
    total = matching_sum(tensors["nce.logits"], labels_N, torch.ones(len(labels_N)))
    torch.testing.assert_close(total / len(labels_N), tensors["nce.loss"], rtol=1e-5, atol=1e-6)
