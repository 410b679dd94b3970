"""The kernels that TensorRT for RTX compiles on the GPU when an engine first runs, kept for the next time.

They are executable code too: the file begins with the SHA-256 of what follows.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.engines.tensorrt.library import Library
from tudsr_runtime.errors import OutputError
from tudsr_runtime.files import cache_folder, make_folder

DIGEST = hashlib.sha256().digest_size


class KernelCache:
    """What one library has compiled for one kind of card; TensorRT itself compiles nothing when it runs."""

    def __init__(self, library: Library, card: str) -> None:
        self._path = cache_folder() / "kernels" / f"{library.name}-{library.version}-{card}.cache"
        self._cache: Any = None
        self._read = b""

    def attach(self, config: Any) -> None:
        """Let the contexts that are made with `config` use these kernels, and add theirs."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._read = self._load()
            # TensorRT for RTX refuses what another version, GPU or driver compiled, and compiles again.
            if self._read and not self._cache.deserialize(self._read):
                self._read = b""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what is new. A cache that cannot be written costs time at the next start, nothing else."""
        if self._cache is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        self._cache = None
        if data == self._read:
            return
        with suppress(OutputError, OSError):
            make_folder(self._path.parent, private=True)
            with atomic_write(self._path) as file:
                file.write(hashlib.sha256(data).digest() + data)

    def _load(self) -> bytes:
        try:
            raw = self._path.read_bytes()
        except OSError:
            return b""
        return raw[DIGEST:] if hashlib.sha256(raw[DIGEST:]).digest() == raw[:DIGEST] else b""
