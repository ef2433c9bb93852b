"""`bmpt attributes`: names that fit a clip by CLIP, BIKE's published ones, and their sentences'
features."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from bmpt.cli.app import app
from bmpt.clip.normalize import normalize
from bmpt.offline.attributes import import_attributes, read_attributes
from bmpt.texts.knowledge_file import KnowledgeRow, import_features, read_knowledge, write_knowledge
from shards.cli import run_app
from shards.errors import ConfigError, FormatError
from shards.loader import build_eval_loader
from shards.reader import Manifest, open_pool
from shards.sampling.clip_settings import ClipSettings
from shards.stream.settings import BlockSettings
from tests.bmpt.runs import damage_a_sample
from tests.bmpt.tiny import JOINT_WIDTH, load_tiny, write_clip
from tests.pools import make_pool
from tests.updates import Updates

MANIFEST = "few_shot/train_k2"  # 8 samples of 12 frames
NAMES = [
    "archery",
    "bowling",
    "tying bow tie",
    "fencing",
    "juggling balls",
    "surfing water",
    "typing",
    "yoga",
]


def run(*words: str) -> int:
    return run_app(app, words, prog_name="bmpt")


def arguments(pool: Path, clip: Path, out: Path, *more: str) -> list[str]:
    return [
        "attributes",
        str(pool),
        MANIFEST,
        "--out",
        str(out),
        "--clip-model",
        "tiny",
        "--pretrained",
        str(clip),
        *more,
    ]


def lexicon_of(folder: Path, names: list[str]) -> Path:
    file = folder / "lexicon.txt"
    file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return file


def published(folder: Path, videos: Any) -> Path:
    """A file as BIKE publishes it; `videos`: {path: names}, or what else it may hold."""
    if isinstance(videos, dict):
        videos = {path: {"classname_topk": names} for path, names in videos.items()}
    file = folder / "attributes.json"
    file.write_text(json.dumps(videos), encoding="utf-8")
    return file


def keys_of(pool: Path) -> list[str]:
    return open_pool(pool).manifest(MANIFEST).table["key"].to_pylist()


def with_keys(manifest: Manifest, keys: list[str]) -> Manifest:
    """The manifest with other keys for its samples."""
    return Manifest(
        manifest.info, manifest.table.set_column(0, manifest.table.schema.field("key"), [keys])
    )


@pytest.fixture(scope="module")
def finished(toy_pool: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 6 attributes for all samples of the manifest."""
    folder = tmp_path_factory.mktemp("attributes")
    words = arguments(toy_pool, clip, folder / "attributes.parquet", "--top", "6")
    assert run(*words, "--lexicon", str(lexicon_of(folder, NAMES))) == 0
    return folder / "attributes.parquet"


def test_a_clips_names_are_ranked_by_the_cosine_of_its_mean_frame(
    finished: Path, toy_pool: Path, clip: Path
) -> None:
    pool, backbone = open_pool(toy_pool), load_tiny(clip)
    settings = ClipSettings(frames=8, size_px=backbone.image_size_px)
    (batch,) = build_eval_loader(
        pool, pool.manifest(MANIFEST), settings, BlockSettings(block_size=8)
    )
    found = {row["key"]: row["attributes"] for row in pq.read_table(finished).to_pylist()}
    assert list(found) == batch.keys
    for key, frames_VTCHW in zip(batch.keys, batch.frames_BVTCHW, strict=True):
        frames_TCHW = normalize(frames_VTCHW, backbone.image_mean, backbone.image_std)[0]
        with torch.no_grad():
            mean_D = sum(backbone.model.encode_image(frame[None])[0] for frame in frames_TCHW) / 8
            cosine_of = {
                name: F.cosine_similarity(
                    backbone.model.encode_text(
                        backbone.tokenize([f"This is a video about {name}"])
                    )[0],
                    mean_D,
                    dim=0,
                ).item()
                for name in NAMES
            }
        assert found[key] == sorted(NAMES, key=lambda name: -cosine_of[name])[:6]
    assert len({tuple(names) for names in found.values()}) > 1, (
        "all clips have the same names: nothing is tested"
    )


