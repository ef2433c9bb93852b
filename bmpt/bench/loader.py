"""`bmpt bench loader`: compare the training loader with the limit of decoding and other loaders.

All contenders read the same samples of one pool in one run: T = 8 frames at 224 px, from the page
cache. A contender without loader processes is compared with one core, one with two processes with
two cores. A contender's name is the name of the loader and its number of loader processes:

    plain     decode, crop and resize alone: a loop over bytes in memory that calls the libraries
              with their defaults
    limit     the same loop, without new memory for any frame or clip
    ours      batches of uint8 from the loader of this project
    stock     webdataset over the same tars, Pillow, float batches
    folders   one folder of JPEG files per video, Pillow, float batches, as in BIKE
    decord    the original videos, as in ViFi-CLIP and BDC-CLIP
    remote    ours, from the same pool in a bucket, without a cache
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, islice
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
from shards.sampling.crops import Crop, choose_crop, cut_and_resize, resized
from shards.sampling.sample_rng import sample_rng
from shards.storage.open import LocalStore
from shards.stream.settings import StreamSettings

if TYPE_CHECKING:
    import torch

FRAMES, SIZE_PX, BATCH = 8, 224, 16
_NUM_WORKERS = 2
# The plain loop and the limit hold the bytes of this many clips in memory.
_HELD_CLIPS = 64

# Starts a loader and yields the number of clips of each batch, without an end.
Contender = Callable[[], Iterator[int]]
# The same for a number of loader processes.
Stream = Callable[[int], Iterator[int]]


@dataclass(frozen=True)
class LoaderBenchmark:
    """The measurements of one run of the benchmark."""

    samples: int
    """Samples of the manifest."""

    repeats: int
    """Measurements per contender."""

    cores: int
    """CPU cores of the machine."""

    rates: dict[str, float]
    """Clips per second of each contender, the best of all repeats."""

    first_batch_seconds: dict[str, float]
    """Seconds until the first batch of each contender, with the start of its loader processes."""

    def ratios(self) -> dict[str, float]:
        """Return the claimed numbers, which are ratios of rates and therefore portable."""
        # Two processes are compared with two cores, or with one where there is only one.
        rates, cores = self.rates, min(_NUM_WORKERS, self.cores)
        found = {
            "ours_0_of_plain": rates["ours_0"] / rates["plain"],
            "ours_2_of_plain_times_cores": rates["ours_2"] / rates["plain"] / cores,
            "ours_0_of_limit": rates["ours_0"] / rates["limit"],
            "ours_2_of_limit_times_cores": rates["ours_2"] / rates["limit"] / cores,
        }

        for name, rate in rates.items():
            # The name `stock_2` is the loader and its number of processes.
            loader, _, processes = name.rpartition("_")
            if loader in ("stock", "folders", "decord"):
                found[f"ours_{processes}_times_{name}"] = rates[f"ours_{processes}"] / rate
            elif loader.startswith("remote"):
                found[f"{name}_of_ours_{processes}"] = rate / rates[f"ours_{processes}"]

        return found

    def as_json(self) -> dict[str, Any]:
        """Return the measurements and the ratios as one JSON object."""
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
    """Measure the training stream of a manifest with every contender.

    Args:
        uri: a pool in a local folder.
        manifest_name: the manifest to stream.
        videos: folder of the pool's original videos; None leaves decord out.
        remote: the same pool in a bucket; None leaves it out.
        repeats: measurements per contender; the best counts.
        progress: shows the measurements that are done.
        seconds: duration of one measurement.

    Raises:
        ConfigError: if the pool is not a folder or the manifest has fewer than 16 samples.
        StorageError: if a sample cannot be read.
    """
    pool = open_pool(uri)
    manifest = pool.manifest(manifest_name)
    if not isinstance(pool.store, LocalStore) or len(manifest) < BATCH:
        raise ConfigError(
            f"{uri}: the benchmark needs a folder and a manifest of at least {BATCH} samples"
        )

    remote_stream = None
    if remote is not None:
        remote_pool = open_pool(remote)
        remote_stream = partial(our_stream, remote_pool, remote_pool.manifest(manifest_name))

    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(pool, pool.store, manifest, Path(folder), videos, remote_stream)
        rates = dict.fromkeys(contenders, 0.0)
        first = dict.fromkeys(contenders, float("inf"))

        # All contenders once per repeat, so that a slow minute of the machine meets each of them.
        for repeat in range(repeats):
            for number, (name, contender) in enumerate(contenders.items(), start=1):
                first_seconds, rate = measure(contender, seconds)
                rates[name], first[name] = max(rates[name], rate), min(first[name], first_seconds)
                done = repeat * len(contenders) + number
                progress.update("measure", done, repeats * len(contenders))

    return LoaderBenchmark(len(manifest), repeats, os.cpu_count() or 1, rates, first)


def measure(contender: Contender, seconds: float) -> tuple[float, float]:
    """Measure one contender for about `seconds`.

    Returns:
        Seconds until its first batch, and clips per second after its third batch.
    """
    started = time.perf_counter()
    batch_sizes = contender()
    next(batch_sizes)
    first_seconds = time.perf_counter() - started

    # Two more batches fill the queues of the loader processes.
    for _ in islice(batch_sizes, 2):
        pass

    started, num_clips = time.perf_counter(), 0
    for batch_size in batch_sizes:
        num_clips += batch_size
        if time.perf_counter() - started > seconds:
            break

    return first_seconds, num_clips / (time.perf_counter() - started)


def our_stream(
    pool: Pool, manifest: Manifest, num_workers: int, reading: ReadSettings | None = None
) -> Iterator[int]:
    """Stream a manifest with the loader of this project, one epoch after another without an end.

    Args:
        pool: the pool to read.
        manifest: the manifest to stream.
        num_workers: loader processes; 0 reads in this process.
        reading: how frames are fetched; None for the defaults.

    Yields:
        The number of clips of each batch.

    Raises:
        StorageError: if a sample cannot be read.
    """
    clip = ClipSettings(frames=FRAMES, size_px=SIZE_PX)
    settings = StreamSettings(
        batch_size=BATCH, seed=0, num_workers=num_workers, reading=reading or ReadSettings()
    )
    loader = build_train_loader(pool, manifest, clip, settings)

    while True:
        for batch in loader:
            # A placeholder costs no decoding and would raise the rate.
            if any(batch.clips.failures):
                raise StorageError(next(filter(None, batch.clips.failures)))
            yield len(batch.clips.keys)


def _contenders(
    pool: Pool,
    store: LocalStore,
    manifest: Manifest,
    folder: Path,
    videos: Path | None,
    remote_stream: Stream | None,
) -> dict[str, Contender]:
    """Return all contenders by name, in the order of measurement; `folder` takes JPEG files."""
    contenders: dict[str, Contender] = {
        "plain": partial(_plain_loop, pool, manifest),
        "limit": partial(_limit_loop, pool, manifest),
    }
    contenders |= _with_and_without_processes("ours", partial(our_stream, pool, manifest))

    if remote_stream is not None:
        contenders |= _with_and_without_processes("remote", remote_stream)

    contenders |= _with_and_without_processes("stock", partial(_stock_stream, store))

    folders = _unpack_frames(pool, manifest, folder)
    folder_stream = partial(_map_style_stream, folders, _clip_of_folder)
    contenders |= _with_and_without_processes("folders", folder_stream)

    if videos is not None:
        paths = _video_paths(pool, manifest, videos)
        video_stream = partial(_map_style_stream, paths, _clip_of_video)
        contenders |= _with_and_without_processes("decord", video_stream)

    return contenders


def _with_and_without_processes(name: str, stream: Stream) -> dict[str, Contender]:
    """Return a stream without and with loader processes, under the names `<name>_<processes>`."""
    return {
        f"{name}_{num_workers}": partial(stream, num_workers) for num_workers in (0, _NUM_WORKERS)
    }


def _held_clips(pool: Pool, manifest: Manifest) -> list[tuple[str, list[bytes]]]:
    """Return the key and the JPEG bytes of the first clips of a manifest."""
    held = []

    for index in range(min(len(manifest), _HELD_CLIPS)):
        row = manifest.row(index)
        blocks = read_frame_bytes(pool.store, row, _spread(len(row["frame_size"])))
        held.append((row["key"], blocks))

    return held


def _draw_crop(height: int, width: int, epoch: int, key: str) -> Crop:
    """Draw the crop that training draws for this clip in this epoch."""
    rng = sample_rng(0, epoch, key)
    return choose_crop("multi_scale", height, width, flip=True, rng=rng)


def _plain_loop(pool: Pool, manifest: Manifest) -> Iterator[int]:
    """Decode, crop and resize clips in memory with the libraries' defaults."""
    held = _held_clips(pool, manifest)

    for epoch in count():
        for key, blocks in held:
            images = [jpeg.decode(block, where=key) for block in blocks]
            height, width = images[0].shape[:2]
            resized(images, _draw_crop(height, width, epoch, key), size_px=SIZE_PX)
            yield 1


