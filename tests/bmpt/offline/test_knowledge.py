"""`bmpt knowledge`: frames of the pool to triples, triples to CLIP text features, and published
features."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from bmpt.cli.app import app
from bmpt.offline.answers import MalformedError
from bmpt.offline.endpoint import Reply
from bmpt.offline.knowledge import encode_knowledge, frame_positions, parse_triples
from bmpt.texts.knowledge_file import import_features, read_knowledge
from shards.cli import run_app
from shards.errors import ConfigError, FormatError
from shards.reader import open_pool, read_frame_bytes
from tests.bmpt.runs import damage_a_sample
from tests.bmpt.tiny import JOINT_WIDTH, load_tiny, write_clip
from tests.chat_server import MODEL, Asked, ChatServer, Say, run_chat_server
from tests.pools import make_pool

MANIFEST = "few_shot/train_k2"  # 8 samples of 12 frames
FRAMES = (2, 4, 7, 9)  # floor(12 (i + 1) / 5)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with run_chat_server() as server:
        server.decide = lambda number, asked: Say(
            f"Entity: person relation: rides Entity: bike {picture_of(asked)[0]}"
        )
        yield server


def picture_of(asked: Asked) -> tuple[int, bytes]:
    """A number that tells pictures apart, and the JPEG bytes."""
    (url,) = [
        part["image_url"]["url"]
        for part in asked.body["messages"][0]["content"]
        if part["type"] == "image_url"
    ]
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    jpeg = base64.b64decode(data)
    return sum(jpeg), jpeg


def arguments(chat: ChatServer, pool: Path, clip: Path, out: Path, *more: str) -> list[str]:
    where = [
        "knowledge",
        str(pool),
        MANIFEST,
        "--endpoint",
        chat.url,
        "--model",
        MODEL,
        "--retries",
        "0",
    ]
    return [*where, "--clip-model", "tiny", "--pretrained", str(clip), "--out", str(out), *more]


def run(*words: str) -> int:
    return run_app(app, words, prog_name="bmpt")


def keys_of(pool: Path) -> list[str]:
    return open_pool(pool).manifest(MANIFEST).table["key"].to_pylist()


@pytest.fixture(scope="module")
def knowledge(toy_pool: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished file for all samples of the manifest."""
    file = tmp_path_factory.mktemp("knowledge") / "knowledge.parquet"
    with run_chat_server() as chat:
        chat.decide = lambda number, asked: Say(
            f"Entity: person relation: sees Entity: {picture_of(asked)[0]}"
        )
        assert run(*arguments(chat, toy_pool, clip, file)) == 0
    return file


