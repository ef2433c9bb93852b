"""Other people's libraries read our pools: every sample, every frame's bytes, and the tables."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import duckdb
import pandas
import pytest

from preprocess.records.rows import sample_facts
from shards.errors import ConfigError, StorageError
from shards.format.schema import SAMPLES_SCHEMA
from shards.interop import SCHEMES, hf_features, register_openers
from shards.reader import Pool, open_pool, read_frame_bytes
from shards.storage.local import LocalStore
from shards.storage.open import open_store
from tests.fault_proxy import Fault, run_fault_proxy
from tests.object_store import ObjectServer
from tests.preprocess.builds import build
from tests.preprocess.tiny_videos import make_video

ROOT = Path(__file__).resolve().parents[2]
MEMBER_NAME = re.compile(r"([^.]+)\.(\d{3}\.jpg|json)")
BUCKET = "interop"
VIDEOS = {  # frames by path; 6 are stored at most
    "jump/one frame.avi": 1,
    "jump/-_a (1)#&;.mp4": 2,
    "run fast/v1.2 é %.mp4": 9,
    "run fast/deep.er/c.avi": 5,
    "run fast/__d.avi": 3,
    "__spare__/e.avi": 4,
}
KEYS = {
    *(
        "jump/one frame",
        "jump/-_a (1)#&;",
        "run fast/v1%2E2 é %25",
        "run fast/deep%2Eer/c",
        "run fast/__d",
    ),
    "__spare__/e",
}
LEFT_OUT_BY_HF = {"run fast/__d"}  # names that begin with two underscores are hidden files to it
LEFT_OUT_BY_WEBDATASET = {"__spare__/e"}  # top folders within double underscores are metadata to it

Frames = dict[str, list[bytes]]


@pytest.fixture(scope="module")
def odd_pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """What a build makes of VIDEOS: odd keys, 1 to 6 frames, two shards."""
    folder = tmp_path_factory.mktemp("odd")
    for seed, (name, frames) in enumerate(VIDEOS.items()):
        make_video(folder / "videos" / name, frames=frames, seed=seed)
    build(folder / "videos", folder / "pool")
    return open_pool(folder / "pool")


@pytest.fixture
def remote(pool: Pool, s3: ObjectServer) -> list[str]:
    """The shards of the pool of these tests in a bucket, as addresses."""
    client = s3.client(s3.make_bucket(BUCKET), "a pool")
    for entry in pool.card.shards:
        client.put(entry.name, pool.store.read(entry.name))
    return [f"s3://{BUCKET}/a pool/{entry.name}" for entry in pool.card.shards]


@pytest.fixture
def openers(monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset with our openers, for one test."""
    module = importlib.import_module("webdataset.gopen")
    monkeypatch.setattr(module, "gopen_schemes", dict(module.gopen_schemes))
    register_openers()


def frames_by_key(pool: Pool) -> Frames:
    """What our own reader reads: the JPEG bytes of every stored sample."""
    rows = [row for row in pool.samples().to_pylist() if row["shard"]]
    return {
        row["key"]: read_frame_bytes(pool.store, row, range(len(row["frame_size"]))) for row in rows
    }


def shard_paths(pool: Pool) -> list[str]:
    assert len(pool.card.shards) > 1
    return [pool.store.uri(entry.name) for entry in pool.card.shards]


def read_by_webdataset(addresses: list[str]) -> Frames:
    from webdataset import WebDataset

    found = {}
    for sample in WebDataset(addresses, shardshuffle=False):
        names = sorted(name for name in sample if name.endswith(".jpg"))
        assert set(sample) == {*names, "json", "__key__", "__url__"} | (
            {"__local_path__"} & set(sample)
        )
        assert json.loads(sample["json"])["key"] == sample["__key__"]
        assert names == [f"{position:03d}.jpg" for position in range(len(names))]
        assert sample["__key__"] not in found
        found[sample["__key__"]] = [sample[name] for name in names]
    return found


def without(frames: Frames, keys: set[str]) -> Frames:
    assert keys <= set(frames)
    return {key: blocks for key, blocks in frames.items() if key not in keys}


