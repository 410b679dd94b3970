"""Adapters and bases that nobody trained: what each does to a good one, and where it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], None]
DEEP = '{"a":' * 200_000 + "1" + "}" * 200_000
DEEP_LIST = "[" * 200_000 + "]" * 200_000
NEVER_MATCHED = r"(([a-z0-9_.]|[a-z0-9_.][a-z0-9_.])+)+!"
"""A regular expression that takes longer than the universe for a name of forty letters."""


def setting(file: str, **changes: Any) -> Change:
    """Change values of a JSON file."""

    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def text(file: str, content: str | bytes) -> Change:
    """Replace a file."""
    return lambda folder: _write(folder / file, content)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Change the tensors of a safetensors file."""

    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})

    return apply


def nested(key: str, deep: str = DEEP) -> Change:
    """A value of adapter_config.json without a bottom."""
    return lambda folder: _write(
        folder / CONFIG, (folder / CONFIG).read_text().rstrip().rstrip("}") + f', "{key}": {deep}}}'
    )


CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "tudsr.json"

ADAPTERS: dict[str, Change] = {
    "config nested": text(CONFIG, DEEP),
    "config nested list": text(CONFIG, DEEP_LIST),
    "config nested in a value": nested("rank_pattern"),
    "config nested in an unknown value": nested("x", DEEP_LIST),
    "config a list": text(CONFIG, "[]"),
    "config a number": text(CONFIG, "1e999"),
    "config an HTML page": text(CONFIG, "<!doctype html><html></html>"),
    "config in UTF-16": text(CONFIG, '{"r": 4}'.encode("utf-16")),
    "config empty": text(CONFIG, ""),
    "config with a key twice": text(CONFIG, '{"r": 4, "r": 8}'),
    "config huge": text(CONFIG, " " * (2**24 + 1) + "{}"),
    "config of another method": setting(CONFIG, peft_type="IA3"),
    "rank 0": setting(CONFIG, r=0),
    "rank negative": setting(CONFIG, r=-1),
    "rank endless": setting(CONFIG, r=10**12),
    "rank a text": setting(CONFIG, r="4"),
    "rank a list": setting(CONFIG, r=[4]),
    "rank_pattern endless": setting(CONFIG, rank_pattern={"to_q": 10**12}),
    "rank_pattern expression": setting(CONFIG, rank_pattern={NEVER_MATCHED: 4}),
    "alpha_pattern expression": setting(CONFIG, alpha_pattern={NEVER_MATCHED: 4}),
    "alpha a text": setting(CONFIG, lora_alpha="x"),
    "modules_to_save expression": setting(CONFIG, modules_to_save=[NEVER_MATCHED]),
    "modules_to_save": setting(CONFIG, modules_to_save=["conv_out"]),
    "layers_pattern expression": setting(
        CONFIG, layers_to_transform=[0], layers_pattern=[NEVER_MATCHED], target_modules=["to_q"]
    ),
    "target_modules none": setting(CONFIG, target_modules=None),
    "target_modules empty": setting(CONFIG, target_modules=[]),
    "target_modules numbers": setting(CONFIG, target_modules=[1, 2]),
    "target_modules nested": setting(CONFIG, target_modules=[["to_q"]]),
    "target_modules elsewhere": setting(CONFIG, target_modules=["fc1"]),
    "target_modules fewer": setting(CONFIG, target_modules=["to_q"]),
    "starts by changing the base": setting(CONFIG, init_lora_weights="pissa_niter_16"),
    "starts by an unknown way": setting(CONFIG, init_lora_weights={"a": 1}),
    "dora": setting(CONFIG, use_dora=True),
    "bias a list": setting(CONFIG, bias=["x"]),
    "weights an HTML page": text(WEIGHTS, "<!doctype html>" * 100),
    "weights empty": text(WEIGHTS, b""),
    "weights with a header without end": text(WEIGHTS, (2**62).to_bytes(8, "little") + b"{}"),
    "weights with a nested header": text(
        WEIGHTS, len(DEEP).to_bytes(8, "little") + DEEP.encode()
    ),
    "no tensors": tensors(WEIGHTS, lambda _: {}),
    "a tensor less": tensors(WEIGHTS, lambda found: dict(sorted(found.items())[1:])),
    "a tensor more": tensors(WEIGHTS, lambda found: found | {"x.lora_A.weight": torch.zeros(1)}),
    "tensors without shape": tensors(WEIGHTS, lambda found: {k: torch.tensor(1.0) for k in found}),
    "tensors transposed": tensors(
        WEIGHTS, lambda found: {k: v.transpose(0, 1).contiguous() for k, v in found.items()}
    ),
    "record nested": text(RECORD, DEEP),
    "record a list": text(RECORD, "[]"),
    "record empty": text(RECORD, "{}"),
    "record in UTF-16": text(RECORD, "{}".encode("utf-16")),
    "record with an unknown key": setting(RECORD, more=1),
    "factor 0": setting(RECORD, factor=0),
    "factor negative": setting(RECORD, factor=-4),
    "factor endless": setting(RECORD, factor=10**9),
    "factor a fraction": setting(RECORD, factor=2.5),
    "factor yes": setting(RECORD, factor=True),
    "stage 3": setting(RECORD, stage=3),
    "stage of the other": setting(RECORD, stage=2),
    "timestep negative": setting(RECORD, timestep=-1),
    "timestep endless": setting(RECORD, timestep=10**30),
    "base of another": setting(RECORD, base_sha256="0" * 64),
    "an encoder that the base lacks": setting(RECORD, vae_encoder_rank=4),
    "encoder rank negative": setting(RECORD, vae_encoder_rank=-4),
    "prompt of another width": text("prompt_embeds.safetensors", b"x" * 100),
}  # fmt: skip
"""Each is a BundleError, exit 5, and before anything is computed."""

UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
PROMPT = "prompt/prompt_embeds.safetensors"

BASES: dict[str, Change] = {
    **{
        f"{file} {name}": change
        for file in (UNET, VAE, SCHEDULER)
        for name, change in {
            "nested": text(file, DEEP),
            "nested list": text(file, DEEP_LIST),
            "a list": text(file, "[]"),
            "an HTML page": text(file, "<!doctype html>"),
            "in UTF-16": text(file, "{}".encode("utf-16")),
            "empty": text(file, ""),
        }.items()
    },
    "timesteps without end": setting(SCHEDULER, num_train_timesteps=10**11),
    "timesteps 0": setting(SCHEDULER, num_train_timesteps=0),
    "timesteps a text": setting(SCHEDULER, num_train_timesteps="1000"),
    "betas of another kind": setting(SCHEDULER, beta_schedule="x"),
    "betas of 2": setting(SCHEDULER, beta_start=2.0, beta_end=2.0),
    "prediction of something else": setting(SCHEDULER, prediction_type="score"),
    "layers without end": setting(UNET, layers_per_block=10**9),
    "layers negative": setting(UNET, layers_per_block=-1),
    "a million layers": setting(UNET, layers_per_block=[10**6] * 2),
    "layers a nested list": setting(UNET, transformer_layers_per_block=[[10**9]]),
    "channels without end": setting(UNET, block_out_channels=[10**12, 10**12]),
    "channels too many": setting(UNET, block_out_channels=[2**20 - 8, 2**20 - 8]),
    "channels 0": setting(UNET, block_out_channels=[0, 0]),
    "a million blocks": setting(
        UNET, block_out_channels=[16] * 10**6, down_block_types=["DownBlock2D"] * 10**6
    ),
    "groups 0": setting(UNET, norm_num_groups=0),
    "groups that do not divide": setting(UNET, norm_num_groups=7),
    "heads 0": setting(UNET, attention_head_dim=0),
    "attention without end": setting(UNET, cross_attention_dim=10**12),
    "an activation unknown": setting(UNET, act_fn="x"),
    "classes wanted": setting(UNET, class_embed_type="timestep"),
    "pictures wanted": setting(UNET, encoder_hid_dim_type="image_proj", encoder_hid_dim=4),
    "another UNet": setting(UNET, in_channels=3),
    "patch 0": setting(VAE, patch_size=0),
    "patch without end": setting(VAE, patch_size=10**9),
    "margin negative": setting(VAE, margin=-16),
    "margin without end": setting(VAE, margin=10**9),
    "scale 0": setting(VAE, scaling_factor=0),
    "scale negative": setting(VAE, scaling_factor=-1.0),
    "scale a text": setting(VAE, scaling_factor="x"),
    "a class of another library": setting(VAE, _class_name="os.system"),
    "weights an HTML page": text("unet/diffusion_pytorch_model.safetensors", "<!doctype html>" * 100),
    "weights fewer": tensors(
        "unet/diffusion_pytorch_model.safetensors", lambda found: dict(sorted(found.items())[1:])
    ),
    "prompt flat": tensors(PROMPT, lambda found: {k: v[0] for k, v in found.items()}),
    "prompt a number": tensors(PROMPT, lambda found: {k: torch.tensor(1.0) for k in found}),
    "prompt empty": tensors(PROMPT, lambda found: {k: v[:, :0] for k, v in found.items()}),
    "two prompts": tensors(PROMPT, lambda found: found | {"other": torch.zeros(1, 8, 8)}),
}
"""Each is a BundleError, exit 5."""
