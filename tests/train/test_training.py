"""The three trainings end to end, tiny: they learn, freeze what they must, and resume exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.recipes import DISCRIMINATOR, LOSS, optimization, stage1_config, stage2_config
from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.adapters import adapter_parameters, add_adapter, load_adapter
from tudsr_train.base import train_base
from tudsr_train.bases.nano import NanoBase
from tudsr_train.config import BaseConfig, Lora
from tudsr_train.data.sources import Data
from tudsr_train.discriminators.base import DiscriminatorConfig, build_discriminator
from tudsr_train.gan import Adversaries
from tudsr_train.generator import Generator, one_step
from tudsr_train.losses.adversarial import TUDSR
from tudsr_train.losses.dists import DistsConfig
from tudsr_train.losses.reconstruction import Losses, LossWeights
from tudsr_train.run.loop import Loss
from tudsr_train.run.precision import autocast
from tudsr_train.stage1 import algorithm_1, train_stage1
from tudsr_train.stage2 import algorithm_2, backwards_per_step, chunking, joining, train_stage2, upsampling


def _weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def _gan(generator: Generator, adversarial: bool = True) -> Adversaries:
    if not adversarial:
        losses = Losses.build(LossWeights(ea_dists=1.0, mae=5.0), DistsConfig("random", "random"))
        return Adversaries(generator, None, losses, TUDSR, optimization(), "mode")
    D = build_discriminator(DISCRIMINATOR, generator)
    return Adversaries(generator, D, Losses(LOSS), TUDSR, optimization(), "mode")


def _two_adapters(generator: Generator) -> None:
    for name in ("stage1", "stage2"):
        add_adapter(generator, name, 4, Lora().target_modules)


def _pair(side: int, N: int = 1, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    return tuple(torch.rand(1, 3, n * side, n * side, dtype=dtype) * 2 - 1 for n in (1, N))  # type: ignore[return-value]


def _backward_each(losses: Iterator[Loss]) -> Iterator[Loss]:
    for loss in losses:
        loss.value.backward()
        yield loss


def test_the_whole_recipe_runs_and_everything_frozen_stays(
    pool: Data, tiny_model: NanoBase, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    config = BaseConfig(model=tiny_model, data=pool, R=32, optimization=optimization(steps=3))
    train_base(config, base, "never")
    before = Generator.load(base)
    assert any(p.abs().max() > 0 for p in before.unet.conv_out.parameters())

    train_stage1(stage1_config(base, pool, steps=3), tmp_path / "stage1", "never")
    stage1 = _weights(tmp_path / "stage1")
    config2 = stage2_config(base, tmp_path / "stage1", pool, steps=2, accumulation=4)
    train_stage2(config2, tmp_path / "stage2", "never")

    assert _weights(tmp_path / "stage1") == stage1
    G = Generator.load(base)
    assert G.base_sha256 == before.base_sha256
    first, second = (load_adapter(G, tmp_path / name, name) for name in ("stage1", "stage2"))
    assert first is not None
    assert second is not None
    assert (first.stage, first.timestep, first.factor) == (1, 200, 2)
    assert (second.stage, second.timestep, second.factor) == (2, 50, 2)

    lines = [json.loads(line) for line in (tmp_path / "stage2.run" / "log.jsonl").read_text().splitlines()]
    assert {"L_G", "L_gen", "mae", "L_D", "L_real", "L_fake", "logit_real", "logit_fake"} <= {*lines[0]}
    assert {"gradient_norm/generator", "gradient_norm/discriminator", "lr/generator"} <= {*lines[0]}
    assert {"images_per_s", "peak_memory_gib", "skipped"} <= {*lines[0]}
    assert {"validation/PSNR stage 1", "validation/PSNR stage 2"} <= {*lines[-1]}
    assert (tmp_path / "stage2.run" / "validation" / "step-000002.png").is_file()
    assert (tmp_path / "stage2.run" / "config.yaml").is_file()


def test_a_base_goes_on_from_another_one(pool: Data, tiny_model: NanoBase, tmp_path: Path) -> None:
    """Its weights and its prompt, not those that the seed would draw."""
    first = BaseConfig(model=tiny_model, data=pool, R=32, optimization=optimization(steps=2))
    train_base(first, tmp_path / "first", "never")
    second = replace(
        first, start=str(tmp_path / "first"), seed=7, optimization=optimization(steps=1, lr=1e-9)
    )
    train_base(second, tmp_path / "second", "never")
    a, b = (Generator.load(tmp_path / name) for name in ("first", "second"))
    assert torch.equal(a.prompt_embeds, b.prompt_embeds)
    for one, other in zip(a.unet.parameters(), b.unet.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)
    wider = replace(second, model=replace(tiny_model, margin=tiny_model.margin + 4))
    with pytest.raises(TrainingError, match="first is no base of this `model`"):
        train_base(wider, tmp_path / "third", "never")


@pytest.mark.usefixtures("one_thread")
def test_results_in_half_are_the_rounded_ones_in_files_of_half_the_size(
    pool: Data, tiny_model: NanoBase, tmp_path: Path
) -> None:
    for store in ("fp32", "fp16"):
        base, steps = tmp_path / f"base-{store}", optimization(steps=2, store=store)
        train_base(BaseConfig(model=tiny_model, data=pool, R=32, optimization=steps), base, "never")
        adapter = stage1_config(tmp_path / "base-fp32", pool, steps=2, store=store)
        train_stage1(adapter, tmp_path / f"stage1-{store}", "never")
    whole, half = (Generator.load(tmp_path / f"base-{store}") for store in ("fp32", "fp16"))
    for name in ("base-{}/unet/diffusion_pytorch_model.safetensors", "stage1-{}/adapter_model.safetensors"):
        sizes = [(tmp_path / name.format(store)).stat().st_size for store in ("fp32", "fp16")]
        assert sizes[1] < 0.65 * sizes[0]
    for one, other in zip(whole.unet.parameters(), half.unet.parameters(), strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one.half().float(), other)
    assert load_adapter(whole, tmp_path / "stage1-fp16", "stage1") is not None


def test_in_the_step_of_g_d_gets_no_gradient_and_in_that_of_d_g_gets_none(generator: Generator) -> None:
    add_adapter(generator, "stage1", 4, Lora().target_modules)
    gan = _gan(generator)
    assert gan.discriminator is not None
    theta, phi = adapter_parameters(generator, "stage1"), gan.discriminator.trainable()
    losses = algorithm_1(gan, *_pair(64), 200)

    of_G = next(losses)
    assert of_G.network == "generator"
    of_G.value.backward()
    assert all(p.grad is None for p in gan.discriminator.parameters())
    assert all(p.grad is not None for p in theta.values())
    after_G = {name: p.grad.clone() for name, p in theta.items() if p.grad is not None}

    of_D = next(losses)
    assert of_D.network == "discriminator"
    of_D.value.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in phi.values())
    assert all(torch.equal(p.grad, after_G[name]) for name, p in theta.items() if p.grad is not None)
    assert next(losses, None) is None

    phi_gradients = {name: p.grad.clone() for name, p in phi.items() if p.grad is not None}
    next(algorithm_1(gan, *_pair(64), 200)).value.backward()
    assert all(torch.equal(p.grad, phi_gradients[name]) for name, p in phi.items() if p.grad is not None)


def test_stage_2_trains_theta_2_and_phi_2_alone(generator: Generator) -> None:
    _two_adapters(generator)
    gan = _gan(generator)
    before = {key: p.detach().clone() for key, p in generator.named_parameters()}
    losses = list(_backward_each(algorithm_2(gan, *_pair(64, 2), 200, 50, 64, 2)))
    assert [loss.network for loss in losses] == ["generator", "discriminator"] * 4
    with_gradient = {key for key, p in generator.named_parameters() if p.grad is not None}
    assert with_gradient == {f"unet.{key}" for key in adapter_parameters(generator, "stage2")}
    assert all(torch.equal(before[key], p) for key, p in generator.named_parameters())
    assert gan.discriminator is not None
    assert all(p.grad is None for p in gan.discriminator.backbone.parameters())


def test_the_gradient_of_the_chunk_loop_is_that_of_the_batch_of_chunks(generator: Generator) -> None:
    _two_adapters(generator)
    # DiffAugment would draw once per chunk, or once for them all; spectral norms move on at every forward
    D = build_discriminator(replace(DISCRIMINATOR, diff_augment=""), generator).double().eval()
    gan = Adversaries(generator.double(), D, Losses(LOSS), TUDSR, optimization(), "mode")
    x_L, y_H = _pair(64, 2, torch.float64)
    theta_2, phi_2 = adapter_parameters(generator, "stage2"), D.trainable()
    list(_backward_each(algorithm_2(gan, x_L, y_H, 200, 50, 64, 2)))
    looped = [p.grad.clone() / 4 for p in [*theta_2.values(), *phi_2.values()]]

    generator.zero_grad()
    D.zero_grad()
    generator.use("stage1")
    y_L = upsampling(gan.G(x_L, 200).x.detach(), 2)
    generator.use("stage2")
    y_hat = gan.G(torch.cat(list(chunking(y_L, 64))), 50)
    y_chunks = torch.cat(list(chunking(y_H, 64)))
    with gan.D_frozen():
        gan.L_G(y_hat, y_chunks, gan.D(y_hat)).value.backward()
    gan.L_D(gan.D(y_hat.detach()), gan.D(gan.real(y_chunks))).value.backward()
    batched = [p.grad for p in [*theta_2.values(), *phi_2.values()]]
    difference = max((a - b).abs().max().item() for a, b in zip(looped, batched, strict=True))
    assert difference < 1e-12


def test_chunks_come_row_by_row_tile_the_picture_and_join_again() -> None:
    y = torch.arange(36.0).view(1, 1, 6, 6)
    chunks = list(chunking(y, 2))
    assert [int(chunk[0, 0, 0, 0]) for chunk in chunks] == [0, 2, 4, 12, 14, 16, 24, 26, 28]
    assert torch.equal(joining(chunks, 3), y)
    with pytest.raises(ValueError, match="does not divide"):
        list(chunking(y, 4))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    stage: int, pool: Data, tiny_base: Path, tiny_stage1: Path, tmp_path: Path
) -> None:
    def train(name: str, steps: int) -> None:
        if stage == 1:
            train_stage1(stage1_config(tiny_base, pool, steps=steps, save_every=1), tmp_path / name, "auto")
        else:
            config = stage2_config(tiny_base, tiny_stage1, pool, steps=steps, save_every=1, accumulation=4)
            train_stage2(config, tmp_path / name, "auto")

    train("whole", 2)
    train("halves", 1)
    train("halves", 2)
    assert _weights(tmp_path / "halves") == _weights(tmp_path / "whole")
    for file in ("generator.safetensors", "discriminator.safetensors"):
        halves, whole = (tmp_path / f"{name}.run" / "step-000002" / file for name in ("halves", "whole"))
        assert halves.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("accumulate", "expected"), [("chunks", 4), ("images", 16), ("none", 1)])
def test_the_readings_of_accumulation_in_stage_2(accumulate: str, expected: int) -> None:
    config = stage2_config(Path("b"), Path("s"), Data(), accumulation=4)
    assert backwards_per_step(replace(config, accumulate=accumulate)) == expected
    with pytest.raises(TrainingError, match="chunks, images, none"):
        backwards_per_step(replace(config, accumulate="pictures"))


@pytest.mark.usefixtures("one_thread")
def test_a_step_after_every_chunk_resumes_exactly_too(
    pool: Data, tiny_base: Path, tiny_stage1: Path, tmp_path: Path
) -> None:
    def train(name: str, steps: int) -> None:
        config = replace(
            stage2_config(tiny_base, tiny_stage1, pool, steps=steps, save_every=3),
            accumulate="none", discriminator=DiscriminatorConfig(), loss=LossWeights(mae=1.0),
        )  # fmt: skip
        train_stage2(config, tmp_path / name, "auto")

    train("whole", 8)
    run = tmp_path / "whole.run"
    assert sorted(path.name for path in run.glob("step-*")) == ["step-000004", "step-000008"]
    train("again", 8)
    assert _weights(tmp_path / "again") == _weights(tmp_path / "whole")
    shutil.rmtree(run / "step-000008")
    train("whole", 8)
    assert _weights(tmp_path / "again") == _weights(tmp_path / "whole")


@pytest.mark.usefixtures("one_thread")
def test_gradient_checkpointing_and_posterior_leave_the_result_alone(
    pool: Data, tiny_base: Path, tmp_path: Path
) -> None:
    # nano's autoencoder is deterministic: a sample of its posterior is its mode
    plain = stage1_config(tiny_base, pool, steps=2)
    other = replace(stage1_config(tiny_base, pool, steps=2, gradient_checkpointing=True), posterior="mode")
    train_stage1(plain, tmp_path / "plain", "never")
    train_stage1(other, tmp_path / "other", "never")
    assert _weights(tmp_path / "plain") == _weights(tmp_path / "other")


@pytest.mark.parametrize("stage", [1, 2])
def test_a_single_pair_is_overfitted(stage: int, generator: Generator) -> None:
    torch.manual_seed(0)
    _two_adapters(generator)
    generator.use(f"stage{stage}")
    gan = _gan(generator, adversarial=False)
    x_L, x_H = _smooth_pair(stage)
    theta = list(adapter_parameters(generator, f"stage{stage}").values())
    optimizer = torch.optim.AdamW(theta, lr=5e-3)
    terms: list[list[dict[str, float]]] = []
    for _ in range(24 if stage == 1 else 20):
        losses = algorithm_1(gan, x_L, x_H, 200) if stage == 1 else algorithm_2(gan, x_L, x_H, 200, 50, 16, 2)
        terms.append([])
        for loss in _backward_each(losses):  # `accumulate: none`: a step after every chunk
            terms[-1].append(loss.terms)
            optimizer.step()
            optimizer.zero_grad()
    for name in ("mae", "ea_dists"):
        first, last = (sum(chunk[name] for chunk in step) for step in (terms[0], terms[-1]))
        assert last < first * 2 / 3, name


def _smooth_pair(stage: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of waves, and what is left of it at half the contrast and a quarter of the resolution."""
    side = 16 * stage
    grid = torch.arange(side) / side
    wave = torch.sin(12 * grid)[:, None] * torch.cos(9 * grid)[None]
    x_H = torch.stack([wave, wave.T, wave * wave])[None] * 0.8
    x_L = torch.nn.functional.interpolate(x_H / 2, size=(4 * stage, 4 * stage), mode="area")
    return torch.nn.functional.interpolate(x_L, size=(16, 16), mode="bilinear"), x_H


