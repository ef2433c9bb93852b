"""The gradient of one optimiser step, with the class texts encoded once for all micro-batches.

Trained tensors do not change between the micro-batches of a step, and neither do class features.
They are therefore encoded before the first micro-batch, a part of the classes on each rank, and the
gradient equals that of encoding them in every micro-batch:

    T  = gather(encode(own classes))      with its graph;  T' = T without it
    micro-batches 1 .. A - 1:             backward of loss(T'), which accumulates in T'.grad
    micro-batch A:                        backward of loss(T) + sum(T * T'.grad)

All gradients of a step that reach the text side do so in one backward, the last, which is the one
that DDP reduces. A second backward would leave different gradients on the ranks, without an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bmpt.methods.base import ClassTexts, ClipInputs, Features, Method, Targets, TrainingLoss
from bmpt.methods.components.gather import RowGather
from bmpt.runtime.distributed import World
from shards.sampling.plan import rank_slice

Autocast = Callable[[], AbstractContextManager[object]]
ClipsAndTargets = tuple[ClipInputs, Targets]


class StepGradient:
    """Accumulates the gradient of the optimiser steps of a run, on one rank."""

    def __init__(
        self,
        method: Method,
        texts: ClassTexts,
        world: World,
        *,
        classes: ClassEncoder | None,
        autocast: Autocast = nullcontext,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Wrap the method for the ranks of a run.

        Args:
            method: The method; its parameters receive the gradient.
            texts: All sentences of the classes.
            world: The ranks.
            classes: Encodes the classes once per step. None for the same gradient by encoding them
                in every micro-batch on every rank, the only way where class features depend on the
                clips: see `class_encoder`.
            autocast: Makes the autocast context of the forward pass.
            scaler: Scales the loss under fp16.
        """
        self._texts, self._classes = texts, classes
        self._autocast, self._scaler = autocast, scaler
        self._model: nn.Module = TrainingLoss(method)
        self._joint: DistributedDataParallel | None = None
        if world.size > 1:
            gpu = [world.device.index] if world.device.type == "cuda" else None
            self._joint = DistributedDataParallel(self._model, device_ids=gpu)
            self._model = self._joint

    def accumulate(
        self,
        inputs: Iterable[ClipsAndTargets],
        *,
        num_batches: int,
        sentence_K: torch.Tensor,
        loss_scale: float,
    ) -> float:
        """Add the gradient of `loss_scale` times the summed loss of all micro-batches.

        Args:
            inputs: Clips of one view and targets of each micro-batch, made one at a time.
            num_batches: Number of micro-batches.
            sentence_K: int64, the sentence of each class that the step reads.
            loss_scale: The number of ranks divided by the valid clips of the global batch: DDP
                takes the mean over ranks.

        Returns:
            That loss of this rank.
        """
        drawn, loss_here = self._texts.drawn(sentence_K), 0.0
        with_graph, detached = None, None
        if self._classes is not None:
            with self._autocast():
                with_graph = self._classes.features(sentence_K)
            detached = _without_graph(with_graph)

        for index, (clips, targets) in enumerate(inputs):
            is_last = index == num_batches - 1
            # DDP reduces gradients in the last backward only
            with nullcontext() if is_last or self._joint is None else self._joint.no_sync():
                with self._autocast():
                    classes = with_graph if is_last else detached
                    loss = loss_scale * self._model(clips, drawn, targets, classes)
                total = loss if self._scaler is None else self._scaler.scale(loss)
                if is_last and with_graph is not None and detached is not None:
                    total = total + _carried_gradient(with_graph, detached)
                total.backward()
            loss_here += loss.detach()
        return float(loss_here)


