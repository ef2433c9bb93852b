"""One small pool that the tests of this folder read and never change."""

from __future__ import annotations

import pytest

from shards.reader import Pool
from tests.pools import make_pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """24 samples of 12 frames 48x64 in 5 shards; `base_to_novel/val_novel` lists 12,
    `few_shot/train_k2` 8."""
    return make_pool(tmp_path_factory.mktemp("pool"), samples_per_class=6)
