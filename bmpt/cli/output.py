"""The results of a run on stdout, for the commands that have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def show_results(results: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    """Print results.json as a table, or as one JSON object."""
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return

    from bmpt.evaluation.report import results_table

    print(results_table(results))
    print(f"results: {folder / 'results.json'}")
