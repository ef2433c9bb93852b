"""Test that class texts encoded once per step, over all ranks, give the same gradients as class
texts encoded in every micro-batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bmpt.engine.step_ranks import CASES, CLASSES, step
from tests.bmpt.runs import torchrun
from tests.bmpt.tiny import ALONE

Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(
    request: pytest.FixtureRequest, clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[list[Gradients]]:
    """Gradients of gloo processes, [rank][case]; of four processes one has no class to encode."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(request.param, str(clip), str(folder), module="tests.bmpt.engine.step_ranks")
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def assert_equal(ours: Gradients, plain: Gradients) -> None:
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        if name not in ("loss", "texts"):
            torch.testing.assert_close(
                ours[name], gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max() + 1e-6)
            )


@pytest.mark.parametrize("case", range(len(CASES)))
def test_gradients_on_one_rank_equal_encoding_every_micro_batch(clip: Path, case: int) -> None:
    plain = step(clip, case, ALONE, encodes_once=False)
    ours = step(clip, case, ALONE)
    assert_equal(ours, plain)
    torch.testing.assert_close(ours["loss"], plain["loss"])
    assert sum(bool(value.abs().max() > 1e-9) for value in plain.values()) > 2, (
        "a gradient beside loss and texts"
    )


def test_gradients_on_several_ranks_equal_encoding_every_micro_batch_on_one(
    clip: Path, ranks: list[list[Gradients]]
) -> None:
    for case in range(len(CASES)):
        plain = step(clip, case, ALONE, encodes_once=False)
        for rank in ranks:
            assert_equal(rank[case], plain)
        mean = sum(rank[case]["loss"] for rank in ranks) / len(ranks)
        torch.testing.assert_close(mean, plain["loss"], rtol=1e-9, atol=0)


def test_each_rank_encodes_a_part_of_the_classes(clip: Path, ranks: list[list[Gradients]]) -> None:
    for case in range(len(CASES)):
        texts_a_class = int(step(clip, case, ALONE)["texts"]) // len(CLASSES)
        of_ranks = [int(rank[case]["texts"]) for rank in ranks]
        assert texts_a_class > 0
        assert max(of_ranks) == texts_a_class * -(-len(CLASSES) // len(ranks))
