"""Enlarge a folder by Ray Data, on one machine or a cluster: paths are rows, each actor holds an Upscaler.

    pip install "ray[data]" fsspec                       # beside ".[cpu]", on every machine
    python examples/ray_folder.py photos large --scale 4 --actors 2 --threads 2
    python examples/ray_folder.py s3://bucket/photos s3://bucket/large --address auto   # with s3fs

Pictures are read and written through fsspec, so that a folder may be on any file system that it knows. A
result appears whole or not at all; one that is there is skipped. What cannot be enlarged is said, and
costs that picture alone. Pixels and colour profile are kept, other metadata is not; `tudsr upscale
--shard` keeps it, and needs no Ray.

Ray counts CPUs, and starts an actor only where as many are free as it asks for; where all are taken by
actors, whatever else a pipeline needs waits for ever. So paths are listed here, without a task that reads,
and an actor asks for less than a CPU: how many run, and on how many threads, say --actors and --threads.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import fsspec
import ray
from PIL import Image, UnidentifiedImageError

from tudsr_runtime import TudsrError, Upscaler, open_bundle
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX

ACTOR_CPUS = 0.5
"""What an actor asks Ray for. A machine of N CPUs takes 2 N actors; --actors is to be what it can run."""


def pictures(folder: str, output: str) -> Iterator[dict[str, str]]:
    """A row for each picture below `folder`: where it is, and where its result is to be, of its format."""
    files, root = fsspec.core.url_to_fs(folder)
    others, target = fsspec.core.url_to_fs(output)
    for path in sorted(files.find(root)):
        below = PurePosixPath(path).relative_to(PurePosixPath(root))
        inside = PurePosixPath(path).is_relative_to(PurePosixPath(target))
        if below.suffix.lower() in FORMAT_OF_SUFFIX and not inside:
            result = others.unstrip_protocol(f"{target.rstrip('/')}/{below}")
            yield {"path": files.unstrip_protocol(path), "result": result}


class Enlarge:
    """An actor: one Upscaler, which it keeps."""

    def __init__(self, scale: float, bundle: str, threads: int) -> None:
        self._scale = scale
        self._upscaler = Upscaler(bundle, threads=threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with what became of it: `status` is ok, skipped or failed, `said` why."""
        files, target = fsspec.core.url_to_fs(row["result"])
        if files.exists(target):
            return {**row, "status": "skipped", "said": "it is there"}
        try:
            encoded = self._enlarged(row["path"])
            write_whole(files, target, encoded)
        except UnidentifiedImageError:
            return {**row, "status": "failed", "said": "not a picture, or a damaged one"}
        except (TudsrError, OSError, ValueError) as error:
            return {**row, "status": "failed", "said": str(error)}
        return {**row, "status": "ok", "said": ""}

    def _enlarged(self, path: str) -> bytes:
        with fsspec.open(path, "rb") as file, Image.open(io.BytesIO(file.read())) as image:
            larger = self._upscaler.upscale(image, self._scale)
            kind = image.format
        encoded = io.BytesIO()
        larger.save(encoded, kind, icc_profile=larger.info.get("icc_profile"), quality=95)
        return encoded.getvalue()


def write_whole(files: Any, target: str, content: bytes) -> None:
    """Write a file under another name, and rename it. Raises OSError."""
    folder, _, name = target.rpartition("/")
    partial = f"{folder}/.{name}.partial"
    files.makedirs(folder, exist_ok=True)
    try:
        files.pipe_file(partial, content)
        files.mv(partial, target)
    except BaseException:
        if files.exists(partial):
            files.rm_file(partial)
        raise


def enlarge(
    rows: list[dict[str, str]], actors: int, scale: float, bundle: str, threads: int
) -> Iterator[Any]:
    """The rows as they are done, in no order; Ray must have been started."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    # A block a row, so that a row that is done is told, and actors share what is left.
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    settings = {"scale": scale, "bundle": bundle, "threads": threads}
    pool = ray.data.ActorPoolStrategy(size=min(actors, len(rows)))
    done = data.map(Enlarge, fn_constructor_kwargs=settings, compute=pool, num_cpus=ACTOR_CPUS)
    yield from done.iter_rows()


def main() -> int:
    """Returns 0, 3 where there is no picture, 4 where some failed, or the exit code of a bundle's error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a path, or an address that fsspec knows")
    parser.add_argument("output")
    parser.add_argument("--scale", type=float, default=4)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each actor")
    parser.add_argument("--address", help="of a cluster; auto for the one of this machine")
    parser.add_argument("--cpus", type=int, help="that Ray may count on, where it is started here")
    args = parser.parse_args()
    rows = list(pictures(args.folder, args.output))
    if not rows:
        print(f"error: {args.folder}: there is no picture in it", file=sys.stderr)
        return 3
    try:
        open_bundle(args.bundle, verify=False)
    except TudsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    ray.init(args.address, num_cpus=args.cpus, include_dashboard=None if args.address else False)
    failed = 0
    for row in enlarge(rows, args.actors, args.scale, args.bundle, args.threads):
        failed += row["status"] == "failed"
        print(f"{row['status']}: {row['path']}" + (f": {row['said']}" if row["said"] else ""), flush=True)
    ray.shutdown()
    return 4 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
