"""Compare streaming from an S3 server on this machine with streaming the same pool from its folder.

    python scripts/bench/stream_s3.py POOL MANIFEST [--latency-ms 100] [--repeats 3] [--seconds 5]
    [--json]

Starts SeaweedFS (of the dev extra), copies the pool into it, and streams with two loader processes:
from the folder, from the server, from the server with each answer late by `--latency-ms`, and from
the cache of an earlier epoch. Everything shares this machine's cores: the server's processor time
is stated beside each rate."""

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

from bmpt.bench.loader import Side, measure, our_stream
from shards.fetching.frames import ReadSettings
from shards.reader import open_pool
from tests.object_store import run_object_server
from tests.process_memory import children_of

BUCKET, LOADER_PROCESSES = "bench", 2
NEAR = ReadSettings(
    latency_seconds=0.001, bytes_per_second=300e6
)  # one machine: reading 0.3 MB costs a request
FAR = ReadSettings(requests_in_flight=64)


@dataclass(frozen=True)
class Measured:
    """clips_per_second: the best of all repeats; server_cores: processors that the server kept busy
    then"""

    clips_per_second: float
    first_batch_seconds: float
    server_cores: float


def main(argv: Sequence[str] | None = None) -> None:
    """Run all sides `--repeats` times and print the best of each."""
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
    with tempfile.TemporaryDirectory() as folder, run_object_server(Path(folder)) as server:
        (server_pid,) = children_of(os.getpid())
        server.upload(options.pool, BUCKET)
        os.environ |= server.environment()
        with run_late_server(server.endpoint, options.latency_ms / 1000) as late:
            sides = {
                "folder": _side(str(options.pool), options.manifest, NEAR),
                "s3": _side(f"s3://{BUCKET}/pool", options.manifest, NEAR),
                "s3 late": _side(f"s3://{BUCKET}/pool?endpoint={late}", options.manifest, FAR),
                "s3 cached": _side(
                    f"s3://{BUCKET}/pool",
                    options.manifest,
                    NEAR.model_copy(update={"cache": Path(folder) / "cache"}),
                ),
            }
            best: dict[str, Measured] = {}
            for _ in range(options.repeats):
                for name, side in sides.items():
                    found = _measure(side, options.seconds, server_pid)
                    if name not in best or found.clips_per_second > best[name].clips_per_second:
                        best[name] = found
    if options.json:
        print(json.dumps({name: asdict(found) for name, found in best.items()}))
        return
    for name, found in best.items():
        share = found.clips_per_second / best["folder"].clips_per_second
        print(
            f"{name:10} {share:5.2f} of the folder's rate, first batch after {found.first_batch_seconds:4.2f} s, "
            f"server busy on {found.server_cores:4.2f} cores"
        )


def _side(address: str, manifest: str, reading: ReadSettings) -> Side:
    pool = open_pool(address)
    return partial(our_stream, pool, pool.manifest(manifest), LOADER_PROCESSES, reading)


def _measure(side: Side, seconds: float, server_pid: int) -> Measured:
    started, used = time.perf_counter(), _processor_seconds(server_pid)
    first_seconds, rate = measure(side, seconds)
    used, took = _processor_seconds(server_pid) - used, time.perf_counter() - started
    return Measured(rate, first_seconds, used / took)


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def run_late_server(endpoint: str, seconds: float) -> Iterator[str]:
    """A server in a process of its own that passes every request on late; answers go through the
    kernel alone."""
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


def _serve_late(endpoint: str, seconds: float, told: Connection) -> None:
    target = urlsplit(endpoint)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    told.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
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
    readable, writable = os.pipe()
    with suppress(OSError):
        while count := os.splice(server.fileno(), writable, 1 << 20):
            while count:
                count -= os.splice(readable, client.fileno(), count)
    client.close()


if __name__ == "__main__":
    main()
