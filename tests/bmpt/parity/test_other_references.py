"""The tests that read stored outputs, once more on outputs of other seeds, widths, depths and
counts.

They are those of `naive_originals.py`: nobody can store the systems' own for every size."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bmpt.parity.reference_files import NAMES, Sizes, write_reference
from tests.rules.sources import ROOT

FILES = [
    "tests/bmpt/parity/test_parity.py",
    "tests/bmpt/methods/test_seam.py",
    "tests/bmpt/checkpoints/test_published_import.py",
]
ONE_FRAME = Sizes(
    seed=11,
    vision_width=128,
    vision_layers=5,
    text_width=64,
    text_layers=4,
    joint_width=32,
    patch_px=8,
    image_px=16,
    clips=1,
    frames=1,
    classes=3,
    ivlp=(4, 3, 2, 2),
    bmpt=(5, 2, 3, 4),
    reduced_width=7,
    temporal_layers=6,
)
DEEP = Sizes(
    seed=12,
    vision_width=64,
    vision_layers=13,
    text_width=128,
    text_layers=6,
    joint_width=48,
    patch_px=16,
    image_px=48,
    clips=2,
    frames=3,
    classes=6,
    ivlp=(13, 5, 6, 7),
    bmpt=(12, 3, 6, 6),
    reduced_width=10,
    temporal_layers=2,
)


def drawn_sizes(seed: int) -> Sizes:
    """Any that the systems can have, of small towers."""
    dice = random.Random(seed)
    vision_layers, text_layers, text_heads = (
        dice.randint(1, 14),
        dice.randint(1, 14),
        dice.randint(1, 3),
    )
    patch_px = dice.choice([4, 8, 16])
    return Sizes(
        seed=seed,
        vision_width=64 * dice.randint(1, 3),
        vision_layers=vision_layers,
        text_width=64 * text_heads,
        text_layers=text_layers,
        joint_width=8 * text_heads * dice.randint(2, 4),
        patch_px=patch_px,
        image_px=patch_px * dice.randint(1, 4),
        clips=dice.randint(1, 4),
        frames=dice.randint(1, 6),
        classes=dice.randint(1, len(NAMES)),
        ivlp=(
            dice.randint(0, vision_layers),
            dice.randint(1, 8),
            dice.randint(1, text_layers),
            dice.randint(1, 8),
        ),
        bmpt=(
            dice.randint(0, vision_layers),
            dice.randint(1, 8),
            dice.randint(0, text_layers),
            dice.randint(1, 8),
        ),
        reduced_width=dice.randint(2, 16),
        temporal_layers=dice.randint(1, 7),
    )


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Of the run below, whose plugin this module is: leave the tests that read stored outputs."""
    items[:] = [item for item in items if "reference" in item.fixturenames]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(ONE_FRAME, id="one frame"),
        pytest.param(DEEP, id="13 blocks"),
        *(
            pytest.param(drawn_sizes(seed), id=f"drawn {seed}", marks=pytest.mark.long)
            for seed in range(5)
        ),
    ],
)
def test_the_parity_tests_hold_for_other_stored_outputs(tmp_path: Path, sizes: Sizes) -> None:
    environment = {**os.environ, "BMPT_REFERENCE_DIR": str(write_reference(tmp_path, sizes))}
    command = [
        sys.executable,
        "-m",
        "pytest",
        *FILES,
        "-p",
        __name__,
        "-p",
        "no:cacheprovider",
        "-rp",
    ]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    passed = re.findall(r"^PASSED (\S+?)::", ended.stdout, re.MULTILINE)
    assert set(passed) == set(FILES)
    assert re.search(
        rf"^{len(passed)} passed(?:, \d+ warnings?)? in", ended.stdout, re.MULTILINE
    ), "none is skipped"
