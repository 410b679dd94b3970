"""Both stages on every kind of backbone: they learn, resume exactly, and go through every discriminator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.backbones.bases import MAKERS, make_base
from tests.train.recipes import stage1_config, stage2_config
from tudsr_runtime.errors import TrainingError
from tudsr_train.adapters import adapter_parameters, add_adapter
from tudsr_train.bases.prompt import save_prompt
from tudsr_train.config import Optimization
from tudsr_train.data.sources import Data
from tudsr_train.discriminators.base import DiscriminatorConfig, build_discriminator
from tudsr_train.discriminators.diffusion import DiffusionDiscriminator
from tudsr_train.gan import Adversaries
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import TUDSR
from tudsr_train.losses.reconstruction import Losses, LossWeights
from tudsr_train.noising import Flow, VariancePreserving
from tudsr_train.recomputation import PARTS
from tudsr_train.run.precision import prepare
from tudsr_train.stage1 import algorithm_1, train_stage1
from tudsr_train.stage2 import algorithm_2, train_stage2
from tudsr_train.step import one_step

KINDS = tuple(MAKERS)
FLOWS = ("sd3", "sana", "flux")
OWN = DiscriminatorConfig("diffusion", "base", lora_rank=2)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The base of a kind with its prompt stored, made on first use."""
    folder = tmp_path_factory.mktemp("bases")

    def get(kind: str) -> Path:
        if not (folder / kind).is_dir():
            base = make_base(kind, folder / kind)
            c = Generator.load(base).conditions
            save_prompt(base, c | {"prompt_embeds": c["prompt_embeds"][:, :4]})
        return folder / kind

    return get


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_learnt_in_both_stages(kind: str, bases: Callable[[str], Path]) -> None:
    G = Generator.load(bases(kind))
    for name in ("stage1", "stage2"):
        add_adapter(G, name, 4, G.backbone.lora_targets["standard"])
    gan = Adversaries(G, None, Losses(LossWeights(mae=1.0)), TUDSR, Optimization(precision="fp32"), "mode")
    x_L, x_H, y_H = (torch.rand(1, 3, side, side) * 2 - 1 for side in (32, 32, 64))
    for stage in (1, 2):
        G.use(f"stage{stage}")
        optimizer = torch.optim.AdamW(adapter_parameters(G, f"stage{stage}").values(), lr=1e-2)
        seen = []
        for _ in range(4):
            steps = (
                algorithm_1(gan, x_L, x_H, 200) if stage == 1 else algorithm_2(gan, x_L, y_H, 200, 50, 32, 2)
            )
            seen.append(0.0)
            for loss in steps:
                loss.value.backward()
                seen[-1] += loss.value.item()
            optimizer.step()
            optimizer.zero_grad()
        assert seen[-1] < seen[0], seen


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", FLOWS)
def test_a_resumed_run_of_both_stages_equals_an_uninterrupted_one(
    kind: str, bases: Callable[[str], Path], pool: Data, tmp_path: Path
) -> None:
    def train(name: str, steps: int, stage: int) -> bytes:
        changes = {"steps": steps, "save_every": 1}
        if stage == 1:
            config = replace(stage1_config(bases(kind), pool, **changes), discriminator=OWN)
            train_stage1(config, tmp_path / name, "auto")
        else:
            second = stage2_config(bases(kind), tmp_path / "1", pool, accumulation=4, **changes)
            train_stage2(replace(second, discriminator=OWN, prompt_tokens=2), tmp_path / name, "auto")
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    assert train("1", 1, 1) != train("1", 2, 1) == train("1 whole", 2, 1)
    assert train("2", 1, 2) != train("2", 2, 2) == train("2 whole", 2, 2)


