"""Our towers and methods against logits that the original systems computed with the same weights.

Nothing of the stored outputs' sizes is known here: all is read off the files, see
`test_other_references.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bmpt.clip.backbone import Backbone
from bmpt.clip.towers import encode_frames, encode_text_tokens, encode_texts, take_eot
from bmpt.methods import build_method
from bmpt.methods.bmpt import Bmpt
from bmpt.methods.components.bdc import BdcHeads
from bmpt.methods.components.bike_attributes import AttributeHead
from bmpt.methods.components.bike_video import (
    TemporalTransformer,
    mean_frame_cosines,
    spotted_cosines,
    word_mask,
)
from bmpt.methods.components.fusion import mean_over_sentences
from bmpt.methods.components.losses import knowledge_logits, matching_sum
from bmpt.methods.vifi_clip import VifiClipSettings
from bmpt.methods.zero_shot import ZeroShotSettings
from bmpt.settings import TextSettings
from bmpt.texts.class_texts import class_sentences
from tests.bmpt.parity import naive_originals as naive
from tests.bmpt.parity.stored_outputs import (
    REFERENCES,
    assert_close,
    bdc_state,
    prompted,
    read,
    reference_folder,
    space_time_blocks,
    stored_passes,
    stored_prompts,
)
from tests.bmpt.tiny import cosine_logits, encode_classes


def test_a_named_folder_of_reference_outputs_must_be_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMPT_REFERENCE_DIR", str(tmp_path))
    for name in REFERENCES[:-1]:
        (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(pytest.fail.Exception, match=f"has no {REFERENCES[-1]} "):
        reference_folder()
    (tmp_path / f"{REFERENCES[-1]}.safetensors").touch()
    assert reference_folder() == tmp_path


@pytest.mark.parametrize(
    ("logits", "template"), [("full.logits", "a photo of a {}."), ("zeroshot.logits", "{}")]
)
@torch.no_grad()
def test_vifi_clip_gives_the_originals_logits(
    reference: Path, backbone: Backbone, logits: str, template: str
) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    settings = VifiClipSettings(tune="all")
    method = build_method(backbone, settings, num_frames=meta["T"], seed=0)
    texts = class_sentences(meta["classes"], TextSettings(template=template, raw_names=True)).at(0)
    ours = cosine_logits(method, tensors["images"].unsqueeze(1), method.prepare_texts(texts))
    assert_close(ours, tensors[logits])


@torch.no_grad()
def test_zero_shot_gives_the_logits_of_an_untrained_vifi_clip(
    reference: Path, backbone: Backbone
) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    method = build_method(backbone, ZeroShotSettings(), num_frames=meta["T"], seed=0)
    texts = class_sentences(meta["classes"], TextSettings(template="{}", raw_names=True)).at(0)
    assert_close(
        cosine_logits(method, tensors["images"].unsqueeze(1), method.prepare_texts(texts)),
        tensors["zeroshot.logits"],
    )


def bmpt_of_the_release(
    backbone: Backbone, tensors: dict[str, torch.Tensor], meta: dict[str, Any]
) -> Bmpt:
    """`exchange: none` with the stored prompts, of which block 0 of the text tower has none."""
    vision, text = stored_prompts(tensors, "bmpt")
    depths = {"vision_depth": len(vision), "text_depth": len(text) + 1 if text else 0}
    blocks = space_time_blocks(backbone)
    method = prompted(
        backbone,
        vision,
        text,
        meta["T"],
        name="bmpt",
        exchange="none",
        space_time_blocks=blocks,
        **depths,
    )
    assert isinstance(method, Bmpt)
    return method


def llm_ids(backbone: Backbone, meta: dict[str, Any], sentence: int) -> torch.Tensor:
    """Token ids [K, S] of one sentence a class."""
    return backbone.tokenize([meta["llm"][name][sentence] for name in meta["classes"]])


def negative_ids(backbone: Backbone, meta: dict[str, Any], sentence: int) -> torch.Tensor:
    """Likewise of their negatives; one without sentences has a template's, one with too few its
    last again."""
    texts = []
    for name in meta["negatives"]:
        known = meta["llm"].get(name, [f"a video of a person {name.replace('_', ' ')}"])
        texts.append(known[min(sentence, len(known) - 1)])
    return backbone.tokenize(texts)


@torch.no_grad()
def test_bmpt_without_an_exchange_gives_the_releases_logits(
    reference: Path, backbone: Backbone
) -> None:
    tensors, meta = read(reference / "bmpt.safetensors")
    method = bmpt_of_the_release(backbone, tensors, meta)
    for name, sentences in stored_passes(tensors, meta).items():
        ids_PKS = [llm_ids(backbone, meta, sentence) for sentence in sentences]
        classes_KD = mean_over_sentences(
            torch.stack([encode_classes(method, ids_KS) for ids_KS in ids_PKS])
        )
        ours = cosine_logits(method, tensors["images"].unsqueeze(1), ids_PKS[0], classes_KD)
        assert_close(ours, tensors[f"{name}.logits_cos"])


@torch.no_grad()
def test_bmpts_knowledge_and_negatives_give_the_releases_logits(
    reference: Path, backbone: Backbone
) -> None:
    tensors, meta = read(reference / "bmpt.safetensors")
    method = bmpt_of_the_release(backbone, tensors, meta)
    scale = method.clip.logit_scale.exp()
    passes = stored_passes(tensors, meta)
    for name in passes.keys() - {"eval"}:
        [sentence] = passes[name]
        classes_KD = encode_classes(method, llm_ids(backbone, meta, sentence))
        ours = knowledge_logits(tensors["knowledge"], classes_KD, scale)
        assert_close(ours, tensors[f"{name}.logits_knowledge"])
        negatives = cosine_logits(
            method, tensors["images"].unsqueeze(1), negative_ids(backbone, meta, sentence)
        )
        assert_close(negatives, tensors[f"{name}.logits_negative"])


@torch.no_grad()
def test_prompts_in_both_towers_give_the_logits_of_vifi_clips_prompting(
    reference: Path, backbone: Backbone
) -> None:
    tensors, meta = read(reference / "vifi.safetensors")
    vision, text = stored_prompts(tensors, "vifi_clip")
    slots = " ".join(["X"] * len(text[0]))
    ids_KS = backbone.tokenize([f"{slots} {name.replace('_', ' ')}." for name in meta["classes"]])
    classes_KD = F.normalize(encode_texts(backbone.model, ids_KS, prompts=text), dim=-1)
    frames = tensors["images"].flatten(0, 1)
    cls_BTD = encode_frames(backbone.model, frames, num_frames=meta["T"], prompts=vision)[:, 0]
    videos_BD = F.normalize(cls_BTD.unflatten(0, (meta["B"], meta["T"])).mean(dim=1), dim=-1)
    assert_close(
        backbone.model.logit_scale.exp() * videos_BD @ classes_KD.T, tensors["ivlp.logits"]
    )


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
@torch.no_grad()
def test_text_prompts_with_start_words_equal_the_words(
    reference: Path, backbone: Backbone, num_tokens: int
) -> None:
    """CTX_INIT of ViFi-CLIP: at the first step prompts of up to 4 tokens stand for "a photo of
    a"."""
    meta = read(reference / "vifi.safetensors")[1]
    init = backbone.tokenize(["a photo of a"])
    prompt = backbone.model.token_embedding(init[0, 1 : 1 + num_tokens])
    ids_KS = backbone.tokenize(
        [f"a photo of a {name.replace('_', ' ')}." for name in meta["classes"]]
    )
    hidden_KS = ids_KS.clone()
    hidden_KS[:, 1 : 1 + num_tokens] = init[0, -1]
    plain = encode_texts(backbone.model, ids_KS)
    assert_close(encode_texts(backbone.model, hidden_KS, prompts=[prompt]), plain)
    assert (encode_texts(backbone.model, hidden_KS) - plain).abs().max() > 1e-2, (
        "the slots' own words are not read"
    )


