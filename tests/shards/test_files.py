"""Atomic writes, locks between real processes, and the words of errors."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import StorageError
from shards.files import (
    hash_file,
    hold_folder_lock,
    hold_lock,
    name_some,
    one_line,
    os_error_text,
    write_file,
)

HOLDER = """
import sys
from pathlib import Path
from shards.files import hold_folder_lock, hold_lock
path = Path(sys.argv[1])
hold = hold_folder_lock if path.is_dir() else hold_lock
with hold(path, shared=sys.argv[2] == "shared"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def start_holder(path: Path, kind: str) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its standard input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_write_file_replaces_the_content_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "state.pt"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_write_file_names_the_file_the_reason_and_the_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StorageError, match=r"file/state\.pt: cannot be written: .*; give another run\.dir"
    ):
        write_file(tmp_path / "file" / "state.pt", b"", hint="give another run.dir")


@pytest.mark.parametrize("is_folder", [False, True])
def test_hold_lock_refuses_a_lock_that_another_process_holds(
    tmp_path: Path, is_folder: bool
) -> None:
    path, hold = (tmp_path, hold_folder_lock) if is_folder else (tmp_path / "lock", hold_lock)
    holder = start_holder(path, "exclusive")
    with pytest.raises(BlockingIOError, match="another process holds the lock"), hold(path):
        pass

    holder.kill()  # the kernel releases the lock of a killed process
    holder.wait()
    with hold(path):
        pass


def test_hold_folder_lock_creates_nothing_where_the_folder_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), hold_folder_lock(tmp_path / "gone"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_hold_lock_shares_a_shared_lock_and_refuses_an_exclusive_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = start_holder(path, "shared")
    with hold_lock(path, shared=True):
        pass
    with pytest.raises(BlockingIOError), hold_lock(path):
        pass
    holder.communicate("")


def test_hash_file_is_sha256_over_several_reads(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192  # two reads of 1 MiB
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_name_some_counts_the_names_that_it_leaves_out() -> None:
    assert name_some(["a", "b", "c"], 3) == "a, b, c"
    assert name_some(iter(["a", "b", "c", "d"]), 2) == "a, b and 2 more"


def test_error_texts_are_one_line_without_the_path() -> None:
    assert os_error_text(FileNotFoundError(2, "No such file or directory", "/secret")) == (
        "No such file or directory"
    )
    assert os_error_text(OSError("two\n  lines")) == "two lines"
    assert one_line("  a\tb\n") == "a b"
