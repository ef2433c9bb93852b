"""What processes hold, from the kernel, not what Python thinks: USS is memory that no other process
shares."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Processes that a process has started; none if it has just ended."""
    with contextlib.suppress(OSError):
        return [
            int(word)
            for path in Path(f"/proc/{pid}/task").glob("*/children")
            for word in path.read_text().split()
        ]
    return []


def tree_uss_bytes(pid: int) -> int:
    """USS of a process and of all that it has started: FFmpeg's, where that decodes."""
    return uss_bytes(pid) + sum(tree_uss_bytes(child) for child in children_of(pid))


def uss_bytes(pid: int) -> int:
    """Memory that no other process shares; 0 if the process has just ended."""
    return _kernel_bytes(pid, "Private_Clean", "Private_Dirty")


def rss_bytes(pid: int) -> int:
    """Memory that a process has in RAM, shared or not; 0 if it has just ended."""
    return _kernel_bytes(pid, "Rss")


def _kernel_bytes(pid: int, *names: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines[1:])
    return 1024 * sum(int(fields[name].split()[0]) for name in names)
