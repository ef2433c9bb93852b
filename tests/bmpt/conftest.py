"""The tiny CLIP and the toy pool, made once; a test that damages one makes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bmpt.clip.backbone import Backbone, load_backbone
from bmpt.config import RunConfig
from tests.bmpt.parity.stored_outputs import reference_folder
from tests.bmpt.runs import VAL, run
from tests.bmpt.tiny import make_config, write_clip
from tests.pools import make_pool

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Every test computes on one thread, as a run does by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file: visual width 48, text width 32, joint width 16, 4 blocks each, images of 32
    px."""
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny.safetensors")


@pytest.fixture(scope="session")
def toy_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 classes of 5 samples: few_shot train 8 / val 12, base_to_novel train 4 / val_base 6 /
    val_novel 10."""
    folder = tmp_path_factory.mktemp("toy") / "pool"
    make_pool(folder, samples_per_class=5)
    return folder


@pytest.fixture
def config(tmp_path: Path, clip: Path, toy_pool: Path) -> MakeConfig:
    """Make a config in this test's folder; keyword arguments are sections, `run` names the run
    folder."""

    def make(*, run: str = "run", **sections: Any) -> RunConfig:
        return make_config(tmp_path, clip, toy_pool, run=run, **sections)

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, clip: Path, toy_pool: Path) -> RunConfig:
    """One run through training and evaluation that several tests look at and none changes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    settings = make_config(folder, clip, toy_pool, eval={"manifests": [*VAL, "few_shot/val"]})
    run(settings)
    return settings


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the outputs that the original systems computed."""
    return reference_folder()


@pytest.fixture
def backbone(reference: Path) -> Backbone:
    """The CLIP with which the originals' outputs were computed."""
    return load_backbone("reference", str(reference / "clip_tiny.safetensors"))
