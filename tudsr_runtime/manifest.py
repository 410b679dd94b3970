"""`bundle.json` as frozen dataclasses, read strictly: an unknown, missing or misfit key is an error."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tudsr_runtime.errors import BundleError, quoted
from tudsr_runtime.factors import MAX_SCALE, Factors, parse_factors, product
from tudsr_runtime.typed import OMITTED_IF_DEFAULT, parse_json, read_typed

SCHEMA_VERSION = 2
"""What `tudsr export` writes. A stage of schema 1 has `alpha_cumprod` in the place of `a` and `b`."""
READ_SCHEMAS = (1, 2)
MIN_TILE, MAX_TILE = 64, 4096
MAX_PLANS = 64
MAX_MACS = 10**18
MAX_WEIGHT = 1e6
"""Greatest weight of a step: beyond, nothing of a picture is left."""
PRECISIONS = ("fp32", "fp16", "bf16")
DTYPES = ("float32", "float16")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MIN_OVERLAP = 17
"""Least overlap in px of tiles that can be blended (`tudsr_runtime.tiling.axis`)."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def _require(condition: bool, complaint: str) -> None:
    """Raise the ValueError that `read_typed` turns into a BundleError with the place."""
    if not condition:
        raise ValueError(complaint)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: `dtype` is float16 or float32, `shape` is fixed."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, not {quoted(self.dtype)}")
        _require(all(n > 0 for n in self.shape), f"shape must be positive, not {list(self.shape)}")


@dataclass(frozen=True)
class BundleFile:
    """A file of the bundle: `path` relative with at most one folder, `bytes` its size."""

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        safe = len(parts) <= 2 and all(NAME.fullmatch(part) for part in parts)
        _require(safe, f"path {quoted(self.path)} must be a plain name, or one folder and a plain name")
        _require(SHA256.fullmatch(self.sha256) is not None, "sha256 must be 64 lower-case hexadecimal digits")
        _require(self.bytes >= 0, f"bytes must not be negative, not {self.bytes}")


@dataclass(frozen=True)
class Variant:
    """One exported graph of a component: the ONNX file `model` and all files it needs (itself included).

    `precision` is that of its arithmetic; variants may share a file of weights. `macs`, which may be missing,
    are the multiply-adds of one run.
    """

    model: str
    files: tuple[BundleFile, ...]
    batch: int
    tile: int
    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: int | None = dataclasses.field(default=None, metadata=OMITTED_IF_DEFAULT)

    def __post_init__(self) -> None:
        _require(self.precision in PRECISIONS, f"precision must be one of {', '.join(PRECISIONS)}")
        counted = self.macs is None or 0 <= self.macs <= MAX_MACS
        _require(counted, "macs must be 0 to 10^18")
        _require(self.batch > 0, f"batch must be positive, not {self.batch}")
        _require(len(self.inputs) == 1 and len(self.outputs) == 1, "a graph has one input and one output")
        named = [file.path for file in self.files]
        _require(self.model in named, f"model {quoted(self.model)} is not among its files")
        # ONNX resolves external weights relative to the model's folder and must not reach out of it.
        folders = {path.rpartition("/")[0] for path in named}
        _require(len(folders) == 1, "all files of a variant lie in one folder")


@dataclass(frozen=True)
class Component:
    """One module (encoder, UNet, decoder), in one or more variants, the preferred first."""

    variants: tuple[Variant, ...]

    def __post_init__(self) -> None:
        _require(len(self.variants) > 0, "variants must not be empty")


