"""The synthetic pictures that crops are cut from: drawn once, then kept in a cache."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.files import file_sha256, make_folder
from tudsr_train.data.dead_leaves import SyntheticImages


def synthetic_pool(
    count: int, size: int, seed: int, cache: str, workers: int | None = None
) -> NDArray[np.uint8]:
    """Draw the pool, or map it from the folder `cache`; uint8 (count, size, size, 3), read-only."""
    source = file_sha256(Path(__file__).with_name("dead_leaves.py"))
    parameters = {"count": count, "size": size, "seed": seed}
    key = hashlib.sha256(json.dumps([parameters, source]).encode()).hexdigest()[:16]
    path = Path(cache).expanduser() / f"pool-{key}.npy"
    if not path.is_file():
        make_folder(path.parent)
        pool = np.empty((count, size, size, 3), np.uint8)
        chunks = np.array_split(np.arange(count), max(1, count // 16))
        draw = functools.partial(_draw, size, seed)
        # spawned, not forked: the parent may already run torch's threads
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), context) as executor:
            for chunk, pictures in zip(chunks, executor.map(draw, chunks), strict=True):
                pool[chunk] = pictures
        with atomic_write(path) as file:
            np.save(file, pool)
    return np.load(path, mmap_mode="r")


@functools.lru_cache(maxsize=1)
def _images(size: int, seed: int) -> SyntheticImages:
    return SyntheticImages(size, seed)


def _draw(size: int, seed: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    images = _images(size, seed)
    return np.stack([(images[int(i)] * 255 + 0.5).astype(np.uint8) for i in numbers])