def run_python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run Python without network for the Hugging Face library; return its output."""
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **home, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tarfile_reads_every_sample(odd_pool: Pool) -> None:
    expected = frames_by_key(odd_pool)
    assert set(expected) == KEYS
    found: Frames = {}
    for path in shard_paths(odd_pool):
        with tarfile.open(path) as tar:
            for member in tar:
                match, file = MEMBER_NAME.fullmatch(member.name), tar.extractfile(member)
                assert match is not None
                assert file is not None
                (key, number), content = match.groups(), file.read()
                blocks = found.setdefault(key, [])
                if number == "json":
                    assert json.loads(content)["key"] == key
                else:
                    assert number == f"{len(blocks):03d}.jpg"
                    blocks.append(content)
    assert found == expected


def test_stock_webdataset_reads_every_sample_except_metadata_folders(
    odd_pool: Pool,
) -> None:
    expected = without(frames_by_key(odd_pool), LEFT_OUT_BY_WEBDATASET)
    assert sorted(map(len, expected.values())) == [1, 2, 3, 5, 6]
    assert read_by_webdataset(shard_paths(odd_pool)) == expected


_LOAD = """
import json, os, sys
def end_at_a_request(event, arguments):  # an exception would be caught by the library
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(f"asks the network: {arguments}", file=sys.stderr, flush=True)
        os._exit(1)
sys.addaudithook(end_at_a_request)
from datasets import load_dataset
from shards.interop import hf_features
from shards.reader import open_pool
features = hf_features(open_pool(sys.argv[1]))
for streaming in (False, True):
    loaded = load_dataset(
        "webdataset",
        data_files=f"{sys.argv[1]}/shards/*.tar",
        split="train",
        features=features,
        streaming=streaming,
    )
    sizes = {sample["__key__"]: sample["000.jpg"].size for sample in loaded}
    for sample in loaded.decode(False) if streaming else loaded.with_format("arrow"):
        sample = sample if streaming else sample.to_pylist()[0]
        images = [image for name, image in sample.items() if name.endswith(".jpg")]
        frames = [image and image["bytes"].hex() for image in images]
        key = sample["__key__"]
        print(json.dumps([streaming, key, sizes[key], frames, sample["json"]]))
"""


def test_hugging_face_datasets_reads_every_sample_except_hidden_files(
    odd_pool: Pool, tmp_path: Path
) -> None:
    expected = without(frames_by_key(odd_pool), LEFT_OUT_BY_HF)
    rows = {row["key"]: row for row in odd_pool.samples().to_pylist()}
    assert isinstance(odd_pool.store, LocalStore)
    lines = run_python("-c", _LOAD, str(odd_pool.store.root), cwd=tmp_path).splitlines()
    for streaming in (False, True):
        found: Frames = {}
        for is_streamed, key, size, frames, facts in map(json.loads, lines):
            if is_streamed != streaming:
                continue
            assert len(frames) == 6
            stored = [bytes.fromhex(frame) for frame in frames if frame is not None]
            assert frames[len(stored) :] == [None] * (6 - len(stored))
            assert size == [rows[key]["stored_width"], rows[key]["stored_height"]]
            assert facts == sample_facts(rows[key])
            found[key] = stored
        assert found == expected


def test_the_columns_for_hugging_face_are_the_facts_that_a_build_writes(pool: Pool) -> None:
    features = hf_features(pool)
    assert list(features["json"]) == list(sample_facts(dict.fromkeys(SAMPLES_SCHEMA.names)))
    assert (
        len([name for name in features if name.endswith(".jpg")])
        == pool.card.encoding.frames_per_clip
    )
    assert {"000.jpg", "063.jpg", "__key__", "__url__"} < set(features)


def test_hf_features_without_datasets_name_the_install_command(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="not installed; run `pip install datasets`"):
        hf_features(pool)


@pytest.mark.usefixtures("openers")
def test_stock_webdataset_reads_every_sample_from_object_storage(
    pool: Pool, remote: list[str]
) -> None:
    found = read_by_webdataset(remote)
    assert len(found) == 24
    assert found == frames_by_key(pool)


_WORKERS = """
import json, sys
from torch.utils.data import DataLoader
from webdataset import WebDataset
from shards.interop import register_openers
if __name__ == "__main__":
    register_openers()
    dataset = WebDataset(sys.argv[1:], shardshuffle=False)
    forked = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    spawned = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn",
        worker_init_fn=register_openers,
    )
    loaders = (forked, spawned)
    print(json.dumps([sorted(sample["__key__"] for sample in loader) for loader in loaders]))
