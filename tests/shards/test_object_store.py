"""Test of the S3 server that the tests run against."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.object_store import ObjectServer


def test_server_takes_objects_in_more_buckets_than_all_tests_make(
    object_server: ObjectServer,
) -> None:
    names = [f"many-{index}" for index in range(40)]

    def write(name: str) -> None:
        object_server.client(object_server.make_bucket(name)).put("object", name.encode())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, names))
    for name in names:
        assert object_server.objects(name, "") == {"object": name.encode()}
