"""The cache: each entry is loaded once, the cap holds, and a kill leaves no file for good."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import SampleError
from shards.fetching.cache import Cache
from shards.files import hold_lock
from tests.shards.streams import held_bytes

ROOT = Path(__file__).resolve().parents[3]


def content(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def read(cache: Cache, name: str, size: int, loads: list[str]) -> list[bytes]:
    def load() -> bytes:
        loads.append(name)
        return content(name, size)

    return cache.read(name, size, [(0, 3), (size - 2, 2)], load)[0]


def test_an_entry_is_loaded_once_and_read_in_ranges(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=1000)
    loads: list[str] = []
    whole = content("a", 100)
    for _ in range(3):
        assert read(cache, "a", 100, loads) == [whole[:3], whole[-2:]]
    assert loads == ["a"]
    assert cache.read("a", 100, [(5, 7)], bytes)[1]


@given(requests=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 60)), max_size=60))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_cache_stays_below_its_cap_and_returns_the_right_bytes(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("cap")
    cache = Cache(folder, max_bytes=200)
    for number, size in requests:
        name = f"{number}-{size}"
        whole = content(name, size)
        assert cache.read(name, size, [(0, size)], lambda whole=whole: whole)[0] == [whole]
        assert held_bytes(folder) <= 200


def test_the_least_recently_used_entries_are_evicted_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=300)
    loads: list[str] = []
    for name in ("a", "b", "c"):
        read(cache, name, 100, loads)
        os.utime(cache._path(name), (0, {"a": 3000, "b": 1000, "c": 2000}[name]))
    read(cache, "d", 100, loads)
    loads.clear()
    read(cache, "a", 100, loads)
    assert loads == []
    read(cache, "b", 100, loads)
    assert loads == ["b"]


def test_an_entry_larger_than_the_cap_is_read_and_not_stored(tmp_path: Path) -> None:
    loads: list[str] = []
    for _ in range(2):
        read(Cache(tmp_path, max_bytes=50), "a", 100, loads)
    assert loads == ["a", "a"]
    assert held_bytes(tmp_path) == 0


def test_an_entry_that_cannot_be_loaded_is_not_stored(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=500)

    def fail() -> bytes:
        raise SampleError("damaged")

    with pytest.raises(SampleError):
        cache.read("a", 100, [(0, 1)], fail)
    assert read(cache, "a", 100, []) == [content("a", 100)[:3], content("a", 100)[-2:]]


def test_the_cache_folder_may_be_deleted_between_two_reads(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=500)
    for victim in ("", "pieces", "locks", "used"):
        read(cache, "a", 100, [])
        path = tmp_path / "cache" / victim
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert read(cache, "b", 50, []) == [content("b", 50)[:3], content("b", 50)[-2:]]


def test_the_cache_folder_may_be_deleted_during_reads_and_writes(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    is_over = threading.Event()

    def delete_again_and_again() -> None:
        while not is_over.is_set():
            shutil.rmtree(folder, ignore_errors=True)

    deleter = threading.Thread(target=delete_again_and_again)
    deleter.start()
    try:
        with ThreadPoolExecutor(4) as readers:
            names = [f"entry {number % 20}" for number in range(400)]
            ranges = readers.map(
                lambda name: read(Cache(folder, max_bytes=500), name, 100, []), names
            )
            for name, parts in zip(names, ranges, strict=True):
                assert parts == [content(name, 100)[:3], content(name, 100)[-2:]]
    finally:
        is_over.set()
        deleter.join()


def test_a_truncated_entry_is_loaded_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=500)
    loads: list[str] = []
    read(cache, "a", 100, loads)
    os.truncate(cache._path("a"), 40)
    read(cache, "a", 100, loads)
    assert loads == ["a", "a"]


def _read_all(folder: Path, log: Path, names: list[str]) -> None:
    cache = Cache(folder, max_bytes=10_000)
    for name in names:

        def load(name: str = name) -> bytes:
            with log.open("a") as file:
                file.write(f"{name}\n")
            time.sleep(0.02)
            return content(name, 100)

        assert cache.read(name, 100, [(0, 100)], load)[0] == [content(name, 100)]


def test_an_entry_that_eight_processes_read_is_loaded_once(tmp_path: Path) -> None:
    names = [f"entry {number}" for number in range(10)]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_read_all, args=(tmp_path / "cache", tmp_path / "log", names))
        for _ in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(names)


_WRITES_FOR_EVER = """
import sys, itertools
from pathlib import Path
from shards.fetching.cache import Cache
cache = Cache(Path(sys.argv[1]), max_bytes=3_000_000)
for number in itertools.count():
    cache.read(str(number), 400_000, [(0, 1)], lambda: bytes(400_000))
    print(number, flush=True)
