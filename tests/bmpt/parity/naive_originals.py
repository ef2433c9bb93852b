"""The four original systems once more, slowly: their forward passes and losses, written from their
formulas alone.

Nothing of `bmpt` is imported. Weights are {the originals' name: tensor}; clips, frames, blocks,
heads, queries, channels and words are loops wherever a loop is plainer. All runs in the type of its
inputs, float64 in the tests.
Shapes: T frames, S tokens, E tower width, D joint width, K classes, P prompt tokens, M tokens of a
    set, d channels of
theirs, F entries of a covariance, N clips of a global batch. A call takes one clip or one text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Weights = Mapping[str, torch.Tensor]
Prompts = Sequence["torch.Tensor | None"]


@dataclass(frozen=True)
class Clip:
    """weights: by OpenAI's names; quick_gelu: else GELU"""

    weights: Weights
    vision_heads: int
    text_heads: int
    quick_gelu: bool

    @property
    def scale(self) -> torch.Tensor:
        """100 in the released weights."""
        return self.weights["logit_scale"].exp()


def below(weights: Weights, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of one module."""
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def unit(vector: torch.Tensor) -> torch.Tensor:
    """Of length 1."""
    return vector / vector.square().sum().sqrt()


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of two vectors of any length."""
    return unit(one) @ unit(other)


def softmax(values: torch.Tensor) -> torch.Tensor:
    """Of a vector."""
    exponents = (values - values.max()).exp()
    return exponents / exponents.sum()


def linear(weights: Weights, name: str, vectors: torch.Tensor) -> torch.Tensor:
    """Weight times each vector, plus bias if there is one."""
    out = vectors @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def layer_norm(
    weights: Weights, name: str, vectors: torch.Tensor, *, epsilon: float = 1e-5
) -> torch.Tensor:
    """Each vector without its mean and at a spread of 1, then gain and shift."""
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    spread = (centred.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(
    weights: Weights, tokens_SE: torch.Tensor, num_heads: int, *, causal: bool
) -> torch.Tensor:
    """Query by query and head by head; causal: a query sees the tokens up to its own alone."""
    query, key, value = (tokens_SE @ weights["in_proj_weight"].T + weights["in_proj_bias"]).chunk(
        3, dim=-1
    )
    width = tokens_SE.shape[1] // num_heads
    mixed = []
    for at in range(len(tokens_SE)):
        num_seen = at + 1 if causal else len(tokens_SE)
        heads = []
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            share = softmax(key[:num_seen, part] @ query[at, part] / math.sqrt(width))
            heads.append(share @ value[:num_seen, part])
        mixed.append(torch.cat(heads))
    return linear(weights, "out_proj", torch.stack(mixed))


def block(
    weights: Weights,
    sequences: Sequence[torch.Tensor],
    num_heads: int,
    *,
    quick_gelu: bool,
    causal: bool = False,
    together: bool = False,
    epsilon: float = 1e-5,
) -> list[torch.Tensor]:
    """x += attention(LN x), x += MLP(LN x), of sequences [S, E]; together: all tokens of all of
    them attend jointly."""
    attend = below(weights, "attn.")
    normed = [layer_norm(weights, "ln_1", tokens_SE, epsilon=epsilon) for tokens_SE in sequences]
    if together:
        mixed = attention(attend, torch.cat(normed), num_heads, causal=causal).split(
            [len(one) for one in normed]
        )
    else:
        mixed = tuple(
            attention(attend, tokens_SE, num_heads, causal=causal) for tokens_SE in normed
        )
    updated = []
    for tokens_SE, attended_SE in zip(sequences, mixed, strict=True):
        tokens_SE = tokens_SE + attended_SE
        wide = linear(weights, "mlp.c_fc", layer_norm(weights, "ln_2", tokens_SE, epsilon=epsilon))
        wide = (
            wide / (1 + (-1.702 * wide).exp())
            if quick_gelu
            else wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
        )
        updated.append(tokens_SE + linear(weights, "mlp.c_proj", wide))
    return updated


def blocks(weights: Weights) -> list[dict[str, torch.Tensor]]:
    """The weights of each block of a transformer, in order."""
    inside = below(weights, "transformer.resblocks.")
    count = len({name.split(".")[0] for name in inside})
    return [below(inside, f"{index}.") for index in range(count)]


def video_tokens(
    clip: Clip,
    frames_TCHW: torch.Tensor,
    *,
    prompts: Prompts = (),
    space_time_blocks: Sequence[int] = (),
) -> torch.Tensor:
    """All projected tokens [T, S, D] of a clip, CLS first, prompt tokens last.

    prompts: those of block 0 go in before `ln_pre`, without a position; later ones replace them at
        their block"""
    visual = below(clip.weights, "visual.")
    kernel = visual["conv1.weight"]
    size = kernel.shape[-1]
    sequences = []
    for frame in frames_TCHW:
        tokens = [visual["class_embedding"]]
        for top in range(0, frame.shape[1], size):
            for left in range(0, frame.shape[2], size):
                patch = frame[:, top : top + size, left : left + size]
                tokens.append((kernel * patch).flatten(1).sum(dim=1))
        tokens_SE = torch.stack(tokens) + visual["positional_embedding"]
        if prompts and prompts[0] is not None:
            tokens_SE = torch.cat([tokens_SE, prompts[0]])
        sequences.append(layer_norm(visual, "ln_pre", tokens_SE))
    for index, weights in enumerate(blocks(visual)):
        prompt_PE = prompts[index] if 0 < index < len(prompts) else None
        if prompt_PE is not None:
            sequences = [
                torch.cat([tokens_SE[: -len(prompt_PE)], prompt_PE]) for tokens_SE in sequences
            ]
        together = index in space_time_blocks
        sequences = block(
            weights, sequences, clip.vision_heads, quick_gelu=clip.quick_gelu, together=together
        )
    return torch.stack(
        [layer_norm(visual, "ln_post", tokens_SE) @ visual["proj"] for tokens_SE in sequences]
    )


def text_tokens(clip: Clip, ids_S: torch.Tensor, *, prompts: Prompts = ()) -> torch.Tensor:
    """All projected tokens [S, D] of a text.

    prompts: each overwrites the tokens right after SOT; those of block 0 their word vectors, before
        positions"""
    tokens_SE = torch.stack(
        [clip.weights["token_embedding.weight"][number] for number in ids_S.tolist()]
    )
    if prompts and prompts[0] is not None:
        tokens_SE = overwritten(tokens_SE, prompts[0])
    tokens_SE = tokens_SE + clip.weights["positional_embedding"]
    for index, weights in enumerate(blocks(clip.weights)):
        prompt_PE = prompts[index] if 0 < index < len(prompts) else None
        if prompt_PE is not None:
            tokens_SE = overwritten(tokens_SE, prompt_PE)
        [tokens_SE] = block(
            weights, [tokens_SE], clip.text_heads, quick_gelu=clip.quick_gelu, causal=True
        )
    return layer_norm(clip.weights, "ln_final", tokens_SE) @ clip.weights["text_projection"]


def overwritten(tokens_SE: torch.Tensor, prompt_PE: torch.Tensor) -> torch.Tensor:
    """The prompt in the places right after the first."""
    return torch.cat([tokens_SE[:1], prompt_PE, tokens_SE[1 + len(prompt_PE) :]])


def eot(ids_S: torch.Tensor) -> int:
    """Where a text ends: its largest id."""
    return ids_S.tolist().index(max(ids_S.tolist()))


def pooled(tokens_TSD: torch.Tensor) -> torch.Tensor:
    """The unit feature [D] of a clip: the mean of the frames' CLS, not unit before."""
    return unit(torch.stack([tokens_SD[0] for tokens_SD in tokens_TSD]).mean(dim=0))


def text_feature(clip: Clip, ids_S: torch.Tensor, *, prompts: Prompts = ()) -> torch.Tensor:
    """The unit feature [D] of a text."""
    return unit(text_tokens(clip, ids_S, prompts=prompts)[eot(ids_S)])


def mean_sentence(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The unit mean of a class's sentences, each made unit before."""
    return unit(torch.stack([unit(feature) for feature in features]).mean(dim=0))


def scaled_cosines(
    scale: torch.Tensor, video: torch.Tensor, classes: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Logits [K] of one clip."""
    return torch.stack([scale * cosine(video, feature) for feature in classes])


def exchanged(
    layers: Sequence[Weights], vision: Sequence[torch.Tensor], text: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Our exchange of prompts [P, E] from layer 1 on: a first half, through a gated map, moves the
    other's second half.

    Token by token where the halves have one size, else by the mean; both directions read what was
    there before."""

    def moved(
        weights: Weights, way: str, giving_PE: torch.Tensor, taking_PE: torch.Tensor
    ) -> torch.Tensor:
        gives, keeps = giving_PE[: len(giving_PE) // 2], len(taking_PE) // 2
        if len(gives) != len(taking_PE) - keeps:
            gives = gives.mean(dim=0, keepdim=True)
        hidden = linear(weights, f"{way}.0", gives)
        added = linear(weights, f"{way}.2", hidden / (1 + (-1.702 * hidden).exp()))
        gate = weights["gate_to_text" if way == "vision_to_text" else "gate_to_vision"]
        return torch.cat([taking_PE[:keeps], taking_PE[keeps:] + gate * added])

    new_vision, new_text = list(vision), list(text)
    for layer, weights in enumerate(layers, start=1):
        new_text[layer] = moved(weights, "vision_to_text", vision[layer], text[layer])
        new_vision[layer] = moved(weights, "text_to_vision", text[layer], vision[layer])
    return new_vision, new_text


def weighed(tokens_Md: torch.Tensor, whole_d: torch.Tensor) -> torch.Tensor:
    """Each token times its softmax share against a global token. Source: BDC-CLIP."""
    share_M = softmax(
        torch.stack([token @ whole_d / math.sqrt(len(whole_d)) for token in tokens_Md])
    )
    return torch.stack([share * token for share, token in zip(share_M, tokens_Md, strict=True)])


def distance_covariance(tokens_Md: torch.Tensor) -> torch.Tensor:
    """The covariance [F] of a token set, pair of channels by pair of channels. Source: BDC-CLIP."""
    num_tokens, width = tokens_Md.shape
    distance = torch.zeros(width, width, dtype=tokens_Md.dtype)
    for i in range(width):
        for j in range(width):
            squared = (tokens_Md[:, i] - tokens_Md[:, j]).square().sum() / (2 * num_tokens)
            distance[i, j] = (squared + 1e-5).sqrt()
    rows, columns, mean = distance.mean(dim=1), distance.mean(dim=0), distance.mean()
    centred = [
        distance[i, j] - rows[i] - columns[j] + mean for i in range(width) for j in range(i, width)
    ]
    return torch.stack(centred)


def video_covariance(heads: Weights, tokens_TSD: torch.Tensor) -> torch.Tensor:
    """The covariance [F] of a clip: those of its frames, each beside what it reads of all by their
    CLS."""
    frames = [
        linear(heads, "vision_reduce", layer_norm(heads, "vision_norm", tokens))
        for tokens in tokens_TSD
    ]
    features = [distance_covariance(weighed(tokens_Sd, tokens_Sd[0])) for tokens_Sd in frames]
    queries = [linear(heads, "vision_q_proj", tokens_Sd[0]) for tokens_Sd in frames]
    keys = [linear(heads, "vision_k_proj", tokens_Sd[0]) for tokens_Sd in frames]
    total = torch.zeros_like(features[0])
    for query, feature in zip(queries, features, strict=True):
        share = softmax(torch.stack([query @ key / math.sqrt(len(query)) for key in keys]))
        total = (
            total + sum(part * other for part, other in zip(share, features, strict=True)) + feature
        )
    return total / len(frames)


def text_covariance(heads: Weights, tokens_SD: torch.Tensor, at: int) -> torch.Tensor:
    """The covariance [F] of a text of all its positions, weighed against that of EOT."""
    reduced_Sd = linear(heads, "text_reduce", layer_norm(heads, "text_norm", tokens_SD))
    return distance_covariance(weighed(reduced_Sd, reduced_Sd[at]))


def covariance_scale(
    heads: Weights, *, trains: bool, divisor: float = 5.0, floors: bool = False
) -> torch.Tensor:
    """The trained scale, in scoring divided, in the release by floor division."""
    scale = heads["logits_scale_vision"].exp()
    quotient = scale if trains else scale / divisor
    return quotient.floor() if floors and not trains else quotient


def temporal_transformer(weights: Weights, frames_TD: torch.Tensor, num_heads: int) -> torch.Tensor:
    """BIKE's frames that know their place and each other [T, D]."""
    places = weights["frame_position_embeddings.weight"]
    tokens_TD = torch.stack([frame + places[t] for t, frame in enumerate(frames_TD)])
    for inside in blocks(weights):
        [tokens_TD] = block(inside, [tokens_TD], num_heads, quick_gelu=True, epsilon=1e-12)
    return tokens_TD + frames_TD


def mean_frame_cosine(frames_TD: torch.Tensor, class_D: torch.Tensor) -> torch.Tensor:
    """BIKE's `DP`: of the mean of frames that are not unit."""
    return cosine(frames_TD.sum(dim=0) / len(frames_TD), class_D)


def spotted_cosine(
    frames_TD: torch.Tensor, class_D: torch.Tensor, words: Sequence[torch.Tensor]
) -> torch.Tensor:
    """BIKE's `VCS`: each word shares itself out over the frames, and a frame counts the mean of its
    shares."""
    saliency_T = torch.zeros(len(frames_TD), dtype=frames_TD.dtype)
    for word in words:
        saliency_T = saliency_T + softmax(
            torch.stack([cosine(word, frame) / 0.01 for frame in frames_TD])
        ) / len(words)
    spotted = sum(part * unit(frame) for part, frame in zip(saliency_T, frames_TD, strict=True))
    return spotted @ unit(class_D)


def attribute_cosine(
    weights: Weights, sentence_D: torch.Tensor, class_D: torch.Tensor
) -> torch.Tensor:
    """BIKE's attribute sentence of a clip against a class, each through its own two layers."""

    def mapped(name: str, vector: torch.Tensor) -> torch.Tensor:
        return linear(weights, f"{name}.2", linear(weights, f"{name}.0", unit(vector)).clamp(min=0))

    return cosine(mapped("sentence_fc", sentence_D), mapped("query_fc", class_D))


def fused(
    logits: Mapping[str, Sequence[torch.Tensor]], shares: Mapping[str, float]
) -> torch.Tensor:
    """Scores [K] of one clip from the logits of its views, by kind: shares of softmaxes, the mean
    over views."""
    total = torch.zeros(())
    for kind, views in logits.items():
        for logits_K in views:
            total = total + shares[kind] * softmax(logits_K) / len(views)
    return total


def cross_entropy(logits_K: torch.Tensor, label: int, *, smoothing: float = 0.0) -> torch.Tensor:
    """(1 - eps) of the label's negative log-probability and eps of the mean over classes."""
    costs = -softmax(logits_K).log()
    return (1 - smoothing) * costs[label] + smoothing * costs.mean()


def negative_margin(
    logits_K: torch.Tensor, negatives_K: torch.Tensor, label: int, *, margin: float = 0.1
) -> torch.Tensor:
    """BMPT: how far a class fails to beat its own negative by the margin, in probability."""
    return (margin - (softmax(logits_K)[label] - softmax(negatives_K)[label])).clamp(min=0)


def divergences(
    logits_NN: torch.Tensor, labels: Sequence[int], *, dual: bool = False
) -> torch.Tensor:
    """KL of each row's softmax from its target [N]; dual: times N and the softmax of its column at
    1000."""
    if dual:
        columns = [softmax(column / 1000) for column in logits_NN.T]
        logits_NN = logits_NN * torch.stack(columns, dim=1) * len(labels)
    costs = []
    for label, row in zip(labels, logits_NN, strict=True):
        target = softmax(
            torch.tensor([10.0 * (label == other) for other in labels], dtype=row.dtype)
        )
        log_total = row.max() + (row - row.max()).exp().sum().log()
        costs.append((target * (target.log() - row + log_total)).sum())
    return torch.stack(costs)


def matching(logits_NN: torch.Tensor, labels: Sequence[int], *, dual: bool = False) -> torch.Tensor:
    """BIKE: clips among texts and texts among clips, a cost for each clip [N]; NCE, or DS if
    dual."""
    return (
        divergences(logits_NN, labels, dual=dual) + divergences(logits_NN.T, labels, dual=dual)
    ) / 2