def test_a_row_holds_the_sentence_of_the_first_five_names_and_its_feature(
    finished: Path, clip: Path
) -> None:
    backbone = load_tiny(clip)
    for row in pq.read_table(finished).to_pylist():
        assert row["text"] == "This is a video about " + ",".join(row["attributes"][:5])
        with torch.no_grad():
            expected = F.normalize(
                backbone.model.encode_text(backbone.tokenize([row["text"]]))[0], dim=0
            ).numpy()
        np.testing.assert_allclose(row["features"], expected, atol=1e-5)


def test_the_file_says_which_manifest_clip_and_lexicon_it_is_of(
    finished: Path, toy_pool: Path, clip: Path
) -> None:
    schema = pq.read_schema(finished)
    assert schema.names == ["key", "attributes", "text", "features"]
    metadata = json.loads(schema.metadata[b"bmpt"])
    info = open_pool(toy_pool).manifest(MANIFEST).info
    assert {
        name: metadata[name]
        for name in ("format_version", "dataset", "manifest", "fingerprint", "pool_id")
    } == {
        "format_version": 1,
        "dataset": info.dataset,
        "manifest": MANIFEST,
        "fingerprint": info.fingerprint,
        "pool_id": info.pool_id,
    }
    assert metadata["clip"] == {"name": "tiny", "weights_sha256": load_tiny(clip).weights_sha256}
    assert (metadata["expected"], metadata["found"], metadata["width"], metadata["frames"]) == (
        8,
        8,
        JOINT_WIDTH,
        8,
    )
    assert (metadata["lexicon"], metadata["names"]) == ("lexicon.txt", len(NAMES))
    assert metadata["names_sha256"] == hashlib.sha256("\n".join(NAMES).encode()).hexdigest()


def test_loader_processes_give_the_same_file(
    finished: Path, toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    lexicon = lexicon_of(tmp_path, NAMES)
    words = arguments(
        toy_pool, clip, tmp_path / "a.parquet", "--lexicon", str(lexicon), "--top", "6"
    )
    assert run(*words, "--workers", "1") == 0
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(finished))


def test_features_are_read_by_key_in_any_order(finished: Path, toy_pool: Path, clip: Path) -> None:
    keys, backbone = keys_of(toy_pool), load_tiny(clip)
    features_ND = read_attributes([finished], keys, backbone)
    assert (features_ND.shape, features_ND.dtype) == ((8, JOINT_WIDTH), np.float32)
    np.testing.assert_allclose(np.linalg.norm(features_ND, axis=1), 1, atol=1e-5)
    backwards_ND = read_attributes([finished], keys[::-1], backbone)
    np.testing.assert_array_equal(backwards_ND, features_ND[::-1])


