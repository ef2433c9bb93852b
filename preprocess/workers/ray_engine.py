"""`--engine ray`: an executor that decodes on all nodes of a Ray cluster.

A task is one video. The coordinator still plans, orders and writes every tar. On a node, the task
runs in a Ray process with a decode worker of its own, which is killed like a local one: a video
that hangs or crashes its decoder ends neither the Ray process nor the node. So the end of a Ray
process or of a node never becomes the verdict of a video; Ray sends the task again. The nodes
receive this project's code with the job, but must have the libraries and see the videos.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from preprocess.decode.ffmpeg_process import check_ffmpeg
from preprocess.records.versions import library_versions
from preprocess.settings import count_cores
from preprocess.sources import SourceVideo
from preprocess.workers.child import Decoded, DecodeOptions
from preprocess.workers.in_order import Failure, try_once
from preprocess.workers.local import LocalWorkers
from preprocess.workers.ray_cluster import count_cpus, open_cluster
from shards.errors import BmptError, ConfigError
from shards.files import hash_file

# Of a task whose node or Ray process is gone. A video that loses eleven of them is no accident.
_MAX_RETRIES = 10

# The second task waits on its node: 5 to 10 % less time than with one, for videos of 25 ms.
_TASKS_PER_CPU = 2

# In the text of an error that Ray raises for a module that exists but cannot be imported.
_NO_IMPORT = "failed to import on the worker"


class RayTasks:
    """Decodes videos as tasks of a Ray cluster; a context manager that starts or joins the cluster.

    A second try runs alone in this build, whatever else the cluster does.
    """

    def __init__(
        self, options: DecodeOptions, *, address: str | None, num_tasks: int | None
    ) -> None:
        """Describe the cluster; entering the context opens it.

        Args:
            options: settings for every worker.
            address: of a running cluster, `auto` or host:port; None starts one on this machine.
            num_tasks: tasks at the same time; None uses all CPUs.
        """
        self._options = options
        self._address = address
        self._num_tasks = num_tasks
        self._libraries = library_versions(options.encoding.decoder, options.hwaccel)
        self._num_workers = num_tasks or count_cores()
        self._capacity = 0
        self._running: dict[Future[_Answer], tuple[int, SourceVideo]] = {}
        self._cluster = contextlib.ExitStack()
        self._task: Any = None

    def __enter__(self) -> RayTasks:
        """Start or join the cluster.

        Raises:
            ConfigError: if Ray is not installed, or no cluster answers.
        """
        self._cluster.enter_context(open_cluster(self._address, num_cpus=self._num_workers))
        import ray

        if self._address is not None and self._num_tasks is not None:
            # Others use this cluster too: no more tasks than requested.
            self._capacity = self._num_tasks
        else:
            self._num_workers = count_cpus()
            self._capacity = self._num_workers * _TASKS_PER_CPU

        self._task = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(_decode_on_node)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The tasks are not cancelled: Ray 2.60 aborts this process if a task answers meanwhile.
        self._running = {}
        self._cluster.close()

    @property
    def num_workers(self) -> int:
        """Return the number of videos that are decoded at the same time."""
        return self._num_workers

    @property
    def capacity(self) -> int:
        """Return the number of videos that may be submitted at the same time."""
        return self._capacity

    @property
    def num_busy(self) -> int:
        """Return the number of submitted videos that have not ended."""
        return len(self._running)

    def submit(self, position: int, video: SourceVideo) -> None:
        """Send a video to the cluster."""
        reference = self._task.remote(self._options, video)
        self._running[reference.future()] = position, video

    def wait(self) -> list[tuple[int, Decoded | Failure]]:
        """Wait for at least one answer and return the videos that have ended.

        Raises:
            ConfigError: if a node cannot decode for this build.
        """
        # Not ray.wait(), which makes every exit code 1 when a signal ends the process.
        done = wait(self._running, return_when=FIRST_COMPLETED).done

        ended: list[tuple[int, Decoded | Failure]] = []
        for task in done:
            position, video = self._running.pop(task)
            ended.append((position, self._receive(task, video)))
        return ended

    def _receive(self, task: Future[_Answer], video: SourceVideo) -> Decoded | Failure:
        """Return the result of a task.

        Raises:
            ConfigError: if the node has other libraries, does not see the video, or is lost.
        """
        import ray

        try:
            answer = task.result()
        except ray.exceptions.OutOfMemoryError:
            return Failure("the decoder process died (its node ran out of memory)")
        except ray.exceptions.RayTaskError as error:
            raise _node_error(error) from None
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"{video.path}: Ray gave its task up after {_MAX_RETRIES} retries "
                f"({_first_line(error)}); `ray status` names failed nodes, and the same command "
                "continues the build"
            ) from None

        self._check_libraries(answer)
        _check_visible(answer, video)
        return answer.result

    def _check_libraries(self, answer: _Answer) -> None:
        """Check that a node has this machine's library versions.

        Raises:
            ConfigError: naming the first library that differs.
        """
        for name, version in self._libraries.items():
            node_version = answer.libraries[name]
            if node_version != version:
                raise ConfigError(
                    f"{name} is {node_version} on node {answer.node} and {version} on this "
                    f"machine, and the bytes of a pool depend on it; install {name} {version} there"
                )


@dataclass(frozen=True)
class _Answer:
    """The answer of a node for one video."""

    node: str
    """Host name and IP address, for error messages."""

    libraries: dict[str, str]
    """`library_versions()` on the node."""

    result: Decoded | Failure


def _decode_on_node(options: DecodeOptions, video: SourceVideo) -> _Answer:
    """Decode a video in a Ray process of any node: this is the task."""
    # First the libraries: a video must not be blamed for a node that cannot decode.
    libraries = _node_libraries(options)
    result = try_once(_node_decoder(options), video)
    return _Answer(_node_name(), libraries, result)


# Once per Ray process, like the other cached functions: a job has one value of options.
@functools.cache
def _node_decoder(options: DecodeOptions) -> LocalWorkers:
    """Return the only decoder of a Ray process; it is started again after it was killed."""
    return LocalWorkers(1, options)


@functools.cache
def _node_libraries(options: DecodeOptions) -> dict[str, str]:
    if options.encoding.decoder == "ffmpeg":
        check_ffmpeg(options.hwaccel)
    return library_versions(options.encoding.decoder, options.hwaccel)


@functools.cache
def _node_name() -> str:
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


def _check_visible(answer: _Answer, video: SourceVideo) -> None:
    """Check that a node did not fail to read a file that this machine can read.

    Raises:
        ConfigError: if it did, which says nothing about the video but that the node cannot see it.
    """
    if isinstance(answer.result, Failure) or answer.result.row["source_sha256"] is not None:
        return
    # No hash: the node could not read the file. If this machine cannot either, the file is bad.
    try:
        hash_file(video.path)
    except OSError:
        return

    raise ConfigError(
        f"{video.path}: node {answer.node} cannot see this file ({answer.result.row['reason']}), "
        "but this machine can; --videos must be a folder that all nodes see under the same path, "
        "for example on a shared file system"
    )


def _node_error(error: Any) -> Exception:
    """Return the ConfigError for a node without a library, or else the error: that is a bug."""
    cause = error.cause
    # The text of Ray's own error for a module ends with the class and the message of the cause.
    reason = str(cause).strip().rpartition("\n")[2]
    if isinstance(cause, ImportError):
        reason = f"{type(cause).__name__}: {reason}"
    elif not isinstance(cause, BmptError) and _NO_IMPORT not in str(cause):
        return error

    # Only the text has the address: Ray gives the exception the attributes of its cause.
    node = re.search(r"ip=([^,)\s]+)", str(error))
    return ConfigError(
        f"node {node[1] if node else 'of the cluster'} cannot decode ({reason}); every node needs "
        "this project's libraries in the versions of this machine, install them there"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
