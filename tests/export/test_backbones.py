"""Bundles of every kind of backbone: the runtime makes of a picture what the generator makes of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers.models.attention_processor import Attention as LinearAttention
from diffusers.models.attention_processor import (
    SanaLinearAttnProcessor2_0,
    SanaMultiscaleLinearAttention,
)
from torch import Tensor, nn

from tests.export.conftest import TILE, export
from tests.train.backbones.bases import MAKERS, disturb, make_base
from tudsr_export import command, engine_gate
from tudsr_export.float32_islands import NONE, to_half
from tudsr_export.fold_transformer import constant_parts
from tudsr_export.gates import Report, run_onnx
from tudsr_export.graphs import TransformerStage, vae_graphs
from tudsr_export.linear_attention import guard_linear_attention
from tudsr_export.onnx_export import Port, export_onnx
from tudsr_export.options import ExportOptions
from tudsr_export.plan import ExportPlan
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines.tensorrt.builder import build_engine
from tudsr_runtime.engines.tensorrt.library import open_library
from tudsr_runtime.errors import UsageError
from tudsr_runtime.tiling.axis import plan_axis
from tudsr_runtime.upscaler import Upscaler
from tudsr_train.adapters import add_adapter, load_adapter, record_of, save_adapter
from tudsr_train.generator import Generator

KINDS = tuple(MAKERS)
T, FACTOR = 50, 2
GATES = [
    "merged_vs_lora", "baked_vs_merged", "fp16_range", "half_vs_float32", "onnx_vs_torch",
    "runtime_vs_torch", "tensorrt_rtx",
]  # fmt: skip
"""Those of a half bundle, in the order of docs/export.md; tiles this small have no seams to look at."""
BFLOAT16 = onnx.TensorProto.BFLOAT16


@dataclass(frozen=True)
class Made:
    """A base, an adapter of stage 2, and the bundle of them."""

    base: Path
    adapter: Path
    bundle: Path
    report: Report

    def generator(self) -> Generator:
        G = Generator.load(self.base)
        load_adapter(G, self.adapter, "x")
        return G


def plan(base: Path, adapter: Path, output: Path, precision: str = "fp32", **options: object) -> ExportPlan:
    return ExportPlan(
        base=base,
        adapters={2: adapter},
        output=output,
        precision=precision,
        name="tiny",
        licence="Apache-2.0",
        tile=TILE,
        **options,
    )


def make_adapter(base: Path, folder: Path) -> Path:
    G = Generator.load(base, "a")
    add_adapter(G, "x", 4, G.backbone.lora_targets["standard"])
    disturb(G)
    folder.mkdir()
    save_adapter(G, "x", folder, record_of(G, "x", 2, T, FACTOR))
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The float32 bundle of a kind of base, exported on first use."""
    done: dict[str, Made] = {}

    def get(kind: str) -> Made:
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            base = make_base(kind, folder / "base")
            adapter = make_adapter(base, folder / "adapter")
            report = export(plan(base, adapter, folder / "bundle"))
            done[kind] = Made(base, adapter, folder / "bundle", report)
        return done[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_makes_of_a_picture_what_the_generator_makes(
    kind: str, made: Callable[[str], Made]
) -> None:
    one = made(kind)
    photo = np.random.default_rng(1).random((TILE // 2, TILE // 2, 3), np.float32)
    with Upscaler(one.bundle, backend="onnxruntime", device="cpu", color="none", sanity=False) as upscaler:
        actual = upscaler.upscale(photo, factors="2x-")
    x = torch.from_numpy(photo).permute(2, 0, 1)[None] * 2 - 1
    x_L = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        expected = (one.generator()(x_L, T)[0].permute(1, 2, 0) + 1) / 2
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-4)
    assert float((expected - (x_L[0].permute(1, 2, 0) + 1) / 2).abs().max()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_holds_the_step_and_the_latent(kind: str, made: Callable[[str], Made]) -> None:
    one = made(kind)
    manifest, G = open_bundle(one.bundle).manifest, one.generator()
    (stage,) = manifest.stages
    assert (manifest.schema_version, stage.timestep, stage.factor) == (2, T, FACTOR)
    assert (stage.alpha_cumprod, stage.unet) == (None, f"{G.backbone.component}_stage2")
    z, prediction = torch.randn(2, 1, 4, 2, 2)
    expected = G.restored(z, prediction, T)
    torch.testing.assert_close(stage.a * z + stage.b * prediction, expected)
    assert (manifest.latent.channels, manifest.latent.pixels_per_cell) == (
        G.codec.channels,
        G.pixels_per_cell,
    )
    assert manifest.latent.shift_factor == G.codec.shift_factor


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_time_prompt_or_places_is_computed(kind: str, made: Callable[[str], Made]) -> None:
    one = made(kind)
    bundle = open_bundle(one.bundle)
    model = onnx.load(bundle.path(bundle.variant(bundle.manifest.stages[0].unet)))
    assert [i.name for i in model.graph.input] == ["z_L"]
    assert not {node.op_type for node in model.graph.node} & {"Sin", "Cos", "Shape", "Silu"}
    names = " ".join(t.name for t in model.graph.initializer)
    for word in (
        "time",
        "lora",
        "context_embedder",
        "caption_projection",
        "norm1.linear",
        "pos_embed.pos_embed",
    ):
        assert word not in names


def test_a_tile_beyond_the_known_positions_is_refused(made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made("sd3")
    with pytest.raises(
        UsageError, match="tile 192 is more than 128, beyond which this base knows no positions"
    ):
        export(plan(one.base, one.adapter, tmp_path / "bundle", tiles=(192,)))
    with pytest.raises(UsageError, match="tile 66 is no multiple of 4"):
        export(plan(one.base, one.adapter, tmp_path / "bundle", tiles=(66,)))


LOUDER = {"sd3": "pos_embed.proj", "sana": "patch_embed.proj", "flux": "x_embedder"}
"""The first layer of each transformer, which says how large the values are that its blocks hand on."""


def raise_the_stream(base: Path, kind: str) -> None:
    """Let the blocks of a base hand on values that half cannot hold."""
    network = Generator.load(base).unet
    for parameter in network.get_submodule(LOUDER[kind]).parameters():
        parameter.data *= 1e5
    network.save_pretrained(base / "transformer")


HALVES = [
    pytest.param("sd3", "bfloat16"),
    pytest.param("sana", "float16"),
    *(pytest.param(kind, dtype, marks=pytest.mark.thorough)
      for kind, dtype in [("sd3", "float16"), ("sana", "bfloat16"), ("flux", "float16"), ("flux", "bfloat16"),
                          ("sdxl", "float16")]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "dtype"), HALVES)
def test_a_half_bundle_passes_the_same_gates_in_the_type_that_holds_its_values(
    kind: str,
    dtype: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        monkeypatch.setattr(engine_gate, "open_library", open_library)
    base = make_base(kind, tmp_path / "base")
    if dtype == "bfloat16":
        raise_the_stream(base, kind)
    adapter = make_adapter(base, tmp_path / "adapter")
    options = ExportOptions(tmp_path / "out", base, stage2=adapter, merge_lora=True, licence="Apache-2.0")
    command.run(options, tile=TILE)
    said = capsys.readouterr().err
    bundle = open_bundle(tmp_path / "out")
    manifest = bundle.manifest
    assert list(manifest.numerics) == GATES
    name = manifest.stages[0].unet
    assert ("network is bfloat16, since half cannot hold its values" in said) == (dtype == "bfloat16")
    kept = {name: {"attention": [], "blocks": [], "bfloat16": ["network"]}} if dtype == "bfloat16" else {}
    assert manifest.provenance["float32_islands"] == kept
    variant = bundle.variant(name, precision="fp16")
    assert [spec.dtype for spec in (*variant.inputs, *variant.outputs)] == ["float16", "float16"]
    model = onnx.load(bundle.path(variant))
    weights = {t.data_type for t in model.graph.initializer if t.dims}
    found = (BFLOAT16 in weights, onnx.TensorProto.FLOAT16 in weights)
    assert found == ((True, False) if dtype == "bfloat16" else (False, True))
    widest = onnx.load(bundle.path(bundle.variant(name, precision="fp32")))
    shared = {t.name for t in widest.graph.initializer}  # they stay as they lie, and are widened where read
    computed = [v for v in widest.graph.value_info if v.name not in shared]
    assert not [v for v in computed if v.type.tensor_type.elem_type == BFLOAT16]
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        built = manifest.numerics["tensorrt_rtx"]
        assert {name, "vae_encoder", "vae_decoder"} <= {*built}
        assert built[name]["types"] == ["float16", "float16"]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the [rtx] extra: pip install tensorrt-rtx"
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_builder_takes_every_float32_graph(kind: str, made: Callable[[str], Made]) -> None:
    bundle = open_bundle(made(kind).bundle)
    library = open_library("tensorrt-rtx")
    for name in bundle.manifest.components:
        built = build_engine(bundle.path(bundle.variant(name)), "sm89", library)
        assert [spec.dtype for spec in (*built.inputs, *built.outputs)] == ["float32", "float32"]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sdxl"])
def test_batches_and_sizes_get_the_constants_that_they_had(kind: str, made: Callable[[str], Made]) -> None:
    G = made(kind).generator()
    latents = [torch.randn(3, G.codec.channels, side, side) for side in (8, 12)]
    with torch.no_grad():
        expected = [G.denoise(z, T) for z in latents]
        assert len(constant_parts(G.unet)) > 4
        stage = TransformerStage(G, T, sides=[8, 12])
        for z, z_H in zip(latents, expected, strict=True):
            torch.testing.assert_close(stage(z), z_H, rtol=0, atol=1e-5)


class Attention(nn.Module):
    """A linear attention as AutoencoderDC has it, which sees keys and queries of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SanaMultiscaleLinearAttention(8, 8, attention_head_dim=8, kernel_sizes=())
        for layer in (self.attention.to_q, self.attention.to_k):
            layer.weight.data = -layer.weight.data.abs()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x)
        return found


@pytest.mark.parametrize("guarded", [False, True])
def test_linear_attention_of_nothing_is_finite_once_it_is_guarded(guarded: bool, tmp_path: Path) -> None:
    module, x = Attention().eval(), torch.rand(1, 8, 4, 4)
    with torch.no_grad():
        expected = module(x)
    assert expected.isfinite().all()
    if guarded:
        guard_linear_attention(module)
        with torch.no_grad():
            torch.testing.assert_close(module(x), expected)
    model = export_onnx(module, tmp_path / "m", Port("x", (1, 8, 4, 4)), Port("y", (1, 8, 4, 4)), "fp32")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"x": x.numpy()})
    if guarded:
        np.testing.assert_allclose(actual, expected.numpy(), atol=1e-6)
    elif np.isfinite(actual).all():
        pytest.skip("this exporter keeps 1e-15")


@pytest.mark.parametrize("half", [False, True])
def test_every_linear_attention_of_a_sana_is_exported_with_its_guard(half: bool, tmp_path: Path) -> None:
    """Its autoencoder and its transformer see keys and queries of zero, and ONNX Runtime gives numbers."""
    G = Generator.load(make_base("sana", tmp_path / "base"), "a")
    for network in (G.unet, G.vae):
        for part in network.modules():
            linear = isinstance(part, SanaMultiscaleLinearAttention) or (
                isinstance(part, LinearAttention) and isinstance(part.processor, SanaLinearAttnProcessor2_0)
            )
            for layer in (part.to_q, part.to_k) if linear else ():
                nn.init.zeros_(layer.weight)
    encoder, decoder = vae_graphs(G.vae)
    stage = TransformerStage(G, T, sides=[8]).eval()
    for name, module, channels, side in (
        ("encoder", encoder, 3, 32),
        ("stage", stage, 8, 8),
        ("decoder", decoder, 8, 8),
    ):
        x, exported = torch.randn(1, channels, side, side), to_half(module, NONE) if half else module
        with torch.no_grad():
            expected = module(x)
            ports = Port("x", tuple(x.shape)), Port("y", tuple(expected.shape))
            model = export_onnx(exported, tmp_path / name, *ports, "fp16" if half else "fp32")
        torch.testing.assert_close(
            run_onnx(model, x), expected, rtol=0, atol=0.02 * float(expected.abs().max()) if half else 1e-4
        )


def test_large_tiles_need_few() -> None:
    axis = plan_axis(2048, 1024, 128)
    assert len(axis.starts) ** 2 == 9
    assert len(plan_axis(4096, 1024, 128).starts) ** 2 == 25
