"""Compare streaming from an S3 server on this machine with streaming the same pool from its folder.

    python scripts/bench/stream_s3.py POOL MANIFEST \\
        [--latency-ms 100] [--repeats 3] [--seconds 5] [--json]

Starts SeaweedFS (from the dev extra), copies the pool into it, and streams with two loader
processes: from the folder, from the server, from the server with every request delayed by
`--latency-ms`, and from the server through a local cache. The server and the loader share the cores
of this machine, so the processor time of the server is printed with each rate.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bmpt.bench.loader import Contender, measure, our_stream
from shards.fetching.frames import ReadSettings
from shards.reader import open_pool
from tests.object_store import run_object_server
from tests.process_memory import children_of

BUCKET, LOADER_PROCESSES = "bench", 2
# A server on the same machine: a request costs as much as reading 0.3 MB.
NEAR = ReadSettings(latency_seconds=0.001, bytes_per_second=300e6)
FAR = ReadSettings(requests_in_flight=64)


@dataclass(frozen=True)
class Measured:
    """The measurement of one contender, of the repeat with the highest rate."""

    clips_per_second: float
    first_batch_seconds: float

    server_cores: float
    """Number of processors that the server kept busy."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every contender `--repeats` times and print the best measurement of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path)
    parser.add_argument("manifest")
    parser.add_argument("--latency-ms", type=float, default=100.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)

    best = _measure_all(options)

    if options.json:
        print(json.dumps({name: asdict(found) for name, found in best.items()}))
        return
    for name, found in best.items():
        share = found.clips_per_second / best["folder"].clips_per_second
        print(
            f"{name:10} {share:5.2f} of the folder's rate, "
            f"first batch after {found.first_batch_seconds:4.2f} s, "
            f"server busy on {found.server_cores:4.2f} cores"
        )


def _measure_all(options: argparse.Namespace) -> dict[str, Measured]:
    """Start the servers, upload the pool and return the best measurement of each contender."""
    best: dict[str, Measured] = {}

    with tempfile.TemporaryDirectory() as folder, run_object_server(Path(folder)) as server:
        (server_pid,) = children_of(os.getpid())
        server.upload(options.pool, BUCKET)
        os.environ |= server.environment()

        with run_late_server(server.endpoint, options.latency_ms / 1000) as late:
            remote = f"s3://{BUCKET}/pool"
            cached = NEAR.model_copy(update={"cache": Path(folder) / "cache"})
            contenders = {
                "folder": _contender(str(options.pool), options.manifest, NEAR),
                "s3": _contender(remote, options.manifest, NEAR),
                "s3 late": _contender(f"{remote}?endpoint={late}", options.manifest, FAR),
                "s3 cached": _contender(remote, options.manifest, cached),
            }

            # The first repeat fills the cache, and the best repeat counts.
            for _ in range(options.repeats):
                for name, contender in contenders.items():
                    found = _measure(contender, options.seconds, server_pid)
                    if name not in best or found.clips_per_second > best[name].clips_per_second:
                        best[name] = found

    return best


def _contender(uri: str, manifest: str, reading: ReadSettings) -> Contender:
    pool = open_pool(uri)
    return partial(our_stream, pool, pool.manifest(manifest), LOADER_PROCESSES, reading)


def _measure(contender: Contender, seconds: float, server_pid: int) -> Measured:
    started, used = time.perf_counter(), _processor_seconds(server_pid)
    first_seconds, rate = measure(contender, seconds)
    used, took = _processor_seconds(server_pid) - used, time.perf_counter() - started
    return Measured(rate, first_seconds, used / took)


def _processor_seconds(pid: int) -> float:
    """Return the user and system time of a process, which Linux counts in clock ticks."""
    # The name in parentheses may contain spaces; after it, utime and stime are fields 11 and 12.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def run_late_server(endpoint: str, seconds: float) -> Iterator[str]:
    """Run a proxy that delays every request by `seconds`, in its own process, and yield its URL."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=_serve_late, args=(endpoint, seconds, there), daemon=True
    )
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def _serve_late(endpoint: str, seconds: float, parent: Connection) -> None:
    """Accept connections without an end; the URL of the proxy is sent to the parent process."""
    target = urlsplit(endpoint)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    parent.send(f"http://127.0.0.1:{listener.getsockname()[1]}")

    while True:
        client, _ = listener.accept()
        server = socket.create_connection((target.hostname or "", target.port or 80))
        threading.Thread(target=_pass_requests, args=(client, server, seconds), daemon=True).start()
        threading.Thread(target=_pass_answers, args=(server, client), daemon=True).start()


def _pass_requests(client: socket.socket, server: socket.socket, seconds: float) -> None:
    with suppress(OSError):
        while data := client.recv(1 << 16):
            time.sleep(seconds)
            server.sendall(data)
    server.close()


def _pass_answers(server: socket.socket, client: socket.socket) -> None:
    # Answers carry the data. `splice` moves them inside the kernel, so that the proxy costs little.
    readable, writable = os.pipe()
    with suppress(OSError):
        while count := os.splice(server.fileno(), writable, 1 << 20):
            while count:
                count -= os.splice(readable, client.fileno(), count)
    client.close()


if __name__ == "__main__":
    main()