def _limit_loop(pool: Pool, manifest: Manifest) -> Iterator[int]:
    """Decode, crop and resize clips in memory into buffers that are reused."""
    import torch

    held = _held_clips(pool, manifest)

    # Both buffers are kept: allocating memory is not a part of the limit.
    frames_THWC = np.empty((FRAMES, 0, 0, 3), np.uint8)
    clip_THWC = torch.empty((FRAMES, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)

    for epoch in count():
        for key, blocks in held:
            height, width = jpeg.size_of(blocks[0], where=key)
            if frames_THWC.shape[1:3] != (height, width):
                frames_THWC = np.empty((FRAMES, height, width, 3), np.uint8)

            for frame_HWC, block in zip(frames_THWC, blocks, strict=True):
                jpeg.decode(block, where=key, into=frame_HWC)

            crop = _draw_crop(height, width, epoch, key)
            cut_and_resize(frames_THWC, crop, out_TCHW=clip_THWC.permute(0, 3, 1, 2))
            yield 1


def _stock_stream(store: LocalStore, num_workers: int) -> Iterator[int]:
    """Stream with webdataset as its documentation shows: whole samples, Pillow, float batches."""
    import webdataset

    tars = sorted(map(str, (store.root / "shards").glob("*.tar")))
    # `resampled` repeats the tars without an end.
    dataset = webdataset.WebDataset(tars, shardshuffle=False, resampled=True, empty_check=False)
    yield from _batch_sizes(dataset.map(_stock_clip), num_workers)


def _stock_clip(sample: dict[str, Any]) -> torch.Tensor:
    names = sorted(name for name in sample if name.endswith(".jpg"))
    return _as_floats([io.BytesIO(sample[names[index]]) for index in _spread(len(names))])


def _map_style_stream(
    paths: list[Path], load: Callable[[Path], torch.Tensor], num_workers: int
) -> Iterator[int]:
    """Load one file or folder per clip, in order, again and again."""
    yield from _batch_sizes(_Clips(paths, load), num_workers)


@dataclass(frozen=True)
class _Clips:
    """A map-style dataset that repeats its clips."""

    # One file or folder per clip.
    paths: list[Path]
    # Loads the clip of a path.
    load: Callable[[Path], torch.Tensor]

    def __len__(self) -> int:
        # More clips than any measurement reads.
        return 1_000_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.load(self.paths[index % len(self.paths)])


def _batch_sizes(dataset: Any, num_workers: int) -> Iterator[int]:
    """Yield the number of clips of each batch of PyTorch's DataLoader."""
    import torch

    loader: Iterable[Any] = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=num_workers
    )
    for frames in loader:
        yield len(frames)