"""


def test_loader_workers_of_stock_webdataset_read_object_storage_forked_or_spawned(
    pool: Pool, remote: list[str], tmp_path: Path
) -> None:
    (tmp_path / "workers.py").write_text(_WORKERS)
    forked, spawned = json.loads(run_python("workers.py", *remote, cwd=tmp_path))
    assert forked == spawned == sorted(frames_by_key(pool))


@pytest.mark.usefixtures("openers")
def test_an_opened_shard_is_streamed_and_never_held_whole(s3: ObjectServer) -> None:
    from webdataset.gopen import gopen

    data = os.urandom(1 << 20) * 64
    s3.client(s3.make_bucket(BUCKET)).put("large.tar", data)
    tracemalloc.start()
    try:
        with gopen(f"s3://{BUCKET}/large.tar?timeout_seconds=30") as stream:
            assert stream.read(10_240) == data[:10_240]
            at = 10_240
            while block := stream.read(3 << 20):
                assert block == data[at : at + len(block)]
                at += len(block)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert at == len(data)
    assert peak_bytes < 32 << 20  # a response's block of some 8 MB, a few times


@pytest.mark.usefixtures("openers")
def test_an_object_that_cannot_be_opened_is_named(remote: list[str]) -> None:
    from webdataset.gopen import gopen

    with pytest.raises(StorageError, match=f"^s3://{BUCKET}/a pool/shards/none.tar: no such file"):
        gopen(f"s3://{BUCKET}/a pool/shards/none.tar")
    with pytest.raises(
        ConfigError, match=f"^{remote[0]}: can only be read .* mode wb; use `bmpt build --out`"
    ):
        gopen(remote[0], "wb")
    for mode in ("rb", "wb"):
        with pytest.raises(ConfigError, match="the address holds credentials") as caught:
            gopen("s3://key:pa/planted@bucket/x.tar", mode)
        assert "planted" not in str(caught.value)


@pytest.mark.usefixtures("openers")
def test_a_truncated_response_is_an_error_and_not_a_shorter_shard(
    s3: ObjectServer, remote: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.decide = lambda number, method, path: (
            Fault(body_share=0.5, is_short=True) if method == "GET" and "000001" in path else None
        )
        with pytest.raises(StorageError, match=r"toy-000001.tar: ends before the \d+ bytes"):
            read_by_webdataset(remote)


def test_every_scheme_of_the_openers_is_supported() -> None:
    for scheme in SCHEMES:
        assert open_store(f"{scheme}://bucket/pool").uri("x") == f"{scheme}://bucket/pool/x"


def test_pandas_and_duckdb_read_the_rows_of_a_manifest(pool: Pool) -> None:
    path = pool.store.uri("manifests/few_shot/train_k2.parquet")
    table = pool.manifest("few_shot/train_k2").table
    expected = Counter(table["class_name"].to_pylist())
    assert len(expected) == 4
    frame = pandas.read_parquet(path)
    assert frame["class_name"].value_counts().to_dict() == expected
    assert [list(values) for values in frame["frame_crc32"]] == table["frame_crc32"].to_pylist()
    assert list(frame.columns) == table.column_names
    assert (
        dict(duckdb.sql(f"SELECT class_name, count(*) FROM '{path}' GROUP BY ALL").fetchall())
        == expected
    )
    rows = duckdb.sql(f"SELECT * FROM '{path}'").fetchall()
    assert rows == [tuple(row.values()) for row in table.to_pylist()]


def test_duckdb_reads_the_samples_of_a_build(odd_pool: Pool) -> None:
    path = odd_pool.store.uri("samples.parquet")
    counts = duckdb.sql(
        f"SELECT key, len(source_index) FROM '{path}' WHERE verdict = 'ok'"
    ).fetchall()
    assert dict(counts) == {key: len(frames) for key, frames in frames_by_key(odd_pool).items()}


def test_the_example_of_the_docs_runs_and_prints_what_the_pool_holds(
    pool: Pool, remote: list[str], tmp_path: Path
) -> None:
    page = ROOT / "docs" / "guides" / "other-libraries.md"
    text = page.read_text(encoding="utf-8")
    (example,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "shards.interop" in code
    ]
    assert isinstance(pool.store, LocalStore)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ucf101").symlink_to(pool.store.root)
    for shown, ours in (
        ("s3://bucket/ucf101/", f"s3://{BUCKET}/a pool/"),
        ("ucf101-{000000..000052}", "toy-{000000..000004}"),
    ):
        assert example.count(shown) == 1
        example = example.replace(shown, ours)
    printed = run_python("-c", example, cwd=tmp_path)
    streamed = "".join(f"{key} {len(frames[0])}\n" for key, frames in frames_by_key(pool).items())
    assert printed.startswith(f"(64, 48)\n{streamed}")
    tables = printed.removeprefix(f"(64, 48)\n{streamed}")
    assert re.findall(r"^(Class\d\d) +(\d+)$", tables, re.MULTILINE) == [
        (f"Class{n:02d}", "2") for n in range(4)
    ]
    assert re.search(r"\bok\b\W+24\b", tables)
