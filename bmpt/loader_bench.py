"""`bmpt bench loader`: clips a second beside the limit of decoding and beside what others do, in one run.

All sides read the same samples of one pool, T = 8 frames to 224 px, from the page cache. Sides without processes are
compared with one core, those with two with both."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shards import jpeg
from shards.crops import choose_crop, cut_and_resize
from shards.errors import ConfigError
from shards.loader import ClipSettings, build_train_loader
from shards.reader import Manifest, Pool, open_pool, read_frame_bytes
from shards.storage import LocalStore
from shards.stream import sample_rng

FRAMES, SIZE_PX, BATCH = 8, 224, 16
_NUM_WORKERS = 2


@dataclass(frozen=True)
class LoaderBenchmark:
    """Clips a second, the best of `repeats`.

    limit: decoding, cutting and resizing alone, bytes in memory, of one core
    ours_0, ours_2: batches of uint8 in this process, with 0 and 2 loader processes
    stock_0, stock_2: webdataset over the same tars, Pillow, float batches
    decord_0: the raw videos through decord in this process, None without them"""

    samples: int
    repeats: int
    cores: int
    limit: float
    ours_0: float
    ours_2: float
    stock_0: float
    stock_2: float
    decord_0: float | None

    def ratios(self) -> dict[str, float]:
        """What is claimed: shares and multiples, not rates."""
        both = self.limit * min(_NUM_WORKERS, self.cores)
        found = {
            "ours_0_of_limit": self.ours_0 / self.limit,
            "ours_2_of_limit_of_cores": self.ours_2 / both,
            "ours_2_times_stock_2": self.ours_2 / self.stock_2,
            "ours_0_times_stock_0": self.ours_0 / self.stock_0,
        }
        if self.decord_0 is not None:
            found["ours_0_times_decord_0"] = self.ours_0 / self.decord_0
        return found

    def as_json(self) -> dict[str, Any]:
        """Measurements and ratios."""
        return {**asdict(self), "ratios": self.ratios()}


def bench_loader(
    uri: str,
    manifest_name: str,
    *,
    videos: Path | None,
    repeats: int,
    progress: Callable[[int, int], None],
    seconds: float = 5.0,
) -> LoaderBenchmark:
    """Measure the training stream of a manifest; `seconds` for each side and repeat.

    Raises: ConfigError for a pool that is no folder, or a manifest with fewer than 16 samples."""
    pool = open_pool(uri)
    manifest = pool.manifest(manifest_name)
    store = pool.store
    if not isinstance(store, LocalStore) or len(manifest) < BATCH:
        raise ConfigError(f"{uri}: the benchmark needs a folder and a manifest of at least {BATCH} samples")
    sides: dict[str, Callable[[], Iterator[int]]] = {
        "limit": lambda: _bare_loop(pool, manifest),
        "ours_0": lambda: _ours(pool, manifest, 0),
        "ours_2": lambda: _ours(pool, manifest, _NUM_WORKERS),
        "stock_0": lambda: _stock(store, 0),
        "stock_2": lambda: _stock(store, _NUM_WORKERS),
    }
    if videos is not None:
        sides["decord_0"] = lambda: _decord(pool, videos)
    best = dict.fromkeys(sides, 0.0)
    done, total = 0, repeats * len(sides)
    for _ in range(repeats):
        for name, side in sides.items():
            best[name] = max(best[name], _rate(side(), seconds))
            progress(done := done + 1, total)
    return LoaderBenchmark(
        samples=len(manifest), repeats=repeats, cores=os.cpu_count() or 1, decord_0=best.pop("decord_0", None), **best
    )


def _rate(clips: Iterator[int], seconds: float) -> float:
    """Clips a second, once two batches have come; `clips` gives how many each step brought."""
    for _ in islice(clips, 2):
        pass
    started, count = time.perf_counter(), 0
    for number in clips:
        count += number
        if time.perf_counter() - started > seconds:
            break
    return count / (time.perf_counter() - started)


def _bare_loop(pool: Pool, manifest: Manifest) -> Iterator[int]:
    """The limit: nothing but decoding, cutting and resizing."""
    rows = [manifest.row(index) for index in range(min(len(manifest), 64))]
    held = []
    for row in rows:
        positions = np.linspace(0, len(row["frame_size"]) - 1, FRAMES).astype(int).tolist()
        held.append((row["key"], read_frame_bytes(pool.store, row, positions)))
    epoch = 0
    while True:
        for key, blocks in held:
            images = [jpeg.decode(block, where=key) for block in blocks]
            height, width = images[0].shape[:2]
            crop = choose_crop("multi_scale", height, width, flip=True, rng=sample_rng(0, epoch, key))
            cut_and_resize(images, crop, size_px=SIZE_PX)
            yield 1
        epoch += 1


def _ours(pool: Pool, manifest: Manifest, num_workers: int) -> Iterator[int]:
    clip = ClipSettings(frames=FRAMES, size_px=SIZE_PX)
    loader = build_train_loader(pool, manifest, clip, batch_size=BATCH, accumulation=1, num_workers=num_workers, seed=0)
    while True:
        for batch in loader:
            yield len(batch.clips.keys)


def _stock(store: LocalStore, num_workers: int) -> Iterator[int]:
    """webdataset as its documentation shows it: whole samples, Pillow, float batches."""
    import torch
    import webdataset

    tars = sorted(str(path) for path in (store.root / "shards").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False, resampled=True, empty_check=False).map(_stock_clip)
    loader: Iterable[Any] = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=num_workers)
    for frames in loader:
        yield len(frames)


def _stock_clip(sample: dict[str, Any]) -> Any:
    import torch
    from PIL import Image

    names = sorted(name for name in sample if name.endswith(".jpg"))
    chosen = [names[index] for index in np.linspace(0, len(names) - 1, FRAMES).astype(int)]
    images = [Image.open(io.BytesIO(sample[name])).convert("RGB") for name in chosen]
    side = min(images[0].size)
    left, top = (images[0].width - side) // 2, (images[0].height - side) // 2
    squares = [image.crop((left, top, left + side, top + side)).resize((SIZE_PX, SIZE_PX)) for image in images]
    return torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255 for square in squares])


def _decord(pool: Pool, videos: Path) -> Iterator[int]:
    """What ViFi-CLIP and BDC-CLIP do: seek in the video file for each clip."""
    import decord

    paths = [videos / row for row in pool.samples()["source_path"].to_pylist() if row is not None]
    while True:
        for path in paths:
            reader = decord.VideoReader(str(path), num_threads=1)
            indices = np.linspace(0, len(reader) - 1, FRAMES).astype(int)
            images = list(reader.get_batch(indices).asnumpy())
            height, width = images[0].shape[:2]
            cut_and_resize(images, choose_crop("center", height, width), size_px=SIZE_PX)
            yield 1
