"""`bmpt bench loader`: clips a second beside the limit of decoding and beside what others do, in
one run.

All sides read the same samples of one pool, T = 8 frames to 224 px, from the page cache. Sides
without processes are compared with one core, those with two with both. A side is the name of who
reads and its number of loader processes:

    plain     decoding, cutting and resizing alone: a loop over bytes in memory that calls the
    libraries as they come limit     the same without new memory for any frame or clip
    ours      batches of uint8 in this process
    stock     webdataset over the same tars, Pillow, float batches
    folders   a folder of JPEG files a video, Pillow, float batches: BIKE
    decord    the raw videos: ViFi-CLIP, BDC-CLIP
    remote    ours, from the same pool in a bucket, without a cache"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import ConfigError, StorageError
from shards.fetching.frames import ReadSettings
from shards.format import jpeg
from shards.loader import build_train_loader
from shards.progress import NullProgress, Progress
from shards.reader import Manifest, Pool, open_pool, read_frame_bytes
from shards.sampling.clip_settings import ClipSettings
from shards.sampling.crops import choose_crop, cut_and_resize, resized
from shards.sampling.sample_rng import sample_rng
from shards.storage.open import LocalStore
from shards.stream.settings import StreamSettings

if TYPE_CHECKING:
    import torch

FRAMES, SIZE_PX, BATCH = 8, 224, 16
_NUM_WORKERS = 2

Side = Callable[[], Iterator[int]]


@dataclass(frozen=True)
class LoaderBenchmark:
    """rates: clips a second of each side, the best of `repeats`; first_batch_seconds: from the call
    to its first batch, the start of loader processes included"""

    samples: int
    repeats: int
    cores: int
    rates: dict[str, float]
    first_batch_seconds: dict[str, float]

    def ratios(self) -> dict[str, float]:
        """What is claimed: shares and multiples, not rates."""
        rates, both = self.rates, min(_NUM_WORKERS, self.cores)
        found = {
            "ours_0_of_plain": rates["ours_0"] / rates["plain"],
            "ours_2_of_plain_times_cores": rates["ours_2"] / rates["plain"] / both,
            "ours_0_of_limit": rates["ours_0"] / rates["limit"],
            "ours_2_of_limit_times_cores": rates["ours_2"] / rates["limit"] / both,
        }
        for name, rate in rates.items():
            who, _, processes = name.rpartition("_")
            if who in ("stock", "folders", "decord"):
                found[f"ours_{processes}_times_{name}"] = rates[f"ours_{processes}"] / rate
            elif who.startswith("remote"):
                found[f"{name}_of_ours_{processes}"] = rate / rates[f"ours_{processes}"]
        return found

    def as_json(self) -> dict[str, Any]:
        """Measurements and ratios."""
        return {**asdict(self), "ratios": self.ratios()}


def bench_loader(
    uri: str,
    manifest_name: str,
    *,
    videos: Path | None,
    remote: str | None,
    repeats: int,
    progress: Progress = NullProgress(),
    seconds: float = 5.0,
) -> LoaderBenchmark:
    """Measure the training stream of a manifest; `seconds` for each side and repeat.

    Args: videos: where the pool's videos lie, for decord; remote: the same pool in a bucket.
    Raises: ConfigError for a pool that is no folder, or a manifest with fewer than 16 samples."""
    pool = open_pool(uri)
    manifest = pool.manifest(manifest_name)
    if not isinstance(pool.store, LocalStore) or len(manifest) < BATCH:
        raise ConfigError(
            f"{uri}: the benchmark needs a folder and a manifest of at least {BATCH} samples"
        )
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "plain": partial(_plain_loop, pool, manifest),
            "limit": partial(_bare_loop, pool, manifest),
        }
        sides |= _with_and_without_processes("ours", partial(our_stream, pool, manifest))
        if remote is not None:
            there = open_pool(remote)
            sides |= _with_and_without_processes(
                "remote", partial(our_stream, there, there.manifest(manifest_name))
            )
        sides |= _with_and_without_processes("stock", partial(_stock, pool.store))
        frames = _unpack_frames(pool, manifest, Path(folder))
        sides |= _with_and_without_processes(
            "folders", partial(_each_clip, frames, _clip_of_folder)
        )
        if videos is not None:
            paths = _video_paths(pool, manifest, videos)
            sides |= _with_and_without_processes(
                "decord", partial(_each_clip, paths, _clip_of_video)
            )
        rates, first = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, float("inf"))
        for repeat in range(repeats):
            for number, (name, side) in enumerate(sides.items(), start=1):
                first_seconds, rate = measure(side, seconds)
                rates[name], first[name] = max(rates[name], rate), min(first[name], first_seconds)
                progress.update("measure", repeat * len(sides) + number, repeats * len(sides))
    return LoaderBenchmark(len(manifest), repeats, os.cpu_count() or 1, rates, first)


def measure(side: Side, seconds: float) -> tuple[float, float]:
    """Seconds until the first batch, and clips a second once two more have come."""
    started = time.perf_counter()
    clips = side()
    next(clips)
    first_seconds = time.perf_counter() - started
    for _ in islice(clips, 2):
        pass
    started, count = time.perf_counter(), 0
    for number in clips:
        count += number
        if time.perf_counter() - started > seconds:
            break
    return first_seconds, count / (time.perf_counter() - started)


def _with_and_without_processes(name: str, side: Callable[[int], Iterator[int]]) -> dict[str, Side]:
    return {
        f"{name}_{num_workers}": partial(side, num_workers) for num_workers in (0, _NUM_WORKERS)
    }


def _held_clips(pool: Pool, manifest: Manifest) -> list[tuple[str, list[bytes]]]:
    rows = [manifest.row(index) for index in range(min(len(manifest), 64))]
    return [
        (row["key"], read_frame_bytes(pool.store, row, _spread(len(row["frame_size"]))))
        for row in rows
    ]


def _plain_loop(pool: Pool, manifest: Manifest) -> Iterator[int]:
    held, epoch = _held_clips(pool, manifest), 0
    while True:
        for key, blocks in held:
            images = [jpeg.decode(block, where=key) for block in blocks]
            height, width = images[0].shape[:2]
            crop = choose_crop(
                "multi_scale", height, width, flip=True, rng=sample_rng(0, epoch, key)
            )
            resized(images, crop, size_px=SIZE_PX)
            yield 1
        epoch += 1


def _bare_loop(pool: Pool, manifest: Manifest) -> Iterator[int]:
    import torch

    held = _held_clips(pool, manifest)
    frames_THWC = np.empty(
        (FRAMES, 0, 0, 3), np.uint8
    )  # kept, as the output is: new memory is no part of a limit
    clip_THWC = torch.empty((FRAMES, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)
    epoch = 0
    while True:
        for key, blocks in held:
            height, width = jpeg.size_of(blocks[0], where=key)
            if frames_THWC.shape[1:3] != (height, width):
                frames_THWC = np.empty((FRAMES, height, width, 3), np.uint8)
            for frame_HWC, block in zip(frames_THWC, blocks, strict=True):
                jpeg.decode(block, where=key, into=frame_HWC)
            crop = choose_crop(
                "multi_scale", height, width, flip=True, rng=sample_rng(0, epoch, key)
            )
            cut_and_resize(frames_THWC, crop, out_TCHW=clip_THWC.permute(0, 3, 1, 2))
            yield 1
        epoch += 1


def our_stream(
    pool: Pool, manifest: Manifest, num_workers: int, reading: ReadSettings | None = None
) -> Iterator[int]:
    """Batches without end: how many clips each has."""
    clip = ClipSettings(frames=FRAMES, size_px=SIZE_PX)
    settings = StreamSettings(
        batch_size=BATCH, seed=0, num_workers=num_workers, reading=reading or ReadSettings()
    )
    loader = build_train_loader(pool, manifest, clip, settings)
    while True:
        for batch in loader:
            if any(batch.clips.failures):
                raise StorageError(next(filter(None, batch.clips.failures)))
            yield len(batch.clips.keys)


def _stock(store: LocalStore, num_workers: int) -> Iterator[int]:
    """webdataset as its documentation shows it: whole samples, Pillow, float batches."""
    import webdataset

    tars = sorted(str(path) for path in (store.root / "shards").glob("*.tar"))
    dataset = webdataset.WebDataset(
        tars, shardshuffle=False, resampled=True, empty_check=False
    ).map(_stock_clip)
    yield from _batch_sizes(dataset, num_workers)


def _stock_clip(sample: dict[str, Any]) -> torch.Tensor:
    names = sorted(name for name in sample if name.endswith(".jpg"))
    return _as_floats([io.BytesIO(sample[names[index]]) for index in _spread(len(names))])


def _each_clip(
    paths: list[Path], load: Callable[[Path], torch.Tensor], num_workers: int
) -> Iterator[int]:
    """A file or folder a clip, one after the other, again and again."""
    yield from _batch_sizes(_Clips(paths, load), num_workers)


@dataclass(frozen=True)
class _Clips:
    """A map-style dataset without an end."""

    paths: list[Path]
    load: Callable[[Path], torch.Tensor]

    def __len__(self) -> int:
        return 1_000_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.load(self.paths[index % len(self.paths)])


def _batch_sizes(dataset: Any, num_workers: int) -> Iterator[int]:
    import torch

    loader: Iterable[Any] = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=num_workers
    )
    for frames in loader:
        yield len(frames)


def _unpack_frames(pool: Pool, manifest: Manifest, folder: Path) -> list[Path]:
    """A folder of JPEG files for each sample."""
    folders = []
    for index in range(len(manifest)):
        row = manifest.row(index)
        folders.append(folder / f"{index:06d}")
        folders[-1].mkdir()
        positions = range(len(row["frame_size"]))
        for position, block in zip(
            positions, read_frame_bytes(pool.store, row, positions), strict=True
        ):
            (folders[-1] / f"img_{position + 1:05d}.jpg").write_bytes(block)
    return folders


def _clip_of_folder(folder: Path) -> torch.Tensor:
    count = sum(1 for _ in folder.iterdir())
    return _as_floats([folder / f"img_{index + 1:05d}.jpg" for index in _spread(count)])


def _as_floats(files: list[Any]) -> torch.Tensor:
    """The centre square of each JPEG by Pillow: float32 [T, 3, SIZE_PX, SIZE_PX]."""
    import torch
    from PIL import Image

    images = [Image.open(file).convert("RGB") for file in files]
    side = min(images[0].size)
    left, top = (images[0].width - side) // 2, (images[0].height - side) // 2
    squares = [
        image.crop((left, top, left + side, top + side)).resize((SIZE_PX, SIZE_PX))
        for image in images
    ]
    return torch.stack(
        [torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255 for square in squares]
    )


def _video_paths(pool: Pool, manifest: Manifest, videos: Path) -> list[Path]:
    samples = pool.samples()
    path_of = dict(zip(samples["key"].to_pylist(), samples["source_path"].to_pylist(), strict=True))
    return [videos / path_of[key] for key in manifest.table["key"].to_pylist()]


def _clip_of_video(path: Path) -> torch.Tensor:
    """Seek in the video file for each frame."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    images = list(reader.get_batch(_spread(len(reader))).asnumpy())
    height, width = images[0].shape[:2]
    return resized(images, choose_crop("center", height, width), size_px=SIZE_PX)


def _spread(count: int) -> list[int]:
    """FRAMES positions from the first to the last."""
    return np.linspace(0, count - 1, FRAMES).astype(int).tolist()
