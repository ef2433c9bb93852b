"""Find the published weights of an open_clip tag: in a local cache, or else on the hub.

Without a network the search ends after CONNECT_SECONDS, with an error that names the file to
download and the folder to put it into."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, FormatError
from shards.files import hash_file, one_line

CONNECT_SECONDS = 5.0
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# OpenAI's package and open_clip store the files here that they download by URL.
URL_CACHE = Path("~/.cache/clip")
_HUB_ERROR_CHARACTERS = 120


@dataclass(frozen=True)
class Pretrained:
    """The weight file of a tag, with what open_clip's table states about it."""

    file: Path
    """Local path."""
    quick_gelu: bool
    """Whether the weights were trained with QuickGELU instead of GELU."""
    image_mean: tuple[float, float, float]
    """Mean per channel, for normalisation."""
    image_std: tuple[float, float, float]
    """Standard deviation per channel, for normalisation."""


def find_pretrained(open_clip: Any, name: str, tag: str) -> Pretrained:
    """Find the weights of an open_clip architecture and tag, or download them.

    Args:
        open_clip: the imported package.
        name: an architecture, such as `ViT-B-16`.
        tag: a tag of it, such as `openai`.

    Raises:
        ConfigError: if the tag is unknown, or the weights are not on this machine and cannot be
            downloaded. The error then names the file and the folder for it.
        FormatError: if a cached file is damaged.
    """
    stated = open_clip.get_pretrained_cfg(name, tag)
    if not stated:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ConfigError(
            f"model.pretrained={tag}: is neither a tag of {name} nor a file; give `random` or one "
            f"of the tags: {known}"
        )

    file = _find_in_url_cache(stated["url"]) or _find_on_hub(open_clip, name, tag, stated)
    return Pretrained(
        file=file,
        quick_gelu=bool(stated.get("quick_gelu", False)),
        image_mean=tuple(stated["mean"]),
        image_std=tuple(stated["std"]),
    )


def _find_in_url_cache(url: str) -> Path | None:
    """Raises: FormatError for a damaged file, for example of an interrupted download."""
    file = URL_CACHE.expanduser() / url.rpartition("/")[2]
    if not url or not file.is_file():
        return None

    # OpenAI's addresses contain the sha256 of the file.
    if "openaipublic" in url:
        actual, expected = hash_file(file), url.split("/")[-2]
        if actual != expected:
            raise FormatError(
                f"{file}: has sha256 {actual[:12]}, the published file has {expected[:12]}; "
                "delete it or download it again"
            )
    return file


def _find_on_hub(open_clip: Any, name: str, tag: str, stated: dict[str, Any]) -> Path:
    # open_clip depends on this package.
    import huggingface_hub

    repo, _, filename = stated["hf_hub"].rpartition("/")
    filenames = (filename,) if filename else HUB_NAMES
    for candidate in filenames:
        cached = huggingface_hub.try_to_load_from_cache(repo, candidate)
        if isinstance(cached, str):
            return Path(cached)

    reason = _ask_hub(repo, filenames) if repo else "open_clip names no repository on the hub"
    if reason is None:
        try:
            return Path(open_clip.download_pretrained({"hf_hub": stated["hf_hub"]}))
        except OSError as error:
            reason = one_line(error)

    hint = _download_hint(huggingface_hub.constants, repo, filenames[0], stated["url"])
    raise ConfigError(
        f"model.pretrained={tag}: the weights of {name} are not on this machine and could not be "
        f"downloaded ({reason[:_HUB_ERROR_CHARACTERS]}); {hint}"
    )


def _download_hint(hub: Any, repo: str, filename: str, url: str) -> str:
    """Return which file to put into which folder."""
    hints = []
    if url:
        hints.append(f"put {url} into {URL_CACHE.expanduser()}")
    if repo:
        hints.append(
            f"put {filename} and open_clip_config.json of {hub.ENDPOINT}/{repo} into a folder and "
            f"set model.pretrained=FOLDER/{filename} (the hub's cache {hub.HF_HUB_CACHE} does not "
            f"contain {repo})"
        )
    return ", or ".join(hints) or "give a weight file as model.pretrained"


def _ask_hub(repo: str, filenames: tuple[str, ...]) -> str | None:
    """Return why none of the files can be downloaded, or None if one of them can.

    The answer comes after CONNECT_SECONDS at the latest.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # The bases are the errors of the HTTP library, which differs between versions of the package.
    client_errors: Any = HfHubHTTPError.__bases__
    answers: list[str | None] = []

    def ask() -> None:
        for filename in filenames:
            try:
                huggingface_hub.get_hf_file_metadata(
                    huggingface_hub.hf_hub_url(repo, filename), timeout=CONNECT_SECONDS
                )
            except EntryNotFoundError:
                continue
            except (OSError, ValueError, *client_errors) as error:
                answers.append(one_line(error))
            else:
                answers.append(None)
            return
        answers.append(f"{repo} has none of {', '.join(filenames)}")

    # In a thread: the timeout of a request does not cover its name lookup, which may hang.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT_SECONDS)

    return answers[0] if answers else f"no answer within {CONNECT_SECONDS:g} s"