def test_what_cannot_be_meant_is_refused(
    pool: Data, tiny_base: Path, tiny_stage1: Path, tmp_path: Path
) -> None:
    config = stage1_config(tiny_base, pool, steps=1)
    with pytest.raises(TrainingError, match="no checkpoint here"):
        train_stage1(config, tmp_path / "a", str(tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match=r"fp16 is refused.*discriminator's twice"):
        train_stage1(stage1_config(tiny_base, pool, steps=1, precision="fp16"), tmp_path / "a", "never")
    with pytest.raises(TrainingError, match=r"kind is none, but loss.gan is 0.5"):
        train_stage1(replace(config, discriminator=DiscriminatorConfig()), tmp_path / "a", "never")
    with pytest.raises(TrainingError, match="one must divide the other"):
        train_stage2(stage2_config(tiny_base, tiny_stage1, pool, accumulation=3), tmp_path / "a", "never")
    with pytest.raises(BundleError, match="its prompt is stored"):
        train_stage1(replace(config, prompt="a photograph"), tmp_path / "a", "never")


def test_a_run_starts_from_an_adapter_and_from_the_d_of_a_checkpoint(
    pool: Data, tiny_base: Path, tmp_path: Path
) -> None:
    train_stage1(stage1_config(tiny_base, pool, steps=2), tmp_path / "first", "never")
    still = replace(
        stage1_config(tiny_base, pool, steps=1, lr=1e-12),
        init=str(tmp_path / "first"),
        init_discriminator=str(tmp_path / "first.run" / "step-000002"),
        seed=9,
    )
    train_stage1(still, tmp_path / "second", "never")
    for folder, file in (("", "adapter_model"), (".run/step-{}", "discriminator")):
        one, other = (
            load_file(tmp_path / (name + folder.format(step)) / f"{file}.safetensors")
            for name, step in (("first", "000002"), ("second", "000001"))
        )
        assert one.keys() == other.keys()
        trained = [key for key in one if not key.endswith(("._u", "._v"))]
        assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in trained)