def bdc_of_the_release(tensors: dict[str, torch.Tensor], **changes: Any) -> BdcHeads:
    state = bdc_state(tensors)
    reduced, joint = state["vision_reduce.weight"].shape
    heads = BdcHeads(joint, len(state["vision_bdc_head.bias"]), reduced_width=reduced, **changes)
    heads.load_state_dict(state)
    return heads


def bdc_video_tokens(
    backbone: Backbone, tensors: dict[str, torch.Tensor], meta: dict[str, Any]
) -> torch.Tensor:
    frames, blocks = tensors["images"].flatten(0, 1), space_time_blocks(backbone)
    tokens = encode_frames(backbone.model, frames, num_frames=meta["T"], space_time_blocks=blocks)
    return tokens.unflatten(0, (meta["B"], meta["T"]))


@torch.no_grad()
def test_bdc_clip_gives_the_originals_three_logits(reference: Path, backbone: Backbone) -> None:
    tensors, meta = read(reference / "bdc.safetensors")
    tokens_BTSD = bdc_video_tokens(backbone, tensors, meta)
    videos_BD = F.normalize(tokens_BTSD[:, :, 0].mean(dim=1), dim=-1)
    for name, sentences in stored_passes(tensors, meta).items():
        heads = bdc_of_the_release(tensors, floors_scale=True).train(name != "eval")
        ids_PKS = [llm_ids(backbone, meta, sentence) for sentence in sentences]
        texts = [(encode_text_tokens(backbone.model, ids_KS), ids_KS) for ids_KS in ids_PKS]
        classes_KD = mean_over_sentences(torch.stack([take_eot(*text) for text in texts]))
        text_KF = mean_over_sentences(torch.stack([heads.text_features(*text) for text in texts]))
        video_BF = heads.video_features(tokens_BTSD)
        assert_close(
            backbone.model.logit_scale.exp() * videos_BD @ classes_KD.T,
            tensors[f"{name}.logits_cos"],
        )
        assert_close(heads.classifier_logits(video_BF), tensors[f"{name}.logits_cls"])
        assert_close(heads.covariance_logits(video_BF, text_KF), tensors[f"{name}.logits_bdc"])


