"""Results as a table for a terminal."""

from __future__ import annotations

from typing import Any


def results_table(results: dict[str, Any]) -> str:
    """Return one line per manifest with its counts, and the HM of base and novel if both exist.

    Args:
        results: The content of results.json.
    """
    rows = [("manifest", "top-1", "top-5", "correct/scored", "failed", "missing", "classes")]
    for entry in results["evaluations"]:
        rows.append(
            (
                entry["manifest"],
                show_percent(entry["top1"]),
                show_percent(entry["top5"]),
                f"{entry['correct_top1']}/{entry['scored']}",
                str(entry["failed"]),
                str(entry["missing"]),
                str(entry["classes"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    if results["hm"] is not None:
        lines.append(f"HM of {' and '.join(results['hm_of'])}: {results['hm']:.2f}")
    return "\n".join(lines)


def show_percent(value: float | None) -> str:
    """Return a percentage with two decimals, or a dash where nothing was scored."""
    return "-" if value is None else f"{value:.2f}"
