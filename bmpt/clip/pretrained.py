"""open_clip's published weights by tag: the file on this machine, else from the hub, else one line
that says which file to put where. Nothing waits longer than CONNECT_SECONDS for a network that is
not there."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmpt.clip.weights import one_line
from shards.errors import ConfigError, FormatError

CONNECT_SECONDS = 5.0
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
URL_CACHE = Path("~/.cache/clip")  # where OpenAI's package and open_clip put what they load by URL


@dataclass(frozen=True)
class Pretrained:
    """The file of a tag and what only open_clip's table knows about it."""

    file: Path
    quick_gelu: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


def find_pretrained(open_clip: Any, name: str, tag: str) -> Pretrained:
    """Find or fetch the weights of an open_clip architecture and tag.

    Raises: ConfigError for an unknown tag, or weights that are not here and cannot be fetched:
        which file, where."""
    stated = open_clip.get_pretrained_cfg(name, tag)
    if not stated:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ConfigError(
            f"model.pretrained={tag}: no tag of {name} and no file; tags: {known}, or `random`"
        )
    file = _in_url_cache(stated["url"]) or _from_hub(open_clip, name, tag, stated)
    return Pretrained(
        file, bool(stated.get("quick_gelu", False)), tuple(stated["mean"]), tuple(stated["std"])
    )


def _in_url_cache(url: str) -> Path | None:
    """Raises: FormatError for a file there that is not the published one, such as a download that
    broke off."""
    file = URL_CACHE.expanduser() / url.rpartition("/")[2]
    if not url or not file.is_file():
        return None
    if "openaipublic" in url:  # OpenAI's addresses carry the sha256
        found, expected = hashlib.sha256(file.read_bytes()).hexdigest(), url.split("/")[-2]
        if found != expected:
            raise FormatError(
                f"{file}: has sha256 {found[:12]}, the published file has {expected[:12]}; delete it or put it there "
                "anew"
            )
    return file


def _from_hub(open_clip: Any, name: str, tag: str, stated: dict[str, Any]) -> Path:
    import huggingface_hub  # comes with open_clip, which requires it

    repo, _, only = stated["hf_hub"].rpartition("/")
    filenames = (only,) if only else HUB_NAMES
    for filename in filenames:
        cached = huggingface_hub.try_to_load_from_cache(repo, filename)
        if isinstance(cached, str):
            return Path(cached)
    why = _ask_hub(repo, filenames) if repo else "open_clip names no place on the hub"
    if why is None:
        try:
            return Path(open_clip.download_pretrained({"hf_hub": stated["hf_hub"]}))
        except OSError as error:
            why = one_line(error)
    raise ConfigError(
        f"model.pretrained={tag}: the weights of {name} are not on this machine and could not be fetched "
        f"({why[:120]}); {_cure(huggingface_hub.constants, repo, filenames[0], stated['url'])}"
    )


def _cure(hub: Any, repo: str, filename: str, url: str) -> str:
    """Which file to put where."""
    ways = []
    if url:
        ways.append(f"put {url} into {URL_CACHE.expanduser()}")
    if repo:
        ways.append(
            f"put {filename} and open_clip_config.json of {hub.ENDPOINT}/{repo} into a folder and set "
            f"model.pretrained=FOLDER/{filename} (the hub's cache {hub.HF_HUB_CACHE} has no {repo})"
        )
    return ", or ".join(ways) or "give a weight file as model.pretrained"


def _ask_hub(repo: str, filenames: tuple[str, ...]) -> str | None:
    """Whether the hub answers for one of the files: None, or why not, after CONNECT_SECONDS at the
    latest.

    In a thread, since looking up its address may hang beyond the timeout of a request."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    refusals: list[str | None] = []
    client_errors: Any = HfHubHTTPError.__bases__  # of whichever HTTP library this version uses

    def ask() -> None:
        for filename in filenames:
            try:
                huggingface_hub.get_hf_file_metadata(
                    huggingface_hub.hf_hub_url(repo, filename), timeout=CONNECT_SECONDS
                )
            except EntryNotFoundError:
                continue
            except (OSError, ValueError, *client_errors) as error:
                refusals.append(one_line(error))
            else:
                refusals.append(None)
            return
        refusals.append(f"{repo} has none of {', '.join(filenames)}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT_SECONDS)
    return refusals[0] if refusals else f"no answer within {CONNECT_SECONDS:g} s"