def _unpack_frames(pool: Pool, manifest: Manifest, folder: Path) -> list[Path]:
    """Write one folder of JPEG files per sample below `folder` and return these folders."""
    folders = []

    for index in range(len(manifest)):
        row = manifest.row(index)
        folders.append(folder / f"{index:06d}")
        folders[-1].mkdir()

        positions = range(len(row["frame_size"]))
        blocks = read_frame_bytes(pool.store, row, positions)
        for number, block in enumerate(blocks, start=1):
            (folders[-1] / f"img_{number:05d}.jpg").write_bytes(block)

    return folders


def _clip_of_folder(folder: Path) -> torch.Tensor:
    num_frames = sum(1 for _ in folder.iterdir())
    return _as_floats([folder / f"img_{index + 1:05d}.jpg" for index in _spread(num_frames)])


def _as_floats(files: list[Any]) -> torch.Tensor:
    """Return the centre square of each JPEG by Pillow: float32 [T, 3, SIZE_PX, SIZE_PX]."""
    import torch
    from PIL import Image

    images = [Image.open(file).convert("RGB") for file in files]
    side = min(images[0].size)
    left, top = (images[0].width - side) // 2, (images[0].height - side) // 2

    frames = []
    for image in images:
        square = image.crop((left, top, left + side, top + side)).resize((SIZE_PX, SIZE_PX))
        frames.append(torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255)

    return torch.stack(frames)


def _video_paths(pool: Pool, manifest: Manifest, videos: Path) -> list[Path]:
    """Return the path of the original video of each sample of a manifest."""
    samples = pool.samples()
    path_of = dict(zip(samples["key"].to_pylist(), samples["source_path"].to_pylist(), strict=True))
    return [videos / path_of[key] for key in manifest.table["key"].to_pylist()]


def _clip_of_video(path: Path) -> torch.Tensor:
    """Load a clip with decord, which seeks in the video file for each frame."""
    import decord

    # One thread per process, since rates are compared per core.
    reader = decord.VideoReader(str(path), num_threads=1)
    images = list(reader.get_batch(_spread(len(reader))).asnumpy())
    height, width = images[0].shape[:2]
    return resized(images, choose_crop("center", height, width), size_px=SIZE_PX)


def _spread(num_frames: int) -> list[int]:
    """Return FRAMES positions spread evenly from the first frame to the last."""
    return np.linspace(0, num_frames - 1, FRAMES).astype(int).tolist()