class ClassEncoder:
    """Encodes the classes of a step, a part of them on each rank.

    Where nothing of the text side trains, each sentence is encoded once per run, when it is first
    drawn.
    """

    def __init__(self, method: Method, texts: ClassTexts, world: World) -> None:
        self._method, self._texts = method, texts
        slices = [rank_slice(len(texts.names), rank, world.size) for rank in range(world.size)]
        self._gather = RowGather(tuple(stop - start for start, stop in slices), world.rank)
        self._is_frozen = not _trains_texts(method, texts)
        self._features_by_sentence: dict[int, Features] = {}  # where the text side is frozen

    def features(self, sentence_K: torch.Tensor) -> Features:
        """Return features [K, ...] of one sentence per class, float32 where they are floats.

        All ranks must call it at once.
        """
        if not self._is_frozen:
            return self._encode(self._texts.drawn(sentence_K))

        chosen = sorted(set(sentence_K.tolist()))
        for index in chosen:
            if index not in self._features_by_sentence:
                texts = self._texts.drawn(torch.full_like(sentence_K, index))
                with torch.no_grad():
                    self._features_by_sentence[index] = self._encode(texts)

        features = dict(self._features_by_sentence[chosen[0]])
        for index in chosen[1:]:
            is_chosen_K = sentence_K == index
            for kind, value in self._features_by_sentence[index].items():
                is_chosen = is_chosen_K.view(-1, *[1] * (value.ndim - 1))
                features[kind] = torch.where(is_chosen, value, features[kind])
        return features

    def _encode(self, drawn: ClassTexts) -> Features:
        own = self._gather.own
        # A rank without classes encodes one and drops it, so that all trained parameters are in its
        # graph too.
        encoded_rows = own if own.stop > own.start else slice(0, 1)
        encoded = self._method.encode_sentence(drawn.rows(encoded_rows))
        return {
            kind: self._gather(value[: own.stop - own.start]) for kind, value in encoded.items()
        }


def class_encoder(method: Method, texts: ClassTexts, world: World) -> ClassEncoder | None:
    """Return the encoder of a step's classes; None for a method that couples the towers."""
    return None if method.traits.couples_towers else ClassEncoder(method, texts, world)


def draw_sentences(texts: ClassTexts, *, seed: int, step: int) -> torch.Tensor:
    """Return the sentence of each class that a step reads, int64 [K].

    It is a function of seed and step, the same on all ranks.
    """
    generator = torch.Generator().manual_seed(_hash_to_seed(f"sentences/{seed}/{step}"))
    return torch.randint(texts.num_sentences, (len(texts.names),), generator=generator)


def seed_dropout(*, seed: int, step: int, rank: int, micro: int) -> None:
    """Seed the dropout of a micro-batch, so that a resumed run drops the same units."""
    torch.manual_seed(_hash_to_seed(f"dropout/{seed}/{step}/{rank}/{micro}"))


def _hash_to_seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@torch.enable_grad()
def _trains_texts(method: Method, texts: ClassTexts) -> bool:
    """Return whether class features have a gradient, by encoding one class."""
    first_K = torch.zeros(len(texts.names), dtype=torch.int64, device=texts.ids_KPS.device)
    features = method.encode_sentence(texts.drawn(first_K).rows(slice(0, 1)))
    return any(value.requires_grad for value in features.values())


def _without_graph(features: Features) -> dict[str, torch.Tensor]:
    """Return detached copies that collect a gradient of their own where the originals have one."""
    return {
        kind: value.detach().requires_grad_(value.requires_grad) for kind, value in features.items()
    }


def _carried_gradient(with_graph: Features, detached: Features) -> torch.Tensor:
    """Return the surrogate loss of the earlier micro-batches.

    Its gradient with respect to the class features equals the gradient that the earlier
    micro-batches have accumulated in the detached ones.
    """
    parts = [
        (with_graph[kind] * value.grad).sum()
        for kind, value in detached.items()
        if value.grad is not None
    ]
    if parts:
        return torch.stack(parts).sum()
    return torch.zeros((), device=next(iter(with_graph.values())).device)