def test_an_adapter_of_another_rank_or_a_run_without_a_d_is_nothing_to_start_from(
    pool: Data, tiny_base: Path, tiny_stage1: Path, tmp_path: Path
) -> None:
    config = stage1_config(tiny_base, pool, steps=1)
    wider = replace(config, init=str(tiny_stage1), lora=Lora(rank=6))
    with pytest.raises(TrainingError, match="114 weights, this one 114, or other shapes"):
        train_stage1(wider, tmp_path / "out", "never")
    alone = replace(config, discriminator=DiscriminatorConfig(), loss=LossWeights(mae=1.0))
    train_stage1(alone, tmp_path / "alone", "never")
    without = replace(config, init_discriminator=str(tmp_path / "alone.run" / "step-000001"))
    with pytest.raises(TrainingError, match="a run without a discriminator"):
        train_stage1(without, tmp_path / "out", "never")


def test_milestones_stay(pool: Data, tiny_base: Path, tmp_path: Path) -> None:
    config = stage1_config(tiny_base, pool, steps=5, save_every=1, keep=1, keep_every=2)
    alone = replace(config, discriminator=DiscriminatorConfig(), loss=LossWeights(mae=1.0))
    train_stage1(alone, tmp_path / "out", "never")
    found = sorted(path.name for path in (tmp_path / "out.run").glob("step-*"))
    assert found == ["step-000002", "step-000004", "step-000005"]


