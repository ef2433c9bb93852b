"""A real S3 server (SeaweedFS) on free ports of this machine, for the time of a test session."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from obstore.store import S3Store

WRITER, READER = (
    ("writer-key", "planted-secret-of-the-writer"),
    ("reader-key", "planted-secret-of-the-reader"),
)
PUBLIC = "public"  # the bucket that everyone may read and list
DOMAIN = "s3.test"  # a request for the host <bucket>.s3.test asks for that bucket
_WEED = Path(sys.executable).parent / "weed"
_START_SECONDS = 60.0
# Each bucket has volumes of its own, 7 by default. Where there are no more, every write into a new
# bucket is answered
# with 500: with 64 volumes that was the eleventh bucket of a session.
_MAX_VOLUMES = 1000
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ObjectServer:
    """endpoint: http address; buckets are made by `make_bucket` or `upload`."""

    endpoint: str
    root_key: tuple[str, str]

    def environment(self, key: tuple[str, str] = WRITER) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key[0],
            "AWS_SECRET_ACCESS_KEY": key[1],
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket that is ready for writes and return its name.

        SeaweedFS makes a bucket when an administrator writes into it, and its first volume at the
        first object that is not empty; both are done before this returns."""
        client = self.client(name)
        client.put("made", b"a byte makes the first volume")
        client.delete("made")
        return name

    def upload(self, folder: Path, bucket: str, prefix: str = "pool") -> str:
        """Copy a folder into a bucket, made if need be, and return its address."""
        client = self.client(self.make_bucket(bucket), prefix)
        for path in folder.rglob("*"):
            if path.is_file():
                client.put(str(path.relative_to(folder)), path)
        return f"s3://{bucket}/{prefix}"

    def client(self, bucket: str, prefix: str | None = None) -> S3Store:
        """Make a client of the administrator; it tries again for as long as a loaded server may
        need."""
        return S3Store(
            bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=self.root_key[0],
            secret_access_key=self.root_key[1],
            client_options={"allow_http": True},
            # obstore's 10 retries are over within 2 s
            retry_config={"max_retries": 1000, "retry_timeout": timedelta(seconds=_START_SECONDS)},
        )

    def objects(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """All objects below a prefix, by name relative to it."""
        client = self.client(bucket, prefix)
        names = [entry["path"] for batch in client.list() for entry in batch]
        return {name: bytes(client.get(name).bytes()) for name in sorted(names)}


@contextlib.contextmanager
def run_object_server(folder: Path) -> Iterator[ObjectServer]:
    """Start a server that keeps its data in `folder`, wait until it answers, kill it at the end."""
    root = ("root-key", "root-secret")
    rights = {
        "root": (root, ["Admin", "Read", "Write", "List"]),
        "writer": (WRITER, ["Read", "Write", "List"]),
    }
    rights["reader"] = (READER, ["Read", "List"])
    identities: list[dict[str, object]] = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, ((key, secret), actions) in rights.items()
    ]
    identities.append({"name": "anonymous", "actions": [f"Read:{PUBLIC}", f"List:{PUBLIC}"]})
    (folder / "weed.json").write_text(json.dumps({"identities": identities}))
    s3, master, volume, filer = _free_ports(4)
    arguments = [
        *(
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
        ),
        *(
            "-s3",
            f"-s3.port={s3}",
            f"-s3.config={folder / 'weed.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ),
        f"-s3.domainName={DOMAIN}",
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *("-master.volumeSizeLimitMB=256", f"-volume.max={_MAX_VOLUMES}"),
    ]
    environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(
            [_WEED, *arguments],
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait_until_it_answers(server, f"http://127.0.0.1:{s3}", folder / "weed.log")
        yield ObjectServer(f"http://127.0.0.1:{s3}", root)
    finally:
        server.kill()  # it lingers after SIGTERM
        server.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Ports that are free together with the one 10,000 above, where SeaweedFS puts its gRPC."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port > 55_000:
                continue
            with contextlib.suppress(OSError):
                high.bind(("127.0.0.1", port + 10_000))
                found.append(port)
    return found


def _wait_until_it_answers(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start; its log ends: {log.read_text()[-2000:]}")
