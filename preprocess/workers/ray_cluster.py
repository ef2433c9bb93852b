"""Start or join a Ray cluster and send it this project's code."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocess.records.versions import library_versions
from shards.errors import ConfigError
from shards.files import one_line, os_error_text

# Time limits for a TCP connection, and for a cluster to accept a driver.
_CONNECT_SECONDS = 5.0
_CLUSTER_SECONDS = 30.0

_PACKAGES = ("preprocess", "shards")
_ROOT = Path(__file__).resolve().parents[2]
_JOIN = """
import logging, ray, sys
try:
    ray.init(address=sys.argv[1], logging_level=logging.CRITICAL)
except Exception as error:
    print(error)
    sys.exit(1)
"""
_WRONG_TOKEN = "InvalidAuthToken"

# Ray hides GPUs from a task that asks for none, and FFmpeg's -hwaccel needs them.
_NODE_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_ENVIRONMENT = {
    **_NODE_ENVIRONMENT,
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default Ray retries without end a task that does not fit into the memory of its node. Here
    # such a task counts like a decoder that the kernel kills.
    "RAY_task_oom_retries": "0",
}


@contextlib.contextmanager
def open_cluster(address: str | None, *, num_cpus: int) -> Iterator[None]:
    """Join a running cluster, or start one on this machine, and leave it at the end.

    Args:
        address: `auto` or host:port of the running cluster; None starts a cluster.
        num_cpus: CPUs of the cluster that is started.

    Raises:
        ConfigError: if Ray is not installed, or no cluster answers.
    """
    _check_installed()
    import ray

    if address is not None:
        _check_cluster(address)

    with contextlib.ExitStack() as stack:
        # Ray prints the log of a node that dies to stdout, which is reserved for the report.
        devnull = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(contextlib.redirect_stdout(devnull))

        stack.callback(_shut_down)
        _connect(address, num_cpus=num_cpus)
        if int(ray.cluster_resources().get("CPU", 0)) == 0:
            raise ConfigError(
                f"--ray-address {address}: no node of the cluster has a CPU for tasks; add a node "
                "with CPUs"
            )
        yield


def count_cpus() -> int:
    """Return the number of CPUs that the cluster has for tasks."""
    import ray

    return int(ray.cluster_resources()["CPU"])


def _check_installed() -> None:
    # Ray reads these variables when it is imported.
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed: pip install -e '.[ray]'"
        ) from None


def _check_cluster(address: str) -> None:
    """Join in a process that can be killed, since ray.init() tries a wrong port for minutes.

    Raises:
        ConfigError: if the cluster cannot be joined.
    """
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            target = (host.strip("[]"), int(port))
            socket.create_connection(target, timeout=_CONNECT_SECONDS).close()

        subprocess.run(
            [sys.executable, "-c", _JOIN, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CLUSTER_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        reason = one_line(error.stdout) or f"Ray ended with {error.returncode}"
        if _WRONG_TOKEN in error.stderr:
            reason = "it asks for its token, which Ray sends if RAY_AUTH_MODE is set to token"
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_CLUSTER_SECONDS:g} s"
    except OSError as error:
        reason = os_error_text(error)
    # A port above 65535, or a host name that cannot exist.
    except (OverflowError, UnicodeError) as error:
        reason = one_line(error)
    else:
        return

    raise ConfigError(
        f"--ray-address {address}: no Ray cluster can be joined there ({reason}); `ray start "
        "--head` prints the address, and the build must run on one of the cluster's nodes"
    )


def _connect(address: str | None, *, num_cpus: int) -> None:
    """Join the cluster, or start one on this machine, and send this project's code to the nodes."""
    import ray

    options: dict[str, Any] = {}
    if address is None:
        options = {"num_cpus": num_cpus, "include_dashboard": False}

    with tempfile.TemporaryDirectory() as folder, _keep_sigterm_handler():
        _copy_code(Path(folder))
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": folder, "env_vars": _NODE_ENVIRONMENT},
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            **options,
        )


def _copy_code(folder: Path) -> None:
    """Copy the packages that a node needs, and the version that `library_versions` reads there."""
    no_caches = shutil.ignore_patterns("__pycache__")
    for package in _PACKAGES:
        shutil.copytree(_ROOT / package, folder / package, ignore=no_caches)

    version = library_versions()["bmpt"]
    (folder / "pyproject.toml").write_text(f'version = "{version}"\n', encoding="utf-8")


def _shut_down() -> None:
    import ray

    with _without_stderr():
        ray.shutdown()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence stderr below Python: Ray's own threads still log to it while they end."""
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as devnull:
            os.dup2(devnull.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextlib.contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which ray.init() replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Only the main thread can set handlers; a handler of None was not set from Python.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
