"""`bmpt plan`: of a config, of a manifest, with a measured cost of a request; one line for what is
neither."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from shards.reader import open_pool
from tests.bmpt.tiny import write_config
from tests.complaints import complains, run
from tests.fault_proxy import Fault, run_fault_proxy
from tests.object_store import ObjectServer

MANIFEST = "manifests/few_shot/train_k2.parquet"


@pytest.fixture
def bucket(toy_pool: Path, s3: ObjectServer) -> str:
    """The toy pool in a bucket."""
    return s3.upload(toy_pool, "planned", "toy")


def plan_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run("plan", *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_manifest_is_planned_like_its_config(
    bucket: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, clip: Path
) -> None:
    config = str(
        write_config(
            tmp_path, clip, Path("unused"), data={"pool": bucket, "val": None, "frames": 8}
        )
    )
    settings = ["--set", f"data.cache={tmp_path / 'cache'}"]
    of_config = plan_of(
        capsys, config, *settings, "--set", "data.batch_size=8", "--set", "train.epochs=1"
    )
    assert plan_of(capsys, f"{bucket}/{MANIFEST}", *settings) == of_config
    (plan,) = of_config["plans"]
    assert (plan["passes"], plan["clips"], plan["cached"]) == (1, 8, True)
    assert of_config["bytes"] == plan["all_bytes"] > 0
    assert of_config["seconds"] == plan["seconds"] > 0


def test_settings_change_the_plan_of_a_manifest(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [
        "train.epochs=3",
        "data.batch_size=3",
        "data.frames=1",
        "data.order=grouped",
        "data.latency_seconds=0",
    ]
    arguments = [part for setting in changed for part in ("--set", setting)]
    (plan,) = plan_of(capsys, f"{bucket}/{MANIFEST}", *arguments)["plans"]
    assert (plan["passes"], plan["clips"], plan["all_requests"]) == (3, 6, 18)
    assert plan["order"].startswith("grouped/16/")
    assert complains(capsys, "plan", f"{bucket}/{MANIFEST}", "--set", "data.chace=x") == (
        "error: --set: unknown key data.chace; did you mean cache?\n"
    )


def test_a_list_that_is_not_for_training_is_planned_as_scoring(
    toy_pool: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan,) = plan_of(capsys, str(toy_pool / "manifests/few_shot/val.parquet"))["plans"]
    assert (plan["order"], plan["clips"], plan["seconds"], plan["advised_order"]) == (
        "as listed",
        12,
        None,
        None,
    )
    monkeypatch.chdir(toy_pool)
    assert plan_of(capsys, "manifests/few_shot/val.parquet")["plans"] == [plan]


def test_a_plan_refuses_a_batch_that_training_refuses(
    toy_pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complains(capsys, "plan", str(toy_pool / MANIFEST), "--set", "data.batch_size=9") == (
        "error: data.batch_size is 9, but the training manifest has 8 samples; "
        "set data.batch_size to 8 or less\n"
    )


def test_an_address_that_is_neither_config_nor_manifest_is_one_line(
    toy_pool: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    neither = (
        "is neither a config (.yaml) nor a manifest; give POOL/manifests/PROTOCOL/NAME.parquet"
    )
    for address in (
        str(toy_pool),
        "s3://bucket/pool",
        "s3://bucket/run.yaml",
        "train_k2",
        str(toy_pool / "samples.parquet"),
    ):
        assert complains(capsys, "plan", address) == f"error: {address}: {neither}\n"
    assert (
        complains(capsys, "plan", "s3://bucket/pool?endpoint=http://host")
        == f"error: s3://bucket/pool: {neither}\n"
    )
    missing = complains(capsys, "plan", str(toy_pool / "manifests/few_shot/train_k3.parquet"))
    assert "train_k3.parquet: no such manifest; the pool has: base_to_novel/" in missing
    assert "is not a finished pool" in complains(capsys, "plan", str(tmp_path / MANIFEST))
    assert "nowhere.yaml: no such config file" in complains(capsys, "plan", "nowhere.yaml")


@pytest.mark.parametrize(
    "path", ["", "/run.yaml", "/samples.parquet", f"/{MANIFEST}", f"/{MANIFEST}?region=x"]
)
@pytest.mark.parametrize(
    "place", ["s3://key:planted@bucket/pool", "https://user:pa/planted@host/pool"]
)
def test_credentials_in_an_address_are_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str], place: str, path: str
) -> None:
    error = complains(capsys, "plan", place + path)
    assert "the address holds credentials" in error
    assert "planted" not in error


def test_the_options_of_a_pools_address_follow_the_manifest(
    bucket: str,
    s3: ObjectServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    toy_pool: Path,
) -> None:
    expected = plan_of(capsys, f"{bucket}/{MANIFEST}")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert plan_of(capsys, f"{bucket}/{MANIFEST}?endpoint={s3.endpoint}") == expected
    assert (
        plan_of(capsys, f"{toy_pool.as_uri()}/{MANIFEST}")["plans"][0]["clips"]
        == expected["plans"][0]["clips"]
    )


def test_a_measured_cost_is_used_and_can_be_set(
    bucket: str,
    s3: ObjectServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run_fault_proxy(s3.endpoint) as proxy:
        proxy.decide = lambda number, method, path: Fault(delay_seconds=0.1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert run("plan", f"{bucket}/{MANIFEST}", "--measure") == 0
        text = capsys.readouterr().out
        assert plan_of(capsys, f"{bucket}/{MANIFEST}", "--measure")["is_measured"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    settings = re.match(
        r"measured: (--set data\.latency_seconds=\S+) (--set data\.bytes_per_second=\S+) ", text
    )
    assert settings is not None
    again = plan_of(capsys, f"{bucket}/{MANIFEST}", *settings[1].split(), *settings[2].split())
    assert 0.1 <= again["latency_seconds"] < 1
    assert f"reading alone: about {again['seconds']:,.1f} s" in text


def test_a_folder_has_no_requests_to_measure(
    toy_pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--measure needs a pool in a bucket" in complains(
        capsys, "plan", str(toy_pool / MANIFEST), "--measure"
    )


def test_a_pool_without_shards_has_no_requests_to_measure(
    toy_pool: Path, s3: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pool"
    shutil.copytree(toy_pool, folder)
    card = open_pool(folder).card.model_copy(update={"shards": []})
    client = s3.client(s3.make_bucket("empty"), "toy")
    client.put("pool.json", card.to_json().encode())
    client.put(MANIFEST, (folder / MANIFEST).read_bytes())
    error = complains(capsys, "plan", f"s3://empty/toy/{MANIFEST}", "--measure")
    assert "--measure needs a pool with at least one shard" in error
