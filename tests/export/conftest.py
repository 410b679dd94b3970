"""Tiny random bases of both kinds, with random adapters, and bundles exported from them once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

from tudsr_export import engine_gate, part
from tudsr_export.export import export_bundle
from tudsr_export.gates import Report
from tudsr_export.onnx_export import EXTERNAL_FROM, MODEL_NAME, export_onnx
from tudsr_export.plan import ExportPlan
from tudsr_runtime.errors import DeviceError
from tudsr_train.adapters import AdapterRecord, add_adapter, prompt_sha256, save_adapter
from tudsr_train.bases.nano import NanoBase, create_base
from tudsr_train.generator import Generator

TILE = 64
TARGETS = (
    "conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0",
)  # fmt: skip
FEATURES = NanoBase(
    block_out_channels=(16, 32),
    cross_attention_dim=8,
    norm_num_groups=8,
    margin=8,
    beta=1e-6,
    feature_channels=8,
    decoder_widths=(8, 8, 8),
)
TIMESTEPS = {1: 137, 2: 41}
FACTORS = {1: 4, 2: 2}


@dataclass(frozen=True)
class Source:
    """A base folder and its two adapter folders."""

    base: Path
    stage1: Path
    stage2: Path

    def plan(
        self, output: Path, precision: str = "fp32", stages: tuple[int, ...] = (1, 2), **options: Any
    ) -> ExportPlan:
        adapters = {stage: (self.stage1, self.stage2)[stage - 1] for stage in stages}
        return ExportPlan(
            base=self.base,
            adapters=adapters,
            output=output,
            precision=precision,
            name="tiny",
            licence="Apache-2.0",
            tile=TILE,
            **options,
        )


def make_nano(folder: Path) -> None:
    """A `nano` base whose last convolution is not zero, as after training."""
    create_base(folder, NanoBase(block_out_channels=(16, 32), cross_attention_dim=8, norm_num_groups=8), 0)
    generator = Generator.load(folder)
    nn.init.normal_(generator.unet.conv_out.weight, std=0.1)
    nn.init.normal_(generator.unet.conv_out.bias, std=0.1)
    generator.unet.save_pretrained(folder / "unet")


def make_features(folder: Path) -> None:
    """A base whose pixels pass and whose decoder makes a residual of features, as after training."""
    create_base(folder, FEATURES, 0)
    generator = Generator.load(folder)
    nn.init.normal_(generator.vae.conv_out.weight, std=0.1)
    generator.vae.save_pretrained(folder / "vae")


def make_stable_diffusion(folder: Path, prediction_type: str = "epsilon", **unet: Any) -> None:
    """Stable Diffusion's layout with few channels: two-level VAE, text encoder and tokenizer included.

    By default that of 2.1-base; `unet` are what the UNet of another one has in its configuration.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=8,
        **{"attention_head_dim": (2, 4), "use_linear_projection": True} | unet,
    ).save_pretrained(folder / "unet")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=0.18215,
    )
    # Latents of about 1, as after training. Near 0 the decoder's norms would amplify every rounding.
    vae.quant_conv.weight.data *= 30
    vae.quant_conv.bias.data *= 30
    vae.save_pretrained(folder / "vae")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    ).save_pretrained(folder / "scheduler")
    config = CLIPTextConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")


def write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": 12, "pad_token": words[1], "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_adapter(base: Path, folder: Path, stage: int, rank: int = 4, **changes: object) -> Path:
    """An adapter that does something (B not zero); `changes` go into its record."""
    generator = Generator.load(base)
    torch.manual_seed(10 + stage)
    add_adapter(generator, "x", rank, TARGETS)
    for name, parameter in generator.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2 / rank**0.5)
    record = AdapterRecord(
        stage, TIMESTEPS[stage], FACTORS[stage], generator.base_sha256, prompt_sha256(generator.prompt_embeds)
    )
    folder.mkdir()
    save_adapter(generator, "x", folder, replace(record, **changes))
    return folder


def make_source(folder: Path, make_base: Callable[[Path], None]) -> Source:
    base = folder / "base"
    base.mkdir()
    make_base(base)
    return Source(base, make_adapter(base, folder / "stage1", 1), make_adapter(base, folder / "stage2", 2))


@pytest.fixture(scope="session", autouse=True)
def no_engines() -> Iterator[None]:
    """Building engines takes seconds a graph; the tests that want them ask for the library themselves."""

    def missing(name: str) -> None:
        raise DeviceError(f"{name} is left out of this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_gate, "open_library", missing)
        yield


PLAIN = (int, float, str, tuple, dict, list)


def fingerprint(module: nn.Module) -> bytes:
    """Of all that makes a module's graph: its classes, settings and weights."""
    found = hashlib.sha256()
    for name, inner in module.named_modules():
        public = {k: v for k, v in vars(inner).items() if not k.startswith("_")}
        kinds = {k: type(v).__qualname__ for k, v in public.items()}
        plain = {k: repr(v) for k, v in public.items() if isinstance(v, PLAIN)}
        found.update(repr((name, type(inner).__qualname__, sorted((kinds | plain).items()))).encode())
    parameters = module.named_parameters(remove_duplicate=False)
    for name, tensor in (*parameters, *module.named_buffers(remove_duplicate=False)):
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()


@pytest.fixture(scope="session", autouse=True)
def each_graph_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The exporter takes seconds a graph, so one that was exported before is copied.

    Were it another module's, the gate onnx_vs_torch would say so.
    """
    made: dict[tuple[object, ...], Path] = {}

    def once(module: nn.Module, folder: Path, *ports: Any, **options: Any) -> Path:
        if options.get("name", MODEL_NAME) != MODEL_NAME:
            return export_onnx(module, folder, *ports, **options)
        key = (fingerprint(module), *ports, *sorted(options.items()), *EXTERNAL_FROM.values())
        if key not in made:
            export_onnx(module, folder, *ports, **options)
            made[key] = shutil.copytree(folder, tmp_path_factory.mktemp("graphs") / "graph")
        return shutil.copytree(made[key], folder, dirs_exist_ok=True) / MODEL_NAME

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "export_onnx", once)
        yield


@pytest.fixture
def every_graph_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what two exports have in common."""
    monkeypatch.setattr(part, "export_onnx", export_onnx)


def export(plan: ExportPlan) -> Report:
    """Export, and return the figures of the gates."""
    report = Report()
    export_bundle(plan, report, lambda _: None)
    return report


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("nano"), make_nano)


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("sd"), make_stable_diffusion)


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("features"), make_features)


@pytest.fixture(scope="session")
def sources(nano: Source, stable_diffusion: Source, features: Source) -> dict[str, Source]:
    return {"nano": nano, "stable_diffusion": stable_diffusion, "features": features}


@pytest.fixture(scope="session")
def bundles(
    sources: dict[str, Source], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The bundle of a kind of base in a precision, exported on first use."""
    made: dict[tuple[str, str], Path] = {}

    def get(kind: str, precision: str) -> Path:
        if (kind, precision) not in made:
            output = tmp_path_factory.mktemp("bundles") / f"{kind}-{precision}"
            export(sources[kind].plan(output, precision))
            made[kind, precision] = output
        return made[kind, precision]

    return get
