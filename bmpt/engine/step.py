"""The gradient of one optimiser step, with the class texts encoded once for all its micro-batches.

Trained tensors do not change between the micro-batches of a step, and neither do class features. So
these are encoded before the first, a share of the classes on each rank, and the gradient is that of
encoding them in every micro-batch:

    T  = gather(encode(own classes))      with its graph;  T' = T without it
    micro-batches 1 .. A - 1:             backward of loss(T'), which adds up in T'.grad
    micro-batch A:                        backward of loss(T) + sum(T * T'.grad)

All of a step's gradients that reach the text side do so in one backward, the last, which is the one
that DDP reduces: a second one would leave different gradients on the ranks, and no error."""

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
    """Adds up the gradient of optimiser steps of one run, on one rank."""

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
        """texts: all sentences of the classes.

        classes: encodes them once a step. None for the same gradient by the plain way, in every
            micro-batch on every
        rank, which is the only one where class features depend on the clips: see
        `class_encoder`."""
        self._texts, self._classes = texts, classes
        self._autocast, self._scaler = autocast, scaler
        self._model: nn.Module = TrainingLoss(method)
        self._joint: DistributedDataParallel | None = None
        if world.size > 1:
            gpu = [world.device.index] if world.device.type == "cuda" else None
            self._joint = DistributedDataParallel(self._model, device_ids=gpu)
            self._model = self._joint

    def add(
        self,
        inputs: Iterable[ClipsAndTargets],
        *,
        num_batches: int,
        sentence_K: torch.Tensor,
        share: float,
    ) -> float:
        """Add the gradient of `share` times the summed loss of all micro-batches, and return that
        loss of this rank.

        inputs: normalised frames [B, 1, T, 3, H, W] and targets of each of `num_batches`
            micro-batches, made one at a
        time; sentence_K: int64, which sentence of each class the step reads; share: for the mean
        that DDP takes over ranks, their number over the valid clips of the global batch."""
        drawn, live, shared, loss_here = self._texts.drawn(sentence_K), None, None, 0.0
        if self._classes is not None:
            with self._autocast():
                live = self._classes.features(sentence_K)
            shared = _without_graph(live)
        for index, (clips, targets) in enumerate(inputs):
            is_last = index == num_batches - 1
            with nullcontext() if is_last or self._joint is None else self._joint.no_sync():
                with self._autocast():
                    loss = share * self._model(clips, drawn, targets, live if is_last else shared)
                total = loss if self._scaler is None else self._scaler.scale(loss)
                if is_last and live is not None and shared is not None:
                    total = total + _owed(live, shared)
                total.backward()
            loss_here += loss.detach()
        return float(loss_here)


class ClassEncoder:
    """Class features of a step: each rank encodes a share of the classes.

    Where nothing of the text side trains, a sentence is encoded once a run, when it is first
    drawn."""

    def __init__(self, method: Method, texts: ClassTexts, world: World) -> None:
        self._method, self._texts = method, texts
        counts = [
            stop - start
            for start, stop in (
                rank_slice(len(texts.names), r, world.size) for r in range(world.size)
            )
        ]
        self._gather = RowGather(tuple(counts), world.rank)
        self._is_frozen = not _trains_texts(method, texts)
        self._kept: dict[int, Features] = {}  # by the index of the sentence

    def features(self, sentence_K: torch.Tensor) -> Features:
        """Features [K, ...] of one sentence a class, float32 where they are floats; on all ranks at
        once."""
        if not self._is_frozen:
            return self._encode(self._texts.drawn(sentence_K))
        chosen = sorted(set(sentence_K.tolist()))
        for index in chosen:
            if index not in self._kept:
                with torch.no_grad():
                    self._kept[index] = self._encode(
                        self._texts.drawn(torch.full_like(sentence_K, index))
                    )
        found = dict(self._kept[chosen[0]])
        for index in chosen[1:]:
            is_its_K = sentence_K == index
            for kind, value in self._kept[index].items():
                found[kind] = torch.where(
                    is_its_K.view(-1, *[1] * (value.ndim - 1)), value, found[kind]
                )
        return found

    def _encode(self, drawn: ClassTexts) -> Features:
        own = self._gather.own
        # a rank without classes encodes one for nothing, so that all that trains is in its graph
        # too
        some = own if own.stop > own.start else slice(0, 1)
        encoded = self._method.encode_sentence(drawn.rows(some))
        return {
            kind: self._gather(value[: own.stop - own.start]) for kind, value in encoded.items()
        }


def class_encoder(method: Method, texts: ClassTexts, world: World) -> ClassEncoder | None:
    """What encodes the classes once a step, None for a method that cannot."""
    return None if method.settings.traits.couples_towers else ClassEncoder(method, texts, world)


def draw_sentences(texts: ClassTexts, *, seed: int, step: int) -> torch.Tensor:
    """Which sentence of each class a step reads, int64 [K]: a function of seed and step, the same
    on all ranks."""
    generator = torch.Generator().manual_seed(_number(f"sentences/{seed}/{step}"))
    return torch.randint(texts.num_sentences, (len(texts.names),), generator=generator)


def seed_dropout(*, seed: int, step: int, rank: int, micro: int) -> None:
    """Make what a micro-batch drops a function of its place, so that a resumed run drops the
    same."""
    torch.manual_seed(_number(f"dropout/{seed}/{step}/{rank}/{micro}"))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@torch.enable_grad()
def _trains_texts(method: Method, texts: ClassTexts) -> bool:
    """Whether class features have a gradient: by encoding one class."""
    one = texts.drawn(
        torch.zeros(len(texts.names), dtype=torch.int64, device=texts.ids_KPS.device)
    ).rows(slice(0, 1))
    return any(value.requires_grad for value in method.encode_sentence(one).values())


def _without_graph(live: Features) -> dict[str, torch.Tensor]:
    return {
        kind: value.detach().requires_grad_(value.requires_grad) for kind, value in live.items()
    }


def _owed(live: Features, shared: Features) -> torch.Tensor:
    """A number whose gradient by `live` is what earlier micro-batches have added up in `shared`."""
    parts = [
        (live[kind] * value.grad).sum() for kind, value in shared.items() if value.grad is not None
    ]
    return (
        torch.stack(parts).sum()
        if parts
        else torch.zeros((), device=next(iter(live.values())).device)
    )
