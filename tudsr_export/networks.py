"""Networks that restore and enlarge in one graph, such as Real-ESRGAN, read by spandrel.

spandrel knows 42 architectures by their weights alone. It asks for torchvision, which only its inpainting and
one of its face restorers use: where that is missing they get stand-ins, and everything that can be exported
works without it.

A checkpoint is a stranger's file. It is only ever read by PyTorch's loader of plain weights or by
safetensors, and is looked at before spandrel builds what it describes.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from tudsr_export.gates import require_finite
from tudsr_export.layouts import PICKLES, load_pickle, load_safetensors
from tudsr_runtime.errors import BundleError, DeviceError
from tudsr_runtime.files import file_sha256
from tudsr_train.foreign import misread

PURPOSES = ("SR", "Restoration")
MAX_FACTOR = 16
MOST_INDEX = 4096
"""Greatest number in a weight's name: spandrel builds as many layers as the names count."""
INSTALL_HINT = "pip install --no-deps spandrel einops"
"""Without torchvision, which spandrel names as a requirement; beside another build of PyTorch it breaks."""
KNOWN_HINT = "docs/rivals.md says what can be exported"
STAND_INS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


@dataclass(frozen=True)
class Network:
    """What a checkpoint holds: `module` makes a picture, (1, 3, h, w) in [-1, 1], `factor` times larger.

    It takes one unpadded whose edges are multiples of `multiple` px, `least` px at least. `reference`
    is spandrel's own way, which pads and clamps. `half`: whether its makers say that it computes in half.
    """

    origin: Path
    sha256: str
    module: nn.Module
    architecture: str
    tags: tuple[str, ...]
    factor: int
    multiple: int
    least: int
    half: bool
    reference: Callable[[Tensor], Tensor]
    note: str = ""
    """What a person should know before using it."""
    reader: str = "spandrel"
    """The library that reads it and computes the reference."""
    base: Mapping[str, str] | None = None
    """Name and hash of the base that it stands on."""

    @property
    def title(self) -> str:
        """The architecture with what spandrel says of its size."""
        return f"{self.architecture} ({', '.join(self.tags)})" if self.tags else self.architecture


class FromMinusOne(nn.Module):
    """A network for pictures in [0, 1] as one for pictures in [-1, 1]; not clamped.

    `call`: how the network is called for a picture, where a plain call gives more than that.
    """

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._call = network, call

    def forward(self, x_L: Tensor) -> Tensor:
        return self._call(self.network, x_L * 0.5 + 0.5) * 2 - 1


def read_network(origin: Path) -> Network:
    """Read a checkpoint of any architecture of spandrel's that enlarges or restores a picture by itself.

    Raises:
        BundleError: nothing there, unreadable, truncated, a pickle that is not only weights, of no known
            architecture, or one that cannot be one graph.
        DeviceError: spandrel is not installed.
        NotFiniteError: the checkpoint holds NaN or infinity.
    """
    spandrel = import_spandrel()
    saved = _load(origin)
    with misread(f"{origin}: no weights in this checkpoint"):
        state = spandrel.canonicalize_state_dict(saved)
    require_honest(origin, state)
    try:
        with misread(f"{origin}: the network cannot be built from this checkpoint"):
            found = spandrel.ModelLoader().load_from_state_dict(state)
    except BundleError as error:
        if isinstance(error.__cause__, spandrel.UnsupportedModelError):
            raise BundleError(f"{origin}: of no architecture that spandrel knows", hint=KNOWN_HINT) from error
        raise
    _require_one_graph(origin, found, spandrel)
    for name, value in found.model.state_dict().items():
        if value.is_floating_point():
            require_finite(value, f"{origin}: {name}")
    return _network(origin, found, spandrel)


def _network(origin: Path, found: Any, spandrel: ModuleType) -> Network:
    needs = found.size_requirements
    found.model.float().eval().requires_grad_(False)
    discouraged = found.tiling == spandrel.ModelTiling.DISCOURAGED
    return Network(
        origin,
        file_sha256(origin),
        # What the descriptor itself calls between padding and clamping has no public name.
        FromMinusOne(found.model, found._call_fn).eval(),
        found.architecture.name,
        tuple(found.tags),
        found.scale,
        needs.multiple_of,
        needs.minimum,
        found.supports_half,
        lambda x: found(x * 0.5 + 0.5) * 2 - 1,
        "its makers advise against tiles: their edges may show" if discouraged else "",
    )


def _load(origin: Path) -> dict[str, Any]:
    if not origin.is_file():
        raise BundleError(f"{origin}: no checkpoint here (there is no such file)")
    suffix = origin.suffix.lower()
    if suffix == ".safetensors":
        return load_safetensors(origin)[0]
    if suffix in PICKLES:
        saved = load_pickle(origin)
        if not isinstance(saved, dict):
            raise BundleError(f"{origin}: no checkpoint of a network, but a {type(saved).__name__}")
        return saved
    raise BundleError(f"{origin}: not a checkpoint", hint=f".safetensors, or {', '.join(PICKLES)}")


def require_honest(origin: Path, state: Mapping[Any, Any]) -> None:
    """BundleError where weights are none, or are larger or more than the file can hold."""
    if not state or not all(isinstance(name, str) for name in state):
        raise BundleError(f"{origin}: no weights in this checkpoint")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise BundleError(f"{origin}: {name[:120]} is no weight, but a {type(value).__name__}")
        # One number may be stored for a million: what is built for it would be of full size.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise BundleError(f"{origin}: {name[:120]} is larger than what is stored of it")
        if any(int(number) > MOST_INDEX for number in re.findall(r"(?<![^.])\d{1,18}(?![^.])", name)):
            raise BundleError(f"{origin}: {name[:120]} counts more than {MOST_INDEX} layers")


def _require_one_graph(origin: Path, found: Any, spandrel: ModuleType) -> None:
    name = found.architecture.name
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose not in PURPOSES:
        raise BundleError(
            f"{origin}: {name} is for {found.purpose.lower()}, not for whole pictures", hint=KNOWN_HINT
        )
    if (found.input_channels, found.output_channels) != (3, 3):
        channels = f"{found.input_channels} to {found.output_channels} channels"
        raise BundleError(f"{origin}: this {name} takes {channels}, not RGB to RGB", hint=KNOWN_HINT)
    if not 1 <= found.scale <= MAX_FACTOR:
        raise BundleError(f"{origin}: this {name} enlarges x{found.scale}, more than {MAX_FACTOR}")
    if found.tiling == spandrel.ModelTiling.INTERNAL:
        raise BundleError(f"{origin}: {name} has to see a picture whole, not in tiles", hint=KNOWN_HINT)


def import_spandrel() -> ModuleType:
    """spandrel, with or without torchvision. Raises DeviceError where it is not installed."""
    with _stand_ins():
        try:
            import spandrel
        except ImportError as error:
            raise DeviceError(f"spandrel cannot be imported ({error})", hint=INSTALL_HINT) from error
    return spandrel


class _StandIn(ModuleType):
    """A module whose every public name is an object that does nothing."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Within, torchvision can be imported, whether it is installed or not; afterwards all is as before."""
    if "spandrel" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield
        return
    for name in STAND_INS:
        sys.modules[name] = _StandIn(name)
    try:
        yield
    finally:
        for name in STAND_INS:
            del sys.modules[name]
