"""Rows gathered over ranks: the loss and every gradient are those of one process."""

from __future__ import annotations

import pytest
import torch

from bmpt.methods.components.gather import RowGather, row_gather
from tests.bmpt.methods.matching_ranks import CASES, LABELS, Step, step
from tests.bmpt.runs import torchrun
from tests.bmpt.tiny import random_frames


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Step]]:
    """What two gloo processes computed: [case][rank]."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(2, str(folder), module="tests.bmpt.methods.matching_ranks")
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return [[Step(**rank[case]) for rank in ranks] for case in range(len(CASES))]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_ranks_give_the_loss_and_the_gradients_of_one_process(
    two_ranks: list[list[Step]], case: int
) -> None:
    counts, dual = CASES[case]
    alone = step((len(LABELS),), 0, dual=dual)
    ours = two_ranks[case]
    torch.testing.assert_close(sum(rank.part for rank in ours), alone.part)
    assert alone.part > 0.1
    for rank, theirs in zip(ours, alone.rows.split(counts), strict=True):
        # a rank's own rows get their gradient of the whole loss, times the two ranks of DDP's mean
        torch.testing.assert_close(rank.rows, 2 * theirs)
    for rank in ours:
        assert rank.gradients.keys() == alone.gradients.keys()
        for name, gradient in alone.gradients.items():
            assert gradient.abs().max() > 1e-6, name
            torch.testing.assert_close(rank.gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_gather_of_one_rank_returns_its_rows() -> None:
    rows = random_frames(3, 2).requires_grad_()
    gather = row_gather(3, rows.device)
    assert gather == RowGather((3,), 0)
    assert gather.own == slice(0, 3)
    assert gather(rows) is rows


def test_half_precision_rows_become_float32_and_labels_stay() -> None:
    gather = row_gather(3, torch.device("cpu"))
    rows = random_frames(3, 2).bfloat16()
    assert torch.equal(gather(rows), rows.float())
    assert gather(torch.tensor([2, 0, 1])).tolist() == [2, 0, 1]
    assert gather(torch.tensor([2, 0, 1])).dtype == torch.int64


def test_rows_of_ranks_are_in_rank_order() -> None:
    assert [RowGather((2, 0, 3), rank).own for rank in range(3)] == [
        slice(0, 2),
        slice(2, 2),
        slice(2, 5),
    ]


def test_another_number_of_rows_than_announced_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 1 announced 2 rows and gives 3"):
        RowGather((1, 2), 1)(random_frames(3, 2))
