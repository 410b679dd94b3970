"""What training holds in memory: a base, both stages, R 512, batch 1.

    python -m benchmarks.train_memory [--base sd2.1] [--precision bf16] [--json FILE]    counts, anywhere
    python -m benchmarks.train_memory --base sd3.5-medium --by-part [--json FILE]        stage 1, by part
    python -m benchmarks.train_memory --real [--json FILE]              runs, with random weights; 12 GiB

The first counts the bytes that autograd keeps for the backward (`torch.autograd.graph.saved_tensors_hooks`,
each storage once, parameters not) while Algorithms 1 and 2 run on tensors that have shapes and no data. It
says how stage 2 compares with stage 1, and what it would hold if all chunks were summed before one backward.
`peak` is the most that all tensors hold at a time, weights, gradients, what a backward computes again and 8
bytes of AdamW for each trained weight included; a GPU needs its libraries' 0.5 to 1 GiB besides. All by the
CPU's autocast rules. `--by-part` counts stage 1 with gradient checkpointing of no part, of backbone, of
decoder and of all; without an adapter of its own the encoder has no gradient, and keeps nothing anyway.
The second runs one micro-step of stage 1 and one chunk of stage 2 for real, with gradient checkpointing, and
reports seconds and the process's peak of resident memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, SanaTransformer2DModel, SD3Transformer2DModel
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.full_size import scheduler, unet_and_vae
from tudsr_train.adapters import adapter_parameters, add_adapter
from tudsr_train.config import Lora, Optimization
from tudsr_train.discriminators.base import DiscriminatorConfig, build_discriminator
from tudsr_train.gan import Adversaries
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import TUDSR
from tudsr_train.losses.dists import DistsConfig
from tudsr_train.losses.reconstruction import Losses, LossWeights
from tudsr_train.noising import Flow
from tudsr_train.recomputation import BACKBONE, DECODER, PARTS
from tudsr_train.run.log import GIB, peak_memory
from tudsr_train.run.precision import prepare
from tudsr_train.stage1 import algorithm_1
from tudsr_train.stage2 import algorithm_2

R, N, T_1, T_2 = 512, 2, 200, 50
CPU = torch.device("cpu")
WITHOUT_DATA = FakeTensorMode()
"""One for all: transformers keeps what it computed of one size."""


def sd21_base() -> Generator:
    """The architecture of Stable Diffusion 2.1-base, with random weights."""
    unet, vae = unet_and_vae()
    return Generator(vae.eval(), unet.eval(), torch.randn(1, 77, 1024), scheduler().alphas_cumprod.clone())


def sd35_medium() -> Generator:
    """The architecture of Stable Diffusion 3.5 Medium; eight tokens of the prompt."""
    transformer = SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
        pooled_projection_dim=2048, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, sample_size=1024,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609,
    )  # fmt: skip
    c = {"prompt_embeds": torch.randn(1, 8, 4096), "pooled_prompt_embeds": torch.randn(1, 2048)}
    return Generator(vae.eval(), transformer.eval(), c, Flow(), "flow_prediction")


def sana_600m() -> Generator:
    """The architecture of Sana 0.6B with its DC-AE; a prompt of eight tokens."""
    transformer = SanaTransformer2DModel(
        num_attention_heads=36, attention_head_dim=32, num_layers=28, num_cross_attention_heads=16,
        cross_attention_head_dim=72, cross_attention_dim=1152, caption_channels=2304,
    )  # fmt: skip
    types = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    vae = AutoencoderDC(
        encoder_block_types=types, decoder_block_types=types, downsample_block_type="Conv",
        upsample_block_type="interpolate", scaling_factor=0.41407,
    )  # fmt: skip
    c = torch.randn(1, 8, 2304)
    return Generator(vae.eval(), transformer.eval(), c, Flow(), "flow_prediction")


BASES = {"sd2.1": sd21_base, "sd3.5-medium": sd35_medium, "sana-0.6b": sana_600m}


def adversaries(optimization: Optimization, base: str = "sd2.1") -> Adversaries:
    """G with both adapters, DINOv3-ViT-B's first nine blocks with their heads, EA-DISTS; all random."""
    G = BASES[base]()
    for name in ("stage1", "stage2"):
        add_adapter(G, name, Lora().rank, G.backbone.lora_targets[Lora().targets])
    if torch.get_default_device() == CPU:
        prepare(G, optimization, CPU)
    # DiffAugment's draws are data that shapes alone do not have
    D = build_discriminator(
        DiscriminatorConfig("dinov3", "random", layers=(3, 6, 9), width=768, diff_augment=""), G
    )
    losses = Losses.build(LossWeights(ea_dists=5.0, gan=0.5, mae=0.5), DistsConfig("random", "random"))
    return Adversaries(G, D, losses, TUDSR, optimization, "mode")


