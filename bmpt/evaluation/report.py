"""Results as a table for people."""

from __future__ import annotations

from typing import Any


def results_table(results: dict[str, Any]) -> str:
    """One line a manifest with its counts, then HM where base and novel are there."""
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
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if results["hm"] is not None:
        lines.append(f"HM of {' and '.join(results['hm_of'])}: {results['hm']:.2f}")
    return "\n".join(lines)


def show_percent(value: float | None) -> str:
    """Two decimals, or a dash where nothing was scored."""
    return "-" if value is None else f"{value:.2f}"