def test_four_frames_of_every_clip_are_asked_about_with_their_stored_bytes(
    chat: ChatServer, toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    assert run(*arguments(chat, toy_pool, clip, tmp_path / "k.parquet")) == 0
    pool = open_pool(toy_pool)
    manifest = pool.manifest(MANIFEST)
    stored = [
        read_frame_bytes(pool.store, manifest.row(index), FRAMES) for index in range(len(manifest))
    ]
    assert sorted(picture_of(asked)[1] for asked in chat.asked) == sorted(
        frame for frames in stored for frame in frames
    )
    assert all("Entity: X relation: Y Entity: Z" in asked.text for asked in chat.asked)
    kept = pq.read_table(tmp_path / "k.answers.parquet")
    assert sorted(kept["key"].to_pylist()) == sorted(
        f"{key}#{frame}" for key in keys_of(toy_pool) for frame in FRAMES
    )


def test_a_row_holds_the_lines_of_its_frames_in_order_and_their_pooled_feature(
    knowledge: Path, toy_pool: Path, clip: Path
) -> None:
    pool = open_pool(toy_pool)
    row = pool.manifest(MANIFEST).row(3)
    (found,) = [each for each in pq.read_table(knowledge).to_pylist() if each["key"] == row["key"]]
    lines = [f"person sees {sum(frame)}" for frame in read_frame_bytes(pool.store, row, FRAMES)]
    assert found["text"].split("\n") == lines
    assert (found["model"], found["prompt_version"].startswith("triples-")) == (MODEL, True)
    backbone = load_tiny(clip)
    with torch.no_grad():
        each = F.normalize(backbone.model.encode_text(backbone.tokenize(lines)), dim=-1)
    expected = F.normalize(each.mean(dim=0), dim=0).numpy()
    np.testing.assert_allclose(found["features"], expected, atol=1e-5)


def test_the_file_says_which_manifest_and_which_clip_it_is_of(
    knowledge: Path, toy_pool: Path, clip: Path
) -> None:
    metadata = json.loads(pq.read_schema(knowledge).metadata[b"bmpt"])
    info = open_pool(toy_pool).manifest(MANIFEST).info
    assert (metadata["manifest"], metadata["fingerprint"]) == (MANIFEST, info.fingerprint)
    assert metadata["clip"] == {"name": "tiny", "weights_sha256": load_tiny(clip).weights_sha256}
    assert (metadata["pooling"], metadata["width"]) == (
        "mean of the lines' unit features, unit length",
        JOINT_WIDTH,
    )
    assert (metadata["expected"], metadata["found"]) == (8, 8)


def test_features_are_read_by_key_in_any_order(knowledge: Path, toy_pool: Path, clip: Path) -> None:
    keys, backbone = keys_of(toy_pool), load_tiny(clip)
    features_ND = read_knowledge(knowledge, keys, backbone)
    assert (features_ND.shape, features_ND.dtype) == ((8, JOINT_WIDTH), np.float32)
    np.testing.assert_allclose(np.linalg.norm(features_ND, axis=1), 1, atol=1e-5)
    backwards = read_knowledge(knowledge, [*keys[::-1], keys[0]], backbone)
    np.testing.assert_array_equal(backwards, features_ND[[7, 6, 5, 4, 3, 2, 1, 0, 0]])
    assert len(np.unique(features_ND, axis=0)) == 8


def test_missing_keys_are_counted(knowledge: Path, toy_pool: Path, clip: Path) -> None:
    keys = ["gone/1", *keys_of(toy_pool), "gone/2"]
    expected = r"knowledge\.parquet: 2 of 10 samples have no knowledge text \(the first: gone/1\)"
    with pytest.raises(ConfigError, match=expected):
        read_knowledge(knowledge, keys, load_tiny(clip))


def test_features_of_another_clip_are_refused(
    knowledge: Path, toy_pool: Path, tmp_path: Path
) -> None:
    other = load_tiny(write_clip(tmp_path / "other.safetensors", seed=1))
    expected = (
        rf"its features were made by tiny \w{{12}}, training uses tiny "
        rf"{other.weights_sha256[:12]}; run `bmpt knowledge`"
    )
    with pytest.raises(ConfigError, match=expected):
        read_knowledge(knowledge, keys_of(toy_pool), other)


def test_a_file_that_is_gone_or_something_else_is_one_line(
    knowledge: Path, toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    backbone, text = load_tiny(clip), tmp_path / "text.parquet"
    text.write_text("hello")
    with pytest.raises(ConfigError, match=r"gone\.parquet: cannot be read: No such file"):
        read_knowledge(tmp_path / "gone.parquet", [], backbone)
    with pytest.raises(FormatError, match=r"text\.parquet: is not Parquet"):
        read_knowledge(text, [], backbone)
    for other in (
        toy_pool / "manifests" / f"{MANIFEST}.parquet",
        knowledge.with_name("knowledge.answers.parquet"),
    ):
        with pytest.raises(FormatError, match="is not a file of knowledge, format 1"):
            read_knowledge(other, [], backbone)


def test_features_that_are_not_of_unit_length_are_refused(
    knowledge: Path, toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    table = pq.read_table(knowledge)
    rows = table.to_pylist()
    rows[2]["features"][0] += 1.0
    damaged = tmp_path / "damaged.parquet"
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), damaged)
    with pytest.raises(FormatError, match="holds features that are not of unit length"):
        read_knowledge(damaged, keys_of(toy_pool), load_tiny(clip))


def test_another_clip_reuses_the_answers_and_needs_no_endpoint(
    chat: ChatServer, toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "k.parquet"
    assert run(*arguments(chat, toy_pool, clip, out)) == 0
    other = write_clip(tmp_path / "other.safetensors", seed=1)
    words = arguments(chat, toy_pool, other, out)
    words[words.index(chat.url)] = "http://127.0.0.1:1/v1"
    assert run(*words) == 0
    assert read_knowledge(out, keys_of(toy_pool), load_tiny(other)).shape == (8, JOINT_WIDTH)


def test_nonsense_is_counted_and_a_clip_without_a_triple_is_named_and_left_out(
    chat: ChatServer, toy_pool: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = open_pool(toy_pool)
    manifest = pool.manifest(MANIFEST)
    silent = read_frame_bytes(pool.store, manifest.row(1), FRAMES)
    chatty = read_frame_bytes(pool.store, manifest.row(2), FRAMES[:1])

    def decide(number: int, asked: Asked) -> Say:
        jpeg = picture_of(asked)[1]
        if jpeg in silent:
            return Say("I see a person.")
        preamble = "Sure, here they are:\n" if jpeg in chatty else ""
        return Say(preamble + "Entity: person relation: rides Entity: bike")

    chat.decide = decide
    out = tmp_path / "k.parquet"
    assert run(*arguments(chat, toy_pool, clip, out)) == 1
    lines = capsys.readouterr().out.splitlines()
    key = manifest.row(1)["key"]
    assert lines[0] == f"{out}: knowledge texts of 7 of 8 samples (1 without, the first {key})"
    assert lines[1] == (
        "32 frames: 32 answers of tiny-vlm, 0 kept from before, 4 malformed, 0 refused; "
        "1 lines without a triple left out"
    )
    assert re.fullmatch(
        rf"  malformed: {re.escape(key)}#\d+: no line `Entity: X relation: Y Entity: Z`: '.*'",
        lines[2],
    )
    assert lines[3].endswith("only asked again with --retry-malformed")
    with pytest.raises(
        ConfigError, match=rf"1 of 8 samples have no knowledge text \(the first: {key}\)"
    ):
        read_knowledge(out, keys_of(toy_pool), load_tiny(clip))
    chat.decide = lambda number, asked: Say("Entity: person relation: walks Entity: street")
    assert run(*arguments(chat, toy_pool, clip, out, "--retry-malformed", "--json")) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["asked"], done["kept"], done["malformed"], done["missing"]) == (4, 28, 0, [])


def test_a_damaged_sample_costs_its_own_frames_alone(
    chat: ChatServer, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=2)
    key = damage_a_sample(tmp_path / "pool", MANIFEST, 5)
    assert run(*arguments(chat, tmp_path / "pool", clip, tmp_path / "k.parquet", "--json")) == 1
    done = json.loads(capsys.readouterr().out)
    assert (done["asked"], done["refused"], done["missing"]) == (28, 4, [key])


def test_lines_that_clip_cuts_are_counted_in_one_warning(
    chat: ChatServer, toy_pool: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.decide = lambda number, asked: Say(
        f"Entity: {'very ' * 80} old man relation: rides Entity: bike"
    )
    assert run(*arguments(chat, toy_pool, clip, tmp_path / "k.parquet")) == 0
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")
    ]
    assert warnings == [
        "warning: 32 of 32 knowledge lines are over 77 tokens and "
        "are truncated at the end, for example " + repr("very " * 12)
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda words, pool: [*words[:2], "few_shot/gone", *words[3:]], "no such manifest"),
        (lambda words, pool: [*words, "--pretrained", "gone.pt"], "gone.pt: no such weight file"),
        (lambda words, pool: [*words, "--out", str(pool)], "is a folder; name a file in it"),
        (
            lambda words, pool: [*words, "--endpoint", "http://127.0.0.1:1/v1"],
            "no endpoint answers there",
        ),
        (
            lambda words, pool: words[:3] + words[7:],
            "give --endpoint URL and --model NAME, or --import DIR",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    chat: ChatServer,
    toy_pool: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: object,
    expected: str,
) -> None:
    words = arguments(chat, toy_pool, clip, tmp_path / "k.parquet")
    assert callable(change)
    assert run(*change(words, toy_pool)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert list(tmp_path.iterdir()) == []
    assert chat.asked == []


def test_the_frames_shown_are_the_stored_ones_nearest_to_the_originals() -> None:
    assert frame_positions(range(12), 12) == [2, 4, 7, 9]
    assert frame_positions([0, 10, 20, 30, 40], 50) == [1, 2, 3, 4]
    assert frame_positions([0, 40], 50) == [0, 1]
    assert frame_positions([0, 1], 2) == [0, 1], "a frame that comes twice is shown once"
    assert frame_positions([0], 1) == [0]


@pytest.mark.parametrize(
    ("line", "triple"),
    [
        ("Entity: X relation: Y Entity: Z", "X Y Z"),
        (
            "entity: young man RELATION: is riding Entity: a red bike.",
            "young man is riding a red bike",
        ),
        ("1. Entity: man, relation: holds; Entity: bow", "man holds bow"),
        ("- Entity:man relation:holds Entity:bow", "man holds bow"),
    ],
)
def test_a_line_of_the_form_is_a_triple(line: str, triple: str) -> None:
    assert parse_triples(Reply(line)) == ([triple], 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a man rides a bike",
        "Entity: man relation: rides",
        "Entity: man relation: rides Entity:",
        "Entity: a relation: b Entity: c relation: d Entity: e",
        "**Entity:** a **relation:** b **Entity:** c",
        "Entity: a\nrelation: b\nEntity: c",
    ],
)
def test_text_without_such_a_line_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError, match="no line `Entity: X relation: Y Entity: Z`"):
        parse_triples(Reply(text))


def test_an_answer_that_was_cut_is_malformed() -> None:
    with pytest.raises(MalformedError, match="truncated at the limit of tokens"):
        parse_triples(
            Reply("Entity: a relation: b Entity: c\nEntity: d rel", finish_reason="length")
        )


def test_a_line_that_comes_twice_counts_twice(clip: Path) -> None:
    found = encode_knowledge(
        load_tiny(clip), {"one": ["a b c"], "two": ["a b c", "d e f", "a b c"], "three": ["d e f"]}
    )
    expected = 2 * found["one"] + found["three"]
    np.testing.assert_allclose(found["two"], expected / np.linalg.norm(expected), atol=1e-5)


def publish(folder: Path, features: dict[str, np.ndarray]) -> Path:
    """Files as BMPT publishes them."""
    folder.mkdir(parents=True)
    for name, values in features.items():
        np.save(folder / f"{name}_feature.npy", values)
    return folder


def unit(seed: int, width: int = JOINT_WIDTH) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((1, width)).astype(np.float32)
    return values / np.linalg.norm(values)


def test_published_features_are_imported_by_the_name_of_the_video(
    toy_pool: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = keys_of(toy_pool)
    features = {key.rpartition("/")[2]: unit(index) for index, key in enumerate(keys)}
    folder = publish(tmp_path / "npy" / "ucf", {**features, "another": unit(99)})
    out = tmp_path / "knowledge.parquet"
    assert (
        run("knowledge", str(toy_pool), MANIFEST, "--import", str(folder.parent), "--out", str(out))
        == 0
    )
    assert (
        "published features of 8 of 8 samples (0 missing; 1 files not used)"
        in capsys.readouterr().out
    )
    read_ND = read_knowledge(out, keys, load_tiny(clip))
    np.testing.assert_array_equal(read_ND, np.concatenate([unit(index) for index in range(8)]))


def test_published_features_of_some_samples_end_with_1_and_are_counted_when_they_are_read(
    toy_pool: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = keys_of(toy_pool)
    folder = publish(tmp_path / "npy", {keys[0].rpartition("/")[2]: unit(0)})
    out = tmp_path / "knowledge.parquet"
    assert (
        run(
            "knowledge",
            str(toy_pool),
            MANIFEST,
            "--import",
            str(folder),
            "--out",
            str(out),
            "--json",
        )
        == 1
    )
    assert json.loads(capsys.readouterr().out)["missing"] == keys[1:]
    with pytest.raises(ConfigError, match="7 of 8 samples have no knowledge text"):
        read_knowledge(out, keys, load_tiny(clip))


def test_a_name_that_is_encoded_in_the_key_finds_its_published_file(
    tmp_path: Path, toy_pool: Path
) -> None:
    manifest = open_pool(toy_pool).manifest(MANIFEST)
    names = [f"50.first%dates {index}" for index in range(len(manifest))]
    keys = [quote(name, safe=" ").replace(".", "%2E") for name in names]
    renamed = manifest.table.set_column(0, manifest.table.schema.field("key"), [keys])
    folder = publish(tmp_path / "npy", {name: unit(index) for index, name in enumerate(names)})
    done = import_features(folder, type(manifest)(manifest.info, renamed), tmp_path / "k.parquet")
    assert done.is_complete
    assert pq.read_table(tmp_path / "k.parquet")["key"].to_pylist() == keys


def test_a_folder_of_another_data_set_or_no_folder_is_one_line(
    toy_pool: Path, tmp_path: Path
) -> None:
    manifest = open_pool(toy_pool).manifest(MANIFEST)
    folder = publish(tmp_path / "npy", {"other": unit(0)})
    with pytest.raises(
        ConfigError,
        match=(
            r"none of its 1 _feature\.npy files belongs to one of the 8 "
            r"samples of few_shot/train_k2"
        ),
    ):
        import_features(folder, manifest, tmp_path / "k.parquet")
    with pytest.raises(ConfigError, match=r"a\.zip: is not a folder; unpack the published archive"):
        import_features(tmp_path / "a.zip", manifest, tmp_path / "k.parquet")
    publish(tmp_path / "npy" / "again", {"other": unit(0)})
    with pytest.raises(ConfigError, match=r"holds both .* and .*; give the folder of one data set"):
        import_features(folder, manifest, tmp_path / "k.parquet")
    assert not (tmp_path / "k.parquet").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            np.ones((1, 16), np.float32),
            r"is float32 \[1, 16\], expected one feature \[1, D\] of unit length",
        ),
        (np.ones((2, 8), np.float32) / 4, r"is float32 \[2, 8\]"),
        (np.zeros((1, 16), np.int64), r"is int64 \[1, 16\]"),
        (np.array(1.0), r"is float64 \[\]"),
        (np.full((1, 16), np.nan, np.float32), r"is float32 .*expected one feature"),
    ],
)
def test_a_published_file_that_is_no_unit_feature_is_refused(
    toy_pool: Path, tmp_path: Path, values: np.ndarray, expected: str
) -> None:
    manifest = open_pool(toy_pool).manifest(MANIFEST)
    name = manifest.row(0)["key"].rpartition("/")[2]
    with pytest.raises(FormatError, match=rf"{name}_feature\.npy: {expected}"):
        import_features(publish(tmp_path / "npy", {name: values}), manifest, tmp_path / "k.parquet")
    (tmp_path / "npy" / f"{name}_feature.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(FormatError, match=rf"{name}_feature\.npy: is not a NumPy array"):
        import_features(tmp_path / "npy", manifest, tmp_path / "k.parquet")
    assert not (tmp_path / "k.parquet").exists()


def test_published_features_of_two_widths_or_of_another_than_clips_are_refused(
    toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    manifest = open_pool(toy_pool).manifest(MANIFEST)
    first, second = (manifest.row(index)["key"].rpartition("/")[2] for index in (0, 1))
    folder = publish(tmp_path / "npy", {first: unit(0, 8), second: unit(1, 12)})
    with pytest.raises(
        FormatError, match=f"{second}_feature.npy: has 12 values, .*{first}_feature.npy has 8"
    ):
        import_features(folder, manifest, tmp_path / "k.parquet")
    np.save(folder / f"{second}_feature.npy", unit(1, 8))
    import_features(folder, manifest, tmp_path / "k.parquet")
    with pytest.raises(ConfigError, match="its features have 8 values, those of tiny have 16"):
        read_knowledge(tmp_path / "k.parquet", [manifest.row(0)["key"]], load_tiny(clip))
