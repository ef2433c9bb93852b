"""`--engine ray`: decode on all nodes of a Ray cluster; this process still plans, orders and alone
writes tars.

A task is one video. In it a node's Ray process has a decoder of its own, killable like a local
worker: a video that hangs or crashes a decoder ends neither Ray's process nor its node, so whatever
    ends these is never a video's verdict
and Ray itself sends the task again. The nodes get this code with the job; libraries and videos they
must have."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from preprocess.decode.ffmpeg_process import check_ffmpeg
from preprocess.records.state import library_versions
from preprocess.settings import count_cores
from preprocess.sources import SourceVideo
from preprocess.workers.child import Decoded, DecodeOptions
from preprocess.workers.local import WorkerPool
from shards.errors import BmptError, ConfigError
from shards.files import hash_file

_RETRIES = (
    10  # of a task whose node or Ray process is gone; one video that loses eleven is no accident
)
_TASKS_PER_CPU = (
    2  # one waits where it will run: 5 to 10 % less time than with 1, for videos of 25 ms
)
_CONNECT_SECONDS, _CLUSTER_SECONDS = (
    5.0,
    30.0,
)  # for a TCP connection, and for a cluster to take a driver
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
_NO_IMPORT = "failed to import on the worker"  # so Ray says what else is a ModuleNotFoundError
_NO_TOKEN = "InvalidAuthToken"
# Ray hides GPUs from a task that asks for none, and FFmpeg's -hwaccel needs them
_NODE_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_ENVIRONMENT = {
    **_NODE_ENVIRONMENT,
    "RAY_USAGE_STATS_ENABLED": "0",
    # a task that its node's memory does not hold counts like a decoder that the kernel kills; Ray
    # tries it for ever
    "RAY_task_oom_retries": "0",
}


class RayPool(WorkerPool):
    """Decodes videos as tasks of a Ray cluster; a context manager, leaving it ends what it started.

    Order, look-ahead and the second try alone are those of `WorkerPool`, with one difference: alone
    means alone in this build, whatever else the cluster does."""

    def __init__(
        self, options: DecodeOptions, *, address: str | None, num_tasks: int | None
    ) -> None:
        """address: of a running cluster, None starts one of this machine; num_tasks: at once, None
        for all CPUs."""
        super().__init__(num_tasks or count_cores(), options)
        self._address = address
        self._num_tasks = num_tasks
        self._libraries = library_versions(options.encoding.decoder, options.hwaccel)
        self._num_in_flight = 0
        self._running: dict[Future[_Answer], tuple[int, SourceVideo]] = {}
        self._opened = contextlib.ExitStack()
        self._task: Any = None

    def __enter__(self) -> RayPool:
        """Start or join a cluster. Raises: ConfigError if Ray is not installed or no cluster
        answers."""
        _check_installed()
        import ray

        if self._address is not None:
            _check_cluster(self._address)
        with contextlib.ExitStack() as opened:
            # Ray prints the log of a node that dies to stdout, which is the report's
            opened.enter_context(
                contextlib.redirect_stdout(opened.enter_context(Path(os.devnull).open("w")))
            )
            opened.callback(ray.shutdown)
            _connect(self._address, num_cpus=self._num_workers)
            self._num_in_flight = self._count_tasks()
            self._task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_decode_on_node)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # not cancelled: Ray 2.60 aborts this process if a task answers while it is cancelled
        self._running = {}
        with _without_stderr():
            self._opened.close()

    def _count_tasks(self) -> int:
        """How many are sent: as many as asked for in a cluster of others, else what keeps all CPUs
        busy."""
        import ray

        num_cpus = int(ray.cluster_resources().get("CPU", 0))
        if num_cpus == 0:
            raise ConfigError(
                f"--ray-address {self._address}: no node of the cluster has a CPU for tasks"
            )
        if self._address is not None and self._num_tasks is not None:
            return self._num_tasks
        self._num_workers = num_cpus
        return num_cpus * _TASKS_PER_CPU

    def _hand_out(
        self, videos: Sequence[SourceVideo], waiting: deque[int], alone: deque[int], horizon: int
    ) -> None:
        while waiting or alone:
            source = alone or waiting
            if (
                (alone and self._running)
                or len(self._running) >= self._num_in_flight
                or source[0] >= horizon
            ):
                return
            position = source.popleft()
            reference = self._task.remote(self._options, videos[position])
            self._running[reference.future()] = position, videos[position]
            if source is alone:
                return

    def _collect(self) -> Iterator[tuple[int, Decoded | str]]:
        # not ray.wait(), which makes every exit code 1 when a signal ends the process
        for task in wait(self._running, return_when=FIRST_COMPLETED).done:
            position, video = self._running.pop(task)
            yield position, self._receive_from_node(task, video)

    def _receive_from_node(self, task: Future[_Answer], video: SourceVideo) -> Decoded | str:
        """Take an answer. Raises: ConfigError if it tells of a node that cannot do this build."""
        import ray

        try:
            answer = task.result()
        except ray.exceptions.OutOfMemoryError:
            return "the decoder process died (its node ran out of memory), tried twice"
        except ray.exceptions.RayTaskError as error:
            raise _node_error(error) from None
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"{video.path}: Ray gave its task up after {_RETRIES} retries ({_first_line(error)}); `ray status` "
                "names failed nodes, the same command goes on where it stopped"
            ) from None
        self._check_libraries(answer)
        _check_sight(answer, video)
        return answer.result

    def _check_libraries(self, answer: _Answer) -> None:
        for name, version in self._libraries.items():
            found = answer.libraries[name]
            if found != version:
                raise ConfigError(
                    f"{name} is {found} on node {answer.node} and {version} on this machine, and a pool's bytes "
                    f"depend on it; install {name} {version} there"
                )


@dataclass(frozen=True)
class _Answer:
    """What a node made of one video, or what went wrong with its decoder; `libraries` as
    `library_versions()`."""

    node: str
    libraries: dict[str, str]
    result: Decoded | str


class _Decoder(WorkerPool):
    """The one decoder of a Ray process, started again after it was killed."""

    def __init__(self, options: DecodeOptions) -> None:
        super().__init__(1, options)

    def try_once(self, video: SourceVideo) -> Decoded | str:
        self._hand_out([video], deque([0]), deque(), 1)
        while True:  # the first message may be the worker's greeting
            for _, result in self._collect():
                return result


def _decode_on_node(options: DecodeOptions, video: SourceVideo) -> _Answer:
    """The task: runs in a Ray process on any node."""
    return _Answer(_node_name(), _node_libraries(options), _node_decoder(options).try_once(video))


_node_decoder = functools.cache(
    _Decoder
)  # once a Ray process, like what follows; a job has one kind of options


@functools.cache
def _node_libraries(options: DecodeOptions) -> dict[str, str]:
    if options.encoding.decoder == "ffmpeg":
        check_ffmpeg(options.hwaccel)
    return library_versions(options.encoding.decoder, options.hwaccel)


@functools.cache
def _node_name() -> str:
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


def _check_installed() -> None:
    for name, value in _ENVIRONMENT.items():  # read as Ray is imported
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed: pip install -e '.[ray]'"
        ) from None


def _check_cluster(address: str) -> None:
    """Join in a process that can be killed: ray.init() at a wrong port tries for minutes. Raises:
    ConfigError."""
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection(
                (host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS
            ).close()
        subprocess.run(
            [sys.executable, "-c", _JOIN, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CLUSTER_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stdout.split()) or f"Ray ended with {error.returncode}"
        if _NO_TOKEN in error.stderr:
            reason = "it asks for its token, which Ray sends if RAY_AUTH_MODE is set to token"
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_CLUSTER_SECONDS:g} s"
    except (
        OSError,
        OverflowError,
        UnicodeError,
    ) as error:  # the others for a port or a name that none can have
        reason = getattr(error, "strerror", None) or str(error)
    else:
        return
    raise ConfigError(
        f"--ray-address {address}: no Ray cluster can be joined there ({reason}); `ray start --head` prints the "
        "address, and the build must run on one of the cluster's nodes"
    )


def _connect(address: str | None, *, num_cpus: int) -> None:
    """Join the cluster, or start one of this machine; send this code to the nodes."""
    import ray

    own: dict[str, Any] = (
        {"num_cpus": num_cpus, "include_dashboard": False} if address is None else {}
    )
    with tempfile.TemporaryDirectory() as folder, _keep_sigterm_handler():
        _copy_code(Path(folder))
        ray.init(
            address=address or "local",
            runtime_env={"working_dir": folder, "env_vars": _NODE_ENVIRONMENT},
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            **own,
        )


def _copy_code(folder: Path) -> None:
    """What a node needs of this project, with the version for `library_versions()` there."""
    for package in _PACKAGES:
        shutil.copytree(
            _ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (folder / "pyproject.toml").write_text(
        f'version = "{library_versions()["bmpt"]}"\n', encoding="utf-8"
    )


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's own threads write there, past Python, whom they could not tell of the end."""
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextlib.contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """ray.init() takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_sight(answer: _Answer, video: SourceVideo) -> None:
    """Raises: ConfigError if a node could not read a file that this machine can: no verdict, a file
    system."""
    if isinstance(answer.result, str) or answer.result.row["source_sha256"] is not None:
        return
    try:
        hash_file(video.path)
    except OSError:
        return
    raise ConfigError(
        f"{video.path}: node {answer.node} cannot see this file ({answer.result.row['reason']}), this machine can; "
        "--videos must be a folder that all nodes see under one path, for example on a shared file system"
    )


def _node_error(error: Any) -> Exception:
    """What an exception in a task means: of a node without what it needs a sentence, else a bug and
    its traceback."""
    cause = error.cause
    if not isinstance(cause, (ImportError, BmptError)) and _NO_IMPORT not in str(cause):
        return error
    reason = str(cause).strip().rpartition("\n")[2]
    node = re.search(
        r"ip=([^,)\s]+)", str(error)
    )  # in the text alone: the exception has the cause's attributes
    return ConfigError(
        f"node {node[1] if node else 'of the cluster'} cannot decode ({reason}); every node needs the libraries of "
        "this project as this machine has them, install them there"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