@dataclass(frozen=True)
class Stage:
    """One one-step diffusion stage: the factor it was trained for, its timestep, and its three components.

    `light_decoder`, which may be missing, can take the place of `decoder`.

    The step is z_H = a z_L + b B(z_L, t, c), which the component `unet` holds whole, be it a UNet or a
    transformer. In schema 1 it is that of a variance-preserving base: `alpha_cumprod`.
    """

    name: str
    factor: int
    timestep: int
    alpha_cumprod: float | None = dataclasses.field(default=None, kw_only=True, metadata=OMITTED_IF_DEFAULT)
    a: float | None = dataclasses.field(default=None, kw_only=True, metadata=OMITTED_IF_DEFAULT)
    b: float | None = dataclasses.field(default=None, kw_only=True, metadata=OMITTED_IF_DEFAULT)
    encoder: str
    unet: str
    decoder: str
    light_decoder: str | None = dataclasses.field(default=None, metadata=OMITTED_IF_DEFAULT)

    def __post_init__(self) -> None:
        _require(NAME.fullmatch(self.name) is not None, f"name {quoted(self.name)} is not a plain name")
        _require(1 <= self.factor <= 16, f"factor must be 1 to 16, not {self.factor}")
        _require(self.timestep >= 0, f"timestep must not be negative, not {self.timestep}")
        alpha = self.alpha_cumprod
        _require(alpha is None or 0 < alpha <= 1, f"alpha_cumprod must be in (0, 1], not {alpha}")
        for name, weight in (("a", self.a), ("b", self.b)):
            _require(weight is None or abs(weight) <= MAX_WEIGHT, f"{name} must be finite, not {weight}")

    def check_step(self, schema: int) -> None:
        """ValueError where the step is not said as this schema says it."""
        kept, other = (("alpha_cumprod",), ("a", "b")) if schema == 1 else (("a", "b"), ("alpha_cumprod",))
        for key in kept:
            _require(getattr(self, key) is not None, f"stage {self.name} lacks {key!r}")
        for key in other:
            _require(
                getattr(self, key) is None, f"stage {self.name} has {key!r}, which schema {schema} has not"
            )

    @property
    def components(self) -> tuple[str, ...]:
        """The components that a tile passes, in order."""
        return self.encoder, self.unet, self.decoder

    @property
    def decoders(self) -> tuple[str, ...]:
        """The full decoder, and the light one if there is one."""
        return (self.decoder,) if self.light_decoder is None else (self.decoder, self.light_decoder)

    def source_edge(self, tile: int) -> int:
        """Px a side of what the stage reads for a tile of that size: its canvas is enlarged before."""
        return tile


@dataclass(frozen=True)
class NetworkStage:
    """A stage that is one graph, which itself enlarges: a tile of `tile / factor` px becomes one of `tile`.

    Two stages of one bundle may name the same network, which then runs twice.
    """

    name: str
    factor: int
    network: str

    def __post_init__(self) -> None:
        _require(NAME.fullmatch(self.name) is not None, f"name {quoted(self.name)} is not a plain name")
        _require(1 <= self.factor <= 16, f"factor must be 1 to 16, not {self.factor}")

    @property
    def components(self) -> tuple[str, ...]:
        """The one component."""
        return (self.network,)

    @property
    def decoders(self) -> tuple[str, ...]:
        """None: the network writes pixels itself."""
        return ()

    def source_edge(self, tile: int) -> int:
        """Px a side of what the network reads for a tile of that size."""
        return tile // self.factor