def on_the_cpu_without_data(module: torch.nn.Module | None) -> None:
    """Swap meta tensors for fake ones that believe to be on the CPU, where autocast has its rules."""
    for part in module.modules() if module else ():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty(p.shape), p.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def losses_without_data() -> Iterator[None]:
    """`.item()` of a tensor without data is 0, for the log's sake."""
    item = torch.Tensor.item
    torch.Tensor.item = lambda self: 0.0 if isinstance(self, FakeTensor) else item(self)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.Tensor.item = item  # type: ignore[method-assign]


class Kept:
    """What autograd holds in the place of a tensor, as long as it does."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Saved:
    """Counts the storages that autograd is keeping."""

    def __init__(self, parameters: Iterator[torch.Tensor]) -> None:
        self._ignored = {p.untyped_storage()._cdata for p in parameters}
        self._kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(self, tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor)
        if tensor.untyped_storage()._cdata not in self._ignored:
            self._kept.add(kept)
        return kept

    def take(self) -> int:
        """Bytes that are kept now."""
        storages = (kept.tensor.untyped_storage() for kept in self._kept)
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


class Live(TorchDispatchMode):
    """Within its context, counts the bytes of all tensors; those of `modules` are there from the start."""

    def __init__(self, *modules: torch.nn.Module | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()) if module else ():
                self._meet(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor)
        return result

    def _meet(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def peak(self) -> int:
        """The most bytes since the last call."""
        most, self.most = self.most, self.now
        return most


def counted(gan: Adversaries, stage: int) -> list[int]:
    """Bytes that each backward of one picture frees, in order: G, D, and so on for every chunk."""
    gan.generator.use(f"stage{stage}")
    x_L, x_H = torch.rand(1, 3, R, R) * 2 - 1, torch.rand(1, 3, R * stage, R * stage) * 2 - 1
    assert gan.discriminator is not None
    saved, found = Saved(iter([*gan.generator.parameters(), *gan.discriminator.parameters()])), []
    losses = algorithm_1(gan, x_L, x_H, T_1) if stage == 1 else algorithm_2(gan, x_L, x_H, T_1, T_2, R, N)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept.tensor):
        for loss in losses:
            found.append(saved.take())
            loss.value.backward()
    return found


def count(optimization: Optimization, base: str = "sd2.1", stages: int = 2) -> dict[str, Any]:
    """The saved-tensor report of both stages, or of the first alone."""
    with torch.device("meta"):
        gan = adversaries(optimization, base)
        if optimization.gradient_checkpointing:
            gan.generator.enable_gradient_checkpointing(optimization.checkpointed)
    with WITHOUT_DATA, losses_without_data():
        for part in (gan.generator, gan.discriminator, gan.losses):
            on_the_cpu_without_data(part)
        unet, phi = gan.generator.unet, gan.discriminator
        theta = adapter_parameters(gan.generator, "stage1")
        own = sum(p.numel() for name, p in unet.named_parameters() if "lora_" not in name)
        parts = (gan.generator, phi, gan.losses)
        weights = sum(p.nbytes for part in parts if part is not None for p in part.parameters())
        trained = sum(p.numel() for p in [*theta.values(), *(phi.trainable().values() if phi else ())])
        report: dict[str, Any] = {
            "unet_millions": round(own / 1e6, 3),
            "weights_gib": round(weights / GIB, 3),
            "lora_modules": len(theta) // 2,
            "lora_millions": round(sum(p.numel() for p in theta.values()) / 1e6, 3),
            "heads_millions": round(sum(p.numel() for p in phi.trainable().values()) / 1e6, 3) if phi else 0,
        }
        with Live(*parts) as live:
            one = counted(gan, 1)
            report |= stage_report(1, one, live.peak() + 8 * trained)
            if stages > 1:
                for p in theta.values():
                    p.grad = None
                two = counted(gan, 2)
                report |= stage_report(2, two, live.peak() + 8 * trained)
                report["stage2_over_stage1"] = round(max(two) / max(one), 4)
                report["one_backward_for_all_chunks_over_stage1"] = round(sum(two[::2]) / max(one), 4)
    return report


def stage_report(stage: int, backwards: list[int], peak: int) -> dict[str, Any]:
    """What a stage holds, in GiB."""
    return {
        f"stage{stage}_backwards_gib": [round(value / GIB, 3) for value in backwards],
        f"stage{stage}_peak_gib": round(peak / GIB, 3),
    }


def by_part(optimization: Optimization, base: str) -> dict[str, Any]:
    """The report of stage 1 by what is computed again: nothing, a part that has gradients, all."""
    choices = {"none": (), BACKBONE: (BACKBONE,), DECODER: (DECODER,), "all": PARTS}
    return {
        name: count(replace(optimization, gradient_checkpointing=bool(parts), checkpointed=parts), base, 1)
        for name, parts in choices.items()
    }


def real(optimization: Optimization) -> dict[str, Any]:
    """One optimizer step of stage 1, and one of stage 2 after its first chunk, with random weights."""
    torch.manual_seed(0)
    gan = adversaries(optimization)
    report: dict[str, Any] = {}
    assert gan.discriminator is not None
    for stage in (1, 2):
        gan.generator.use(f"stage{stage}")
        theta = list(adapter_parameters(gan.generator, f"stage{stage}").values())
        networks = {"generator": theta, "discriminator": list(gan.discriminator.trainable().values())}
        x_L, x_H = torch.rand(1, 3, R, R) * 2 - 1, torch.rand(1, 3, R * stage, R * stage) * 2 - 1
        losses = algorithm_1(gan, x_L, x_H, T_1) if stage == 1 else algorithm_2(gan, x_L, x_H, T_1, T_2, R, N)
        started = time.perf_counter()
        for loss in itertools.islice(losses, len(networks)):
            optimizer = torch.optim.AdamW(networks[loss.network], lr=5e-5)
            loss.value.backward()
            optimizer.step()
            report[f"stage{stage}_{loss.network}"] = {name: round(v, 5) for name, v in loss.terms.items()}
        losses.close()
        report[f"stage{stage}_seconds"] = round(time.perf_counter() - started, 1)
        report[f"stage{stage}_peak_gib"] = round(peak_memory(CPU) / GIB, 2)
        for parameters in networks.values():
            assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
            for p in parameters:
                p.grad = None
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--base", choices=tuple(BASES), default="sd2.1")
    parser.add_argument(
        "--checkpointing", action="store_true", help="compute activations again, where counted"
    )
    parser.add_argument("--by-part", action="store_true", help="stage 1, by what is computed again")
    parser.add_argument("--real", action="store_true", help="run instead of counting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    options = parser.parse_args()
    optimization = Optimization(
        precision=options.precision, gradient_checkpointing=options.real or options.checkpointing
    )
    if options.real:
        found = real(optimization)
    elif options.by_part:
        found = by_part(optimization, options.base)
    else:
        found = count(optimization, options.base)
    report = {
        "command": "python -m benchmarks.train_memory " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        **found,
    }
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