"""


def test_a_kill_during_a_write_leaves_no_file_for_good(tmp_path: Path) -> None:
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITES_FOR_EVER, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        for _ in range(5 + attempt):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert held_bytes(tmp_path) <= 3_000_000
    (tmp_path / "pieces" / "ab").mkdir(exist_ok=True)
    # A kill during a write leaves such a file.
    (tmp_path / "pieces" / "ab" / "0.part").write_bytes(bytes(1000))
    cache = Cache(tmp_path, max_bytes=3_000_000)
    for number in range(10):
        read(cache, f"after {number}", 400_000, [])
        assert held_bytes(tmp_path) <= 3_000_000
    assert list(tmp_path.glob("pieces/*/*.part")) == []


def test_a_cache_that_cannot_be_written_warns_once_and_reads_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "below", max_bytes=500)
    for _ in range(2):
        assert read(cache, "a", 100, []) == [content("a", 100)[:3], content("a", 100)[-2:]]
    assert capfd.readouterr().err.count("the cache cannot be written") == 1


_WITHOUT_ROOM = """
import resource, signal, sys
from pathlib import Path
from shards.fetching.cache import Cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
cache = Cache(Path(sys.argv[1]), max_bytes=10_000)
entries = [("small", 500), ("large", 2000), ("large", 2000), ("small", 500), ("other", 500)]
for name, size in entries:
    data = bytes(range(250)) * (size // 250)
    parts, is_hit = cache.read(name, size, [(size - 3, 3)], lambda: data)
    print(parts == [bytes([247, 248, 249])], is_hit)
"""


def test_a_write_that_the_system_refuses_leaves_no_file(tmp_path: Path) -> None:
    """A limit on file sizes has the effect of a full disk: it refuses an entry during a write."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_ROOM, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "True False",
        "True False",
        "True False",
        "True True",
        "True False",
    ]
    assert done.stderr.count("the cache cannot be written (File too large)") == 1
    assert held_bytes(tmp_path) == 1000
    assert list(tmp_path.glob("pieces/*/*.part")) == []


def test_a_cache_with_a_cap_of_0_stores_nothing(tmp_path: Path) -> None:
    loads: list[str] = []
    for _ in range(2):
        read(Cache(tmp_path, max_bytes=0), "a", 100, loads)
    assert loads == ["a", "a"]
    assert held_bytes(tmp_path) == 0


def test_two_caches_with_different_caps_share_a_folder(tmp_path: Path) -> None:
    """Each evicts down to its own cap when it stores an entry; both read all entries."""
    large, small = Cache(tmp_path, max_bytes=1000), Cache(tmp_path, max_bytes=300)
    loads: list[str] = []
    for name in "abcdefgh":
        read(large, name, 100, loads)
    assert held_bytes(tmp_path) == 800
    loads.clear()
    read(small, "a", 100, loads)
    assert loads == []
    read(small, "new", 100, loads)
    assert held_bytes(tmp_path) <= 300
    for name in "abcdefgh":
        read(large, name, 100, loads)
    assert 300 < held_bytes(tmp_path) <= 1000


def test_the_oldest_transient_entries_are_evicted_before_kept_entries(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1000, transient_bytes=200)
    loads: list[str] = []

    def is_hit(name: str) -> bool:
        return cache.read(name, 100, [(0, 1)], lambda: content(name, 100), is_transient=True)[1]

    for number in range(6):
        read(cache, f"kept {number}", 100, loads)
        os.utime(
            cache._path(f"kept {number}"), (0, 1000 + number)
        )  # older than all transient entries
    for number in range(12):
        assert not is_hit(f"transient {number}")
        os.utime(cache._path(f"transient {number}", is_transient=True), (0, 10_000 + number))
        assert held_bytes(tmp_path) <= 1000
    assert is_hit("transient 11")
    assert is_hit("transient 10")
    loads.clear()
    for number in range(6):
        read(cache, f"kept {number}", 100, loads)
    assert loads == []
    cache.drop("transient 11", is_transient=True)
    assert not is_hit("transient 11")


def test_a_kept_and_a_transient_entry_of_one_name_are_stored_separately(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1000, transient_bytes=200)
    assert not cache.read("a", 100, [(0, 1)], lambda: bytes(100), is_transient=True)[1]
    assert not cache.read("a", 100, [(0, 1)], lambda: bytes(100))[1]
    assert held_bytes(tmp_path) == 200


def test_an_entry_that_does_not_fit_beside_a_reservation_is_not_stored(
    tmp_path: Path,
) -> None:
    cache = Cache(tmp_path, max_bytes=100)

    def load() -> bytes:
        # While this entry is loaded, without a reservation, another process reserves the room.
        inner = Cache(tmp_path, max_bytes=100)
        held = inner._path("inner").with_name("inner.part")
        assert inner._reserve(held, 80)
        with hold_lock(inner._stripe(held)):
            assert not cache._reserve(cache._path("x").with_name("x.part"), 30)
        return bytes(30)

    assert cache.read("outer", 30, [(0, 30)], load)[0] == [bytes(30)]
    assert held_bytes(tmp_path) <= 100


def test_a_damaged_counter_of_used_bytes_is_counted_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=150)
    read(cache, "a", 100, [])
    (tmp_path / "used").write_bytes(bytes(7))
    read(cache, "b", 100, [])
    assert held_bytes(tmp_path) == 100