def _on_bf16_s_grid(x: torch.Tensor) -> bool:
    return torch.equal(x, x.bfloat16().float())


@pytest.mark.parametrize("autoencoder", ["bf16", "fp32"])
def test_in_bf16_eq_2_is_float32_and_the_autoencoder_as_it_is_asked_for(
    autoencoder: str, stable_diffusion_like_base: Path
) -> None:
    o = optimization(precision="bf16", autoencoder_precision=autoencoder)
    G = Generator.load(stable_diffusion_like_base)
    gan = Adversaries(G, None, Losses(LOSS), TUDSR, o, "mode")
    x_L = torch.rand(1, 3, 64, 64) * 2 - 1
    predictions: list[torch.Tensor] = []
    G.unet.register_forward_hook(lambda _module, _inputs, output: predictions.append(output[0]))
    with torch.no_grad():
        x_hat = gan.G(x_L, 200)
        with autocast(o, x_L.device):
            z_L = gan._encode(x_L)
    assert predictions[0].dtype == torch.bfloat16
    expected = one_step(z_L.float(), predictions[0].float(), G.alphas_cumprod[200])
    assert x_hat.z is not None
    torch.testing.assert_close(x_hat.z, expected, rtol=1e-6, atol=1e-6)
    assert _on_bf16_s_grid(z_L.float()) == (autoencoder == "bf16")
    assert not _on_bf16_s_grid(x_hat.z)
    assert _on_bf16_s_grid(x_hat.x) == (autoencoder == "bf16")


def test_the_autoencoder_has_no_other_precision(tiny_base: Path, pool: Data, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="autoencoder_precision 'fp16' is not supported"):
        train_stage1(stage1_config(tiny_base, pool, autoencoder_precision="fp16"), tmp_path / "a", "never")
