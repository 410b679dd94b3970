"""Which backbones there are: a base is recognised by the class name in its network's config."""

from __future__ import annotations

from pathlib import Path

from tudsr_runtime.errors import BundleError
from tudsr_train.backbones.backbone import Backbone
from tudsr_train.backbones.flux import Flux
from tudsr_train.backbones.sana import Sana
from tudsr_train.backbones.sd3 import SD3
from tudsr_train.backbones.unet import UNet
from tudsr_train.foreign import misread, read_config

BACKBONES: dict[str, Backbone] = {one.name: one for one in (UNet(), SD3(), Sana(), Flux())}
FOLDERS = ("unet", "transformer")


def find_backbone(base: str | Path, folder: Path) -> Backbone:
    """The backbone of the base in `folder`, which people call `base`.

    Raises BundleError (exit 5) where there is none, or none that is known; it names those that are.
    """
    place = next((one for one in FOLDERS if (folder / one / "config.json").is_file()), None)
    if place is None:
        raise BundleError(
            f"{base}: no diffusers base here (unet/config.json is missing, and transformer/config.json too)",
            hint="give a folder that holds unet/ or transformer/, vae/ and scheduler/, such as Stable "
            "Diffusion 2.1-base",
        )
    with misread(f"{base}: the base cannot be read"):
        name = read_config(folder / place / "config.json").get("_class_name", UNet.name)
    if name not in BACKBONES or BACKBONES[name].folder != place:
        raise BundleError(
            f"{base}: its {place}/ is a {str(name)[:80]}, which no one-step restorer can be made of here; "
            f"known are {', '.join(BACKBONES)}",
            hint="a base of one of these classes: Stable Diffusion 1.5 to 3.5, Sana, FLUX.1",
        )
    return BACKBONES[name]
