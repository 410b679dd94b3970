"""Bundles in huggingface_hub's own cache, whose files are links: not every engine library follows those.

models--OWNER--NAME/snapshots/<commit>/unet_stage1/model.onnx -> ../../../blobs/<hash>
"""

from __future__ import annotations

from pathlib import Path

from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.errors import BundleError
from tudsr_runtime.files import cache_folder, file_sha256, link_or_copy, make_folder


def is_snapshot(folder: Path) -> bool:
    """Whether the folder is one of that cache, with a link for its manifest."""
    return folder.resolve().parent.name == "snapshots" and (folder / "bundle.json").is_symlink()


def without_links(folder: Path) -> Path:
    """A folder of plain files with the same content, in tudsr's cache: the same files by another name where
    the file system allows it, else copies.

    Raises:
        BundleError: a link leads elsewhere than to the blobs of that cache. OutputError: cannot be written.
    """
    snapshot = folder.resolve()
    blobs = snapshot.parent.parent / "blobs"
    target = cache_folder() / "linked" / file_sha256(_blob(snapshot / "bundle.json", blobs))
    if target.is_dir():
        return target
    make_folder(target.parent)
    with atomic_dir(target) as made:
        for path in sorted(snapshot.rglob("*")):
            place = made / path.relative_to(snapshot)
            if path.is_dir() and not path.is_symlink():
                place.mkdir()
            else:
                link_or_copy(_blob(path, blobs), place)
    return target


def _blob(path: Path, blobs: Path) -> Path:
    found = path.resolve()
    if found.parent != blobs or not found.is_file():
        raise BundleError(f"{path} is a link to something else than a blob of the hub's cache")
    return found