@dataclass(frozen=True)
class Latent:
    """The autoencoder's latent: `channels`, image pixels per latent cell and axis, the latent scale, and the
    cells on each side that stand for pixels beyond the tile.

    What may be missing, of schema 2: the shift, z = (E(x) - shift) scale; `mean` and `std`, shift and a
    divisor of the scale for every channel.
    """

    channels: int
    pixels_per_cell: int
    scaling_factor: float
    margin: int = 0
    shift_factor: float = dataclasses.field(default=0.0, metadata=OMITTED_IF_DEFAULT)
    mean: tuple[float, ...] = dataclasses.field(default=(), metadata=OMITTED_IF_DEFAULT)
    std: tuple[float, ...] = dataclasses.field(default=(), metadata=OMITTED_IF_DEFAULT)

    def __post_init__(self) -> None:
        _require(self.margin >= 0, f"margin must not be negative, not {self.margin}")
        _require(self.channels > 0, f"channels must be positive, not {self.channels}")
        _require(self.pixels_per_cell > 0, f"pixels_per_cell must be positive, not {self.pixels_per_cell}")
        _require(self.scaling_factor > 0, f"scaling_factor must be positive, not {self.scaling_factor}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            fits = len(values) in (0, self.channels)
            _require(fits, f"{name} has {len(values)} entries for {self.channels} channels")


@dataclass(frozen=True)
class Golden:
    """One tile to check engines with: `input` a PNG; per stage, the centre of what it makes of the one
    before, clamped: raw little-endian float32 NCHW in [-1, 1] (`tudsr_runtime.golden_tile`).

    `light` is the same with the light decoders, none where the bundle has none."""

    input: BundleFile
    outputs: tuple[BundleFile, ...]
    light: tuple[BundleFile, ...] = dataclasses.field(default=(), metadata=OMITTED_IF_DEFAULT)


@dataclass(frozen=True)
class MeasuredPlan:
    """Factors that were measured to keep quality up to a scale, and how well (`benchmarks/plans.py`).

    `factors` as in `tudsr_runtime.factors`. Means over photographs at that scale: PSNR in dB and SSIM of
    luma; `texture` is the energy of gradients as a share of the original's.
    """

    scale: float
    factors: str
    psnr_db: float
    ssim: float
    texture: float

    def __post_init__(self) -> None:
        _require(1 <= self.scale <= MAX_SCALE, f"scale must be 1 to {MAX_SCALE}, not {self.scale}")
        reached = product(parse_factors(self.factors))
        _require(reached >= self.scale, f"factors {self.factors} do not reach scale {self.scale:g}")
        _require(0 <= self.psnr_db <= 200, f"psnr_db must be 0 to 200, not {self.psnr_db}")
        _require(-1 <= self.ssim <= 1, f"ssim must be -1 to 1, not {self.ssim}")
        _require(self.texture >= 0, f"texture must not be negative, not {self.texture}")

    @property
    def stages(self) -> int:
        """How many stages the bundle must have at least."""
        return parse_factors(self.factors)[-1][0] + 1


def read_plans(text: str, stages: int) -> tuple[MeasuredPlan, ...]:
    """Read what `benchmarks/plans.py` writes, for a bundle of `stages` stages. Raises BundleError."""
    try:
        plans = read_typed(tuple[MeasuredPlan, ...], parse_json(text), BundleError, whole="the list of plans")
        _check_plans(plans, stages)
    except ValueError as error:
        raise BundleError(str(error)) from None
    return plans


def _check_plans(plans: tuple[MeasuredPlan, ...], stages: int) -> None:
    _require(len(plans) <= MAX_PLANS, f"there are {len(plans)} plans, at most {MAX_PLANS}")
    seen = set()
    for plan in plans:
        named = f"plan {plan.factors} for scale {plan.scale:g}"
        _require(plan.stages <= stages, f"{named} needs stage 2, the bundle has {stages} stage")
        _require((plan.scale, plan.factors) not in seen, f"{named} is listed twice")
        seen.add((plan.scale, plan.factors))


@dataclass(frozen=True)
class Manifest:
    """The content of bundle.json. `provenance` and `numerics` are free-form JSON objects.

    `tile` is the size in px that the model was made for, and that every component has a graph for. What may
    be missing: `plans`, the factors that the bundle was measured to be good for; `overlap`, the least overlap
    of neighbouring tiles in px that its seams were measured to be good with, up to half of the greatest size
    of tile that it has. `latent` is None where the
    stages are networks.

    Built in Python rather than parsed, it and its parts raise ValueError for a value that cannot be.
    """

    schema_version: int
    name: str
    tudsr_version: str
    licence: str
    tile: int
    latent: Latent | None
    precision: str
    stages: tuple[Stage | NetworkStage, ...]
    components: dict[str, Component]
    provenance: dict[str, Any]
    numerics: dict[str, Any]
    golden: Golden | None = None
    plans: tuple[MeasuredPlan, ...] = dataclasses.field(default=(), metadata=OMITTED_IF_DEFAULT)
    overlap: int | None = dataclasses.field(default=None, metadata=OMITTED_IF_DEFAULT)

    def __post_init__(self) -> None:
        _require(NAME.fullmatch(self.name) is not None, f"name {quoted(self.name)} is not a plain name")
        _require(self.precision in PRECISIONS, f"precision must be one of {', '.join(PRECISIONS)}")
        for stage in self.stages:
            if isinstance(stage, Stage):
                stage.check_step(self.schema_version)
        _require(1 <= len(self.stages) <= 2, f"there must be one or two stages, not {len(self.stages)}")
        fits = MIN_TILE <= self.tile <= MAX_TILE
        _require(fits, f"tile must be {MIN_TILE} to {MAX_TILE} px, not {self.tile}")
        self._check_kind()
        overlap, half = self.overlap, self._greatest_tile // 2
        fits = overlap is None or MIN_OVERLAP <= overlap <= half
        _require(fits, f"overlap must be {MIN_OVERLAP} to {half} px, not {overlap}")
        self._check_components()
        self._check_files()
        _check_plans(self.plans, len(self.stages))
        for plan in self.plans:
            fixed = all(self.own_factors[stage] == n for stage, n in self._fixed(plan.factors))
            _require(fixed, f"plan {plan.factors} has other factors than the networks'")
        if self.golden is not None:
            outputs, stages = len(self.golden.outputs), len(self.stages)
            _require(outputs == stages, f"golden has {outputs} outputs for {stages} stages")
            light, wanted = len(self.golden.light), stages if self.has_light_decoders else 0
            _require(light == wanted, f"golden has {light} outputs of light decoders, not {wanted}")

    @property
    def has_light_decoders(self) -> bool:
        """Whether the stages have them: all or none."""
        return len(self.stages[0].decoders) > 1

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the text of bundle.json.

        Raises:
            BundleError: not JSON, a duplicate key, another schema version, or an unknown, missing or misfit
                key, which is named.
        """
        try:
            value = parse_json(text)
        except ValueError as error:
            raise BundleError(f"not valid JSON: {error}") from None
        version = value.get("schema_version") if isinstance(value, dict) else None
        if isinstance(value, dict) and (type(version) is not int or version not in READ_SCHEMAS):
            known = " and ".join(map(str, READ_SCHEMAS))
            raise BundleError(
                f"schema_version is {quoted(version)}, this tudsr reads {known}",
                hint="use the tudsr version that wrote the bundle, or export it again",
            )
        return read_typed(cls, value, BundleError, whole="the manifest")

    def to_json(self) -> str:
        """The text of bundle.json: keys in a fixed order, two spaces, a newline at the end."""
        return json.dumps(_plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def own_factors(self) -> tuple[int, ...]:
        """The factors of stages that enlarge by themselves, which can be no other; none of diffusion's."""
        return tuple(stage.factor for stage in self.stages if isinstance(stage, NetworkStage))

    def _fixed(self, factors: str) -> Factors:
        return parse_factors(factors) if self.own_factors else ()

    @property
    def _greatest_tile(self) -> int:
        """Of which every component has a graph, as far as sizes alone say."""
        sizes = ([v.tile for v in c.variants if v.batch == 1] for c in self.components.values())
        return min((max(own, default=self.tile) for own in sizes), default=self.tile)

    def _check_kind(self) -> None:
        """All stages are of one kind, and the tile divides as that kind needs it."""
        own = self.own_factors
        if not own:
            _require(self.latent is not None, "latent must not be null where stages have an autoencoder")
            cell = self.latent.pixels_per_cell if self.latent else 1
            _require(self.tile % cell == 0, f"tile {self.tile} is no multiple of {cell} pixels per cell")
            return
        _require(len(own) == len(self.stages), "either all stages are networks or none")
        _require(self.schema_version == SCHEMA_VERSION, f"networks need schema_version {SCHEMA_VERSION}")
        _require(self.latent is None, "latent must be null where the stages are networks")

    def files(self) -> tuple[BundleFile, ...]:
        """Every file that the manifest lists, each once."""
        return tuple(dict.fromkeys(self._all_files()))

    def _all_files(self) -> Iterator[BundleFile]:
        for component in self.components.values():
            for variant in component.variants:
                yield from variant.files
        if self.golden is not None:
            yield from (self.golden.input, *self.golden.outputs, *self.golden.light)

    def _check_files(self) -> None:
        files = self.files()
        folded = {file.path.casefold() for file in files}
        _require(len(folded) == len(files), "one path is listed twice with different content or case")
        _require("bundle.json" not in folded, "bundle.json cannot list itself")

    def _check_components(self) -> None:
        for name in self.components:
            _require(NAME.fullmatch(name) is not None, f"component {quoted(name)} is not a plain name")
        used = set()
        for stage in self.stages:
            if isinstance(stage, NetworkStage):
                self._check_role(stage.network, f"1/{stage.factor}", "image")
            else:
                self._check_role(stage.encoder, "image", "latent")
                self._check_role(stage.unet, "latent", "latent")
                for decoder in stage.decoders:
                    self._check_role(decoder, "latent", "image")
            used |= {*stage.components, *stage.decoders}
        light = {len(stage.decoders) > 1 for stage in self.stages}
        _require(len(light) == 1, "every stage has a light_decoder, or none has")
        _require(used == self.components.keys(), f"no stage uses {sorted(self.components.keys() - used)}")

    def _check_role(self, name: str, source: str, target: str) -> None:
        _require(name in self.components, f"a stage names the component {quoted(name)}, which is not there")
        variants = self.components[name].variants
        sizes = {variant.tile for variant in variants}
        _require(self.tile in sizes, f"{name}: tile is {max(sizes)}, the bundle's is {self.tile}")
        for variant in variants:
            shapes = self._shapes(name, variant.tile)
            for spec, kind in ((variant.inputs[0], source), (variant.outputs[0], target)):
                expected = (variant.batch, *shapes[kind])
                _require(
                    spec.shape == expected,
                    f"{name}: {spec.name} has shape {list(spec.shape)}, expected {list(expected)}",
                )

    def _shapes(self, name: str, tile: int) -> dict[str, tuple[int, int, int]]:
        """Shapes of image, latent and what networks read, for a tile of any size."""
        # Half a tile, the most that tiles overlap, has to be a whole number of a network's input pixels.
        multiples = [2 * n for n in self.own_factors] or [self.latent.pixels_per_cell if self.latent else 1]
        for multiple in multiples:
            fits = MIN_TILE <= tile <= MAX_TILE and tile % multiple == 0
            expected = f"{MIN_TILE} to {MAX_TILE} px and a multiple of {multiple}"
            _require(fits, f"{name}: tile {tile} is not {expected}")
        shapes = {"image": (3, tile, tile)}
        if self.latent is not None:
            edge = tile // self.latent.pixels_per_cell + 2 * self.latent.margin
            shapes["latent"] = (self.latent.channels, edge, edge)
        return shapes | {f"1/{n}": (3, tile // n, tile // n) for n in self.own_factors}


def _plain(value: Any) -> Any:
    """A manifest or a part of it as JSON has it, without the keys that may be missing and say nothing."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    return {
        field.name: _plain(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if not (field.metadata == OMITTED_IF_DEFAULT and getattr(value, field.name) == field.default)
    }