def bike_transformer(tensors: dict[str, torch.Tensor], backbone: Backbone) -> TemporalTransformer:
    state = naive.below(tensors, "param.")
    max_frames, width = state["frame_position_embeddings.weight"].shape
    num_heads = max(1, backbone.text_width // 64)
    num_layers = len(naive.blocks(state))
    transformer = TemporalTransformer(
        width, num_heads=num_heads, num_layers=num_layers, max_frames=max_frames
    )
    transformer.load_state_dict(state)
    return transformer


@torch.no_grad()
def test_the_towers_give_bikes_frames_tokens_and_text_features(
    reference: Path, backbone: Backbone
) -> None:
    tensors, meta = read(reference / "bike.safetensors")
    ids_KS = backbone.tokenize([f"This is a video about {name}" for name in meta["classes"]])
    assert torch.equal(ids_KS, tensors["token_ids"])
    tokens_KSD = encode_text_tokens(backbone.model, ids_KS)
    assert_close(tokens_KSD, tensors["text.tokens"])
    assert_close(take_eot(tokens_KSD, ids_KS), tensors["text.eot"])
    frames = encode_frames(backbone.model, tensors["images"].flatten(0, 1), num_frames=meta["T"])[
        :, 0
    ]
    assert_close(frames.unflatten(0, (meta["B"], meta["T"])), tensors["frames"])


@pytest.mark.parametrize("header", ["None", "Transf"])
@torch.no_grad()
def test_bikes_video_branch_gives_the_originals_logits(
    reference: Path, backbone: Backbone, header: str
) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    frames_BTD = (
        tensors["frames"]
        if header == "None"
        else bike_transformer(tensors, backbone)(tensors["frames"])
    )
    assert_close(
        mean_frame_cosines(frames_BTD, tensors["text.eot"]), tensors[f"{header}.DP.logits"]
    )
    is_word_KS = word_mask(tensors["token_ids"], counts_padding=True)
    ours = spotted_cosines(frames_BTD, tensors["text.eot"], tensors["text.tokens"], is_word_KS)
    assert_close(ours, tensors[f"{header}.VCS.logits"])


@torch.no_grad()
def test_bikes_logits_without_padding_are_those_of_the_words(reference: Path) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    frames_BTD, classes_KD, ids_KS = tensors["frames"], tensors["text.eot"], tensors["token_ids"]
    words = [
        list(row[: naive.eot(ids) + 1])
        for row, ids in zip(tensors["text.tokens"], ids_KS, strict=True)
    ]
    pairs = list(zip(classes_KD, words, strict=True))
    expected = [
        [naive.spotted_cosine(frames_TD, *pair) for pair in pairs] for frames_TD in frames_BTD
    ]
    ours = spotted_cosines(frames_BTD, classes_KD, tensors["text.tokens"], word_mask(ids_KS))
    assert_close(ours, torch.tensor(expected))


@torch.no_grad()
def test_bikes_attribute_head_gives_the_originals_logits(reference: Path) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    head = AttributeHead(tensors["attr.sentence"].shape[-1])
    head.load_state_dict(naive.below(tensors, "attr.param."))
    assert_close(head(tensors["attr.sentence"], tensors["text.eot"]), tensors["attr.logits"])


def test_bikes_loss_is_the_originals(reference: Path) -> None:
    tensors, _ = read(reference / "bike.safetensors")
    labels_N = tensors["nce.labels"]
    total = matching_sum(tensors["nce.logits"], labels_N, torch.ones(len(labels_N)))
    torch.testing.assert_close(total / len(labels_N), tensors["nce.loss"], rtol=1e-5, atol=1e-6)
