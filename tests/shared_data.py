"""The sample clips and published lists that some tests need; they are not part of the
repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data() -> Path:
    """The folder `data` (with `clips/` and `splits/`) below $BMPT_SHARED, else below `shared`
    beside the checkout.

    Skips the test if it is not there."""
    named = os.environ.get("BMPT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data" / "splits").is_dir():
        pytest.skip(
            "needs the sample clips and lists: ../shared/data beside the checkout, or $BMPT_SHARED/data"
        )
    return folder / "data"