def kept_and_gradients(base: Path, parts: tuple[str, ...]) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that autograd keeps for a backward through all of G, and the gradient of every weight."""
    G = Generator.load(base).requires_grad_(True)
    G.enable_gradient_checkpointing(parts)
    x_L = torch.linspace(-1, 1, 3 * 32 * 32).sin().view(1, 3, 32, 32)
    sizes: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = G.decode(G.denoise(G.encode(x_L), 200)).square().sum()
    loss.backward()
    named = G.named_parameters()
    return sum(sizes), {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_can_compute_its_activations_again(kind: str, bases: Callable[[str], Path]) -> None:
    most, expected = kept_and_gradients(bases(kind), ())
    assert {name.split(".")[0] for name in expected} == {"unet", "vae"}
    saved = 0
    for part in PARTS:
        kept, found = kept_and_gradients(bases(kind), (part,))
        assert kept < 0.97 * most, part
        saved += most - kept
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f"{name}: {m}")
    kept, _ = kept_and_gradients(bases(kind), PARTS)
    assert most - kept == pytest.approx(saved, rel=0.05)


def test_a_configuration_chooses_the_parts(bases: Callable[[str], Path]) -> None:
    G = Generator.load(bases("sd3"))
    prepare(G, Optimization(checkpointed=("decoder",)), torch.device("cpu"))
    parts = (G.unet, G.vae.encoder, G.vae.decoder)
    assert not any(part.gradient_checkpointing for part in parts)
    chosen = Optimization(gradient_checkpointing=True, checkpointed=("decoder",))
    prepare(G, chosen, torch.device("cpu"))
    assert [part.gradient_checkpointing for part in parts] == [False, False, True]
    with pytest.raises(TrainingError, match="'unet'; backbone, encoder and decoder are known"):
        Optimization(checkpointed=("backbone", "unet"))


@pytest.mark.parametrize("kind", FLOWS)
def test_the_base_itself_is_a_discriminator(kind: str, bases: Callable[[str], Path]) -> None:
    G = Generator.load(bases(kind))
    add_adapter(G, "x", 2, G.backbone.lora_targets["standard"])
    before = {name: p.clone() for name, p in G.unet.named_parameters()}
    D = build_discriminator(OWN, G)
    assert isinstance(D, DiffusionDiscriminator)
    assert all(torch.equal(before[name], p) for name, p in G.unet.named_parameters())
    z = torch.randn(2, G.codec.channels, 8, 8, requires_grad=True)
    (logits,) = D(z)
    side = 8 // G.backbone.cells(G.unet)
    assert logits.shape == (2, 1, side, side)
    logits.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    trained = D.trainable()
    assert any("lora_" in name for name in trained)
    heads = [p.grad for name, p in trained.items() if name.startswith("heads.")]
    assert all(gradient is not None for gradient in heads)


def test_a_random_discriminator_sees_a_flows_noise(bases: Callable[[str], Path]) -> None:
    G = Generator.load(bases("sd3"))
    D = build_discriminator(DiscriminatorConfig("diffusion", "random", width=32), G)
    assert isinstance(D, DiffusionDiscriminator)
    assert isinstance(D.noising, Flow)
    assert D(torch.randn(2, 16, 16, 16))[0].isfinite().all()


def test_a_flows_noise_is_undone_by_one_step() -> None:
    flow, (z, eps) = Flow(), torch.randn(2, 3, 4, 2, 2)
    t = flow.draw(3, torch.Generator().manual_seed(1), torch.device("cpu"))
    assert 1 <= t.min() <= t.max() <= 1000
    z_t = flow.add(z, eps, t)
    sigma = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(z_t, (1 - sigma) * z + sigma * eps)
    torch.testing.assert_close(one_step(z_t, eps - z, sigma, "flow_prediction"), z)
    torch.testing.assert_close(one_step(z_t, z, sigma, "sample"), z)
    assert torch.equal(flow.told(torch.tensor([200, 50]), 1000.0), torch.tensor([200.0, 50.0]))
    assert torch.equal(flow.told(torch.tensor([250]), 1.0), torch.tensor([0.25]))


def test_draws_of_timesteps_are_those_of_before() -> None:
    rng, again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    drawn = VariancePreserving(torch.linspace(1, 0.01, 1000)).draw(5, rng, torch.device("cpu"))
    assert torch.equal(drawn, torch.randint(1000, (5,), generator=again))


def test_a_picture_beyond_the_known_positions_is_refused(
    bases: Callable[[str], Path], pool: Data, tmp_path: Path
) -> None:
    config = replace(stage1_config(bases("sd3"), pool), R=192)
    with pytest.raises(TrainingError, match="R is 192, but sd3 knows positions of at most 128 px"):
        train_stage1(config, tmp_path / "out", "never")
