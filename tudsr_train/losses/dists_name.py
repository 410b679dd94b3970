"""What a DISTS by some VGG16 is called: by its own name alone where that is the one it was made for."""

from __future__ import annotations

from pathlib import Path

from tudsr_runtime.files import file_sha256

TORCHVISION_VGG16 = "397923af"
"""How the SHA-256 of torchvision's vgg16-397923af.pth begins."""
HUB_VGG16 = "timm/vgg16.tv_in1k"
"""The same weights, republished."""


def dists_name(vgg16: str) -> str:
    """`DISTS`, or `dists[NAME]` for a VGG16 with other channels, by its file's name: vgg16_hed.* is `hed`."""
    path = Path(vgg16).expanduser()
    if vgg16 == HUB_VGG16 or (path.is_file() and file_sha256(path).startswith(TORCHVISION_VGG16)):
        return "DISTS"
    return f"dists[{path.stem.removeprefix('vgg16').strip('-_') or 'vgg16'}]"
