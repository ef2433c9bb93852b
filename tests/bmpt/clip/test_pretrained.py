"""Test that the weights of a tag are found in a cache or on the hub, or their file is named."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants as hub
import pytest
from safetensors.torch import save

from bmpt.clip.architecture import build_clip, import_open_clip
from bmpt.clip.backbone import load_backbone
from bmpt.clip.pretrained import HUB_NAMES, find_pretrained
from shards.errors import ConfigError, FormatError
from tests.bmpt.tiny import SPEC

REPO, OPENAI_FILE = "timm/vit_base_patch16_clip_224.openai", "ViT-B-16.pt"


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty both caches, and switch the hub off unless a test sets an endpoint."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("bmpt.clip.pretrained.URL_CACHE", tmp_path / "clip")


def find(name: str = "ViT-B-16", tag: str = "openai") -> Any:
    return find_pretrained(import_open_clip(), name, tag)


def put_into_hub_cache(folder: Path, filename: str, content: bytes, *, repo: str = REPO) -> Path:
    """Put a file where the hub's client stores its downloads."""
    kept = folder / f"models--{repo.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True, exist_ok=True)
    (kept / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    file = kept / "snapshots" / ("a" * 40) / filename
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
def test_pretrained_without_network_names_the_file_and_its_folder(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=f"model.pretrained=openai: the weights of {name} are not on this"
    ) as caught:
        load_backbone(name, "openai")
    sentence = str(caught.value)
    assert (
        f"{name}.pt into {tmp_path}/clip" in sentence
        or f"{name}px.pt into {tmp_path}/clip" in sentence
    )
    assert (
        "put open_clip_model.safetensors and open_clip_config.json of "
        "https://huggingface.co/timm/vit_" in sentence
    )
    assert "model.pretrained=FOLDER/open_clip_model.safetensors" in sentence
    assert "\n" not in sentence


def test_pretrained_tag_of_the_hub_alone_names_the_hubs_file() -> None:
    with pytest.raises(
        ConfigError,
        match=r"put open_clip_model\.safetensors .*/laion/CLIP-ViT-B-16-laion2B-s34B-b88K ",
    ):
        find(tag="laion2b_s34b_b88k")


@pytest.mark.parametrize("filename", HUB_NAMES)
def test_pretrained_weights_are_found_in_the_hubs_cache(tmp_path: Path, filename: str) -> None:
    file = put_into_hub_cache(tmp_path / "hub", filename, b"weights")
    found = find()
    assert found.file == file
    assert found.quick_gelu


def test_pretrained_weights_in_openais_cache_are_used_if_their_hash_matches(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / OPENAI_FILE).write_bytes(b"half of it")
    with pytest.raises(
        FormatError, match=r"ViT-B-16\.pt: has sha256 \w{12}, the published file has 5806e77cd80f"
    ):
        find()
    url = import_open_clip().get_pretrained_cfg("ViT-B-32", "laion400m_e31")["url"]
    other = tmp_path / "clip" / url.rpartition("/")[2]  # its address carries no sha256
    other.write_bytes(b"weights")
    assert find("ViT-B-32", "laion400m_e31").file == other


@pytest.mark.parametrize(("tag", "activation"), [("published", "QuickGELU"), ("retrained", "GELU")])
def test_pretrained_activation_is_that_of_the_tag_not_of_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, activation: str
) -> None:
    open_clip = import_open_clip()
    architecture = {**SPEC, "quick_gelu": False}
    entry = {"url": "", "hf_hub": f"someone/{tag}/", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    entry |= {"quick_gelu": True} if tag == "published" else {}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", architecture)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-tiny", {tag: entry})
    put_into_hub_cache(
        tmp_path / "hub", HUB_NAMES[0], save(build_clip(SPEC).state_dict()), repo=f"someone/{tag}"
    )
    backbone = load_backbone("ViT-tiny", tag)
    assert type(backbone.model.transformer.resblocks[0].mlp.gelu).__name__ == activation
    assert (backbone.image_mean, backbone.image_std) == ((0.5,) * 3, (0.25,) * 3)


@contextmanager
def hub_that_has(content: dict[str, bytes]) -> Iterator[str]:
    """Run a server that answers as the hub does for these files, and yield its address."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            body = content.get(self.path.rpartition("/")[2])
            self.send_response(404 if body is None else 200)
            self.send_header("X-Repo-Commit", "b" * 40)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", '"1234"')
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if with_body:
                self.wfile.write(body or b"")

        def log_message(self, *arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask_in_a_process(endpoint: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Find a tag in a new process whose hub is at `endpoint`; return the answer and its seconds."""
    code = (
        "import json, time; from bmpt.clip.architecture import import_open_clip\n"
        "from bmpt.clip.pretrained import find_pretrained\n"
        "from shards.errors import BmptError\n"
        "open_clip = import_open_clip(); start = time.monotonic()\n"
        "try: answer = {'file': str(find_pretrained(open_clip, 'ViT-B-16', 'openai').file)}\n"
        "except BmptError as error: answer = {'error': str(error)}\n"
        "print(json.dumps([answer, time.monotonic() - start]))"
    )
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "0",
    }
    environment = {**os.environ, **settings, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answer, seconds = json.loads(done.stdout)
    return answer, seconds


@pytest.mark.parametrize("there", [HUB_NAMES, HUB_NAMES[1:]])
def test_pretrained_weights_are_downloaded_from_the_hub(
    tmp_path: Path, there: tuple[str, ...]
) -> None:
    with hub_that_has(dict.fromkeys(there, b"weights")) as endpoint:
        answer, _ = ask_in_a_process(endpoint, tmp_path)
    assert Path(answer["file"]).name == there[0]
    assert Path(answer["file"]).read_bytes() == b"weights"


def test_pretrained_error_names_files_that_the_hub_does_not_have(tmp_path: Path) -> None:
    with hub_that_has({}) as endpoint:
        answer, _ = ask_in_a_process(endpoint, tmp_path)
    assert (
        f"could not be downloaded ({REPO} has none of open_clip_model.safetensors, "
        in answer["error"]
    )


def test_find_pretrained_gives_up_on_a_hub_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer, seconds = ask_in_a_process(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    assert "could not be downloaded (" in answer["error"]
    assert f"{OPENAI_FILE} into {tmp_path}/.cache/clip" in answer["error"]
    assert seconds < 30, "the hub's client alone asks for minutes"


def test_find_pretrained_reports_a_hub_that_refuses_connections(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer, _ = ask_in_a_process(f"http://127.0.0.1:{port}", tmp_path)
    assert "could not be downloaded (" in answer["error"]
