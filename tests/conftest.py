"""Property tests draw the same examples in every run of the default level, new ones in the long
level.

One S3 server a session, started by the first test that needs it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.object_store import ObjectServer, run_object_server

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile("same")

# a script that starts the tests in the background leaves Ctrl-C ignored, and what they start would
# inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A real S3 server; nothing reaches it without `environment()`."""
    with run_object_server(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def s3(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """The server, with the environment of one who may read and write."""
    for name, value in object_server.environment().items():
        monkeypatch.setenv(name, value)
    return object_server