def test_missing_keys_are_counted_and_another_clip_is_refused(
    finished: Path, toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    missing = (
        r"attributes\.parquet: 1 of 9 samples have no attributes "
        r"\(the first: gone\); .* `bmpt attributes`$"
    )
    with pytest.raises(ConfigError, match=missing):
        read_attributes([finished], [*keys_of(toy_pool), "gone"], load_tiny(clip))
    other = load_tiny(write_clip(tmp_path / "other.safetensors", seed=1))
    refused = (
        rf"were made by tiny \w{{12}}, training uses tiny "
        rf"{other.weights_sha256[:12]}; run `bmpt attributes` with this"
    )
    with pytest.raises(ConfigError, match=refused):
        read_attributes([finished], keys_of(toy_pool), other)


def test_a_file_of_another_kind_is_refused_both_ways(
    finished: Path, toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    backbone, knowledge = load_tiny(clip), tmp_path / "knowledge.parquet"
    unit_D = np.eye(1, JOINT_WIDTH, dtype=np.float32)[0]
    manifest = open_pool(toy_pool).manifest(MANIFEST)
    write_knowledge(knowledge, [KnowledgeRow(keys_of(toy_pool)[0], unit_D)], manifest, backbone)
    with pytest.raises(
        FormatError,
        match=r"knowledge\.parquet: is not a file of attributes, format 1; .*`bmpt attributes`",
    ):
        read_attributes([knowledge], [], backbone)
    with pytest.raises(
        FormatError,
        match=r"attributes\.parquet: is not a file of knowledge, format 1; .*`bmpt knowledge`",
    ):
        read_knowledge(finished, [], backbone)
    with pytest.raises(
        ConfigError,
        match=r"gone\.parquet: cannot be read: .*; make it with `bmpt attributes POOL MANIFEST",
    ):
        read_attributes([tmp_path / "gone.parquet"], [], backbone)


def test_a_clip_that_cannot_be_read_is_named_and_left_out(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pool(tmp_path / "pool", samples_per_class=2)
    key = damage_a_sample(tmp_path / "pool", MANIFEST, 5)
    out = tmp_path / "attributes.parquet"
    words = arguments(tmp_path / "pool", clip, out, "--lexicon", str(lexicon_of(tmp_path, NAMES)))
    assert run(*words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: attributes of 7 of 8 samples (1 without)"
    assert lines[1].startswith(f"  no attributes: {key}: ")
    assert "CRC" in lines[1]
    assert run(*words, "--json") == 1
    assert json.loads(capsys.readouterr().out)["missing"] == [key]
    with pytest.raises(
        ConfigError, match=rf"1 of 8 samples have no attributes \(the first: {key}\)"
    ):
        read_attributes([out], keys_of(tmp_path / "pool"), load_tiny(clip))


def test_the_names_of_a_label_csv_are_written_as_words_and_used_once(
    toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "id,name\n0,ApplyEyeMakeup\n1,shoot_bow\n2,Shoot bow\n3,YoYo\n", encoding="utf-8"
    )
    words = arguments(toy_pool, clip, tmp_path / "a.parquet", "--lexicon", str(labels))
    assert run(*words, "--top", "3") == 0
    for names in pq.read_table(tmp_path / "a.parquet")["attributes"].to_pylist():
        assert sorted(names) == ["apply eye makeup", "shoot bow", "yo yo"]


def test_published_attributes_are_found_by_the_name_of_the_video(
    toy_pool: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = [key.rpartition("/")[2] for key in keys_of(toy_pool)]
    forms = ["{}", "{}.mp4", "some/folder/{}.avi", "frames/{}/"]
    videos = {
        forms[index % 4].format(stem): [f"name {index}", "bowling"]
        for index, stem in enumerate(stems)
    }
    source = published(tmp_path, {"another.mp4": ["yoga"], **videos})
    out = tmp_path / "a.parquet"
    assert run(*arguments(toy_pool, clip, out, "--import", str(source))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{out}: attributes of 8 of 8 samples (0 without)",
        f"{source}: 8 of 9 entries used",
    ]
    table = pq.read_table(out)
    assert table["key"].to_pylist() == keys_of(toy_pool)
    assert table["text"].to_pylist() == [
        f"This is a video about name {index},bowling" for index in range(8)
    ]
    metadata = json.loads(table.schema.metadata[b"bmpt"])
    assert metadata["imported"] == "attributes.json"
    assert metadata["imported_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert read_attributes([out], keys_of(toy_pool), load_tiny(clip)).shape == (8, JOINT_WIDTH)


def test_only_the_best_of_many_published_names_are_kept(
    toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    manifest = open_pool(toy_pool).manifest(MANIFEST)
    source = published(tmp_path, dict.fromkeys(keys_of(toy_pool), NAMES))
    import_attributes(source, manifest, load_tiny(clip), tmp_path / "a.parquet", top=2)
    assert pq.read_table(tmp_path / "a.parquet")["attributes"].to_pylist() == [NAMES[:2]] * 8


def test_samples_without_a_published_entry_are_counted_and_listed(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool"
    make_pool(pool, classes=6, samples_per_class=2)
    keys = keys_of(pool)
    source = published(tmp_path, {f"{keys[3]}.mp4": ["yoga"]})
    out = tmp_path / "a.parquet"
    assert run(*arguments(pool, clip, out, "--import", str(source))) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: attributes of 1 of 12 samples (11 without)"
    missing = [key for key in keys if key != keys[3]]
    assert lines[1:11] == [f"  no attributes: {key}: no entry" for key in missing[:10]]
    assert lines[11] == "  ... and 1 more; --json lists all"
    assert run(*arguments(pool, clip, out, "--import", str(source), "--json")) == 1
    assert json.loads(capsys.readouterr().out)["missing"] == missing


def test_names_that_are_encoded_in_keys_and_hold_dots_find_their_own_entries(
    toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    manifest = open_pool(toy_pool).manifest(MANIFEST)
    keys = ["50%25", "50", "a/50%2Efirst", *(f"other {index}" for index in range(5))]
    source = published(
        tmp_path,
        {"50%.mp4": ["percent"], "x/50.first": ["folder of frames"], "50.webm": ["number"]},
    )
    done = import_attributes(
        source, with_keys(manifest, keys), load_tiny(clip), tmp_path / "a.parquet"
    )
    assert (done.written, done.missing) == (3, keys[3:])
    found = {
        row["key"]: row["attributes"] for row in pq.read_table(tmp_path / "a.parquet").to_pylist()
    }
    assert found == {"50%25": ["percent"], "50": ["number"], "a/50%2Efirst": ["folder of frames"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [("one/{}.mp4", "two/{}.mp4"), ("{}", "{}.avi"), ("same/{}.mp4", "same/{}.mp4")],
)
def test_two_entries_of_one_sample_are_an_error(
    toy_pool: Path, clip: Path, tmp_path: Path, first: str, second: str
) -> None:
    key = keys_of(toy_pool)[2]
    paths = [form.format(key.rpartition("/")[2]) for form in (first, second)]
    source = tmp_path / "attributes.json"
    entries = ", ".join(f'"{path}": {{"classname_topk": ["{path}"]}}' for path in paths)
    source.write_text("{" + entries + "}")
    expected = (
        rf"attributes\.json: '{paths[0]}' and '{paths[1]}' are both of "
        rf"{key}; remove one of the entries"
    )
    with pytest.raises(ConfigError, match=expected):
        import_attributes(
            source, open_pool(toy_pool).manifest(MANIFEST), load_tiny(clip), tmp_path / "a.parquet"
        )
    assert not (tmp_path / "a.parquet").exists()


def test_two_samples_of_one_file_name_cannot_be_imported(
    toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    manifest = with_keys(open_pool(toy_pool).manifest(MANIFEST), ["run/1", "jump/1", *"abcdef"])
    expected = (
        "few_shot/train_k2: run/1 and jump/1 have one file name, .*; make the features here instead"
    )
    with pytest.raises(ConfigError, match=expected):
        import_attributes(
            published(tmp_path, {"1": ["yoga"]}), manifest, load_tiny(clip), tmp_path / "a.parquet"
        )
    with pytest.raises(ConfigError, match=expected):
        import_features(tmp_path, manifest, tmp_path / "k.parquet")


@pytest.mark.parametrize(
    "entry",
    [
        ["yoga"],
        "yoga",
        None,
        {},
        {"topk": ["yoga"]},
        {"classname_topk": []},
        {"classname_topk": "yoga"},
        {"classname_topk": ["yoga", 3]},
        {"classname_topk": ["yoga", " "]},
        {"classname_topk": ["yo\udcffga"]},
    ],
)
def test_an_entry_that_is_something_else_is_named(
    toy_pool: Path, clip: Path, tmp_path: Path, entry: Any
) -> None:
    source = tmp_path / "attributes.json"
    source.write_text(
        json.dumps({keys_of(toy_pool)[0]: {"classname_topk": ["yoga"]}, "x/y.mp4": entry})
    )
    expected = (
        r"attributes\.json: entry 'x/y\.mp4' is .*, expected "
        r"\{\"classname_topk\": \[names\]\}; correct or remove"
    )
    with pytest.raises(FormatError, match=expected):
        import_attributes(
            source, open_pool(toy_pool).manifest(MANIFEST), load_tiny(clip), tmp_path / "a.parquet"
        )
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "holds no videos; expected {video path: "),
        (b'[["a.mp4", {"classname_topk": ["yoga"]}]]', "holds no videos"),
        (
            b'{"gone.mp4": {"classname_topk": ["yoga"]}}',
            "none of its 1 entries (the first: 'gone.mp4') is of the 8",
        ),
    ],
)
def test_a_published_file_that_is_something_else_is_one_line(
    toy_pool: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
    expected: str,
) -> None:
    source = tmp_path / "attributes.json"
    source.write_bytes(data)
    assert run(*arguments(toy_pool, clip, tmp_path / "a.parquet", "--import", str(source))) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert f"{source}: {expected}" in captured.err
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], "give either --lexicon FILE or --import FILE.json"),
        (
            ["--lexicon", "{lexicon}", "--import", "x.json"],
            "give either --lexicon FILE or --import FILE.json",
        ),
        (
            ["--lexicon", "{lexicon}", "--top", "9"],
            "has 8 different names, --top asks for 9; add names or ask for fewer",
        ),
        (["--lexicon", "gone.txt"], "gone.txt: cannot be read: No such file"),
        (["--lexicon", "{latin}"], "'caf\\udce9' is not UTF-8; convert the file"),
        (["--import", "gone.json"], "gone.json: cannot be read: No such file"),
        (["--lexicon", "{lexicon}", "--out", "{folder}"], "is a folder; name a file in it"),
        (["--import", "gone.json", "--out", "{folder}"], "is a folder; name a file in it"),
        (["--lexicon", "{lexicon}", "--pretrained", "gone.pt"], "gone.pt: no such weight file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    toy_pool: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    expected: str,
) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("\n".join([*NAMES, "café"]).encode("latin-1"))
    places = {"lexicon": lexicon_of(tmp_path, NAMES), "latin": latin, "folder": tmp_path}
    words = [word.format(**places) for word in more]
    assert run(*arguments(toy_pool, clip, tmp_path / "a.parquet", *words)) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert expected in captured.err
    assert not (tmp_path / "a.parquet").exists()


def test_sentences_that_clip_cuts_are_counted_in_one_warning(
    toy_pool: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = {
        key: ["very " * 80 + "old"] if index < 3 else ["old"]
        for index, key in enumerate(keys_of(toy_pool))
    }
    source = published(tmp_path, videos)
    assert run(*arguments(toy_pool, clip, tmp_path / "a.parquet", "--import", str(source))) == 0
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")
    ]
    (warning,) = warnings
    assert warning.startswith(
        "warning: 3 of 8 attribute sentences are over 77 tokens and are truncated at the end"
    )


def test_many_sentences_are_encoded_in_blocks_in_their_order(
    toy_pool: Path, clip: Path, tmp_path: Path
) -> None:
    base, backbone = open_pool(toy_pool).manifest(MANIFEST), load_tiny(clip)
    keys = [f"clip {index}" for index in range(600)]
    columns = {
        "key": keys,
        **{name: [base.row(0)[name]] * 600 for name in base.table.schema.names[1:]},
    }
    manifest = Manifest(base.info, pa.table(columns, schema=base.table.schema))
    source = published(tmp_path, {key: [f"name {index % 300}"] for index, key in enumerate(keys)})
    progress = Updates()
    import_attributes(
        source,
        manifest,
        backbone,
        tmp_path / "a.parquet",
        progress=progress,
    )
    assert progress.all == [("sentences", done, 600, "") for done in (256, 512, 600)]
    features_ND = read_attributes([tmp_path / "a.parquet"], keys, backbone)
    np.testing.assert_allclose(features_ND[:300], features_ND[300:], atol=1e-5)
    with torch.no_grad():
        texts = backbone.tokenize(
            [f"This is a video about name {index}" for index in (0, 255, 256, 299)]
        )
        expected = F.normalize(backbone.model.encode_text(texts), dim=-1).numpy()
    np.testing.assert_allclose(features_ND[[0, 255, 256, 299]], expected, atol=1e-5)
