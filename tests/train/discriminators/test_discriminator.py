"""D over pictures: features against DINOv3 itself, heads, freezing, spectral norm, weights, bad settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    DINOv3ConvNextBackbone,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from tudsr_runtime.errors import TrainingError
from tudsr_train.discriminators.base import (
    Discriminator,
    DiscriminatorConfig,
    adversarial_loss,
    build_discriminator,
)
from tudsr_train.discriminators.dino import DinoDiscriminator
from tudsr_train.discriminators.heads import HEADS, BlurPool, make_head
from tudsr_train.discriminators.vgg16 import VggDiscriminator
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import D3SR, TUDSR
from tudsr_train.vgg16 import VGG16, load_vgg16

TOY = DiscriminatorConfig("dinov3", "random", width=32, diff_augment="")


@pytest.fixture
def D(generator: Generator) -> DinoDiscriminator:
    made = build_discriminator(TOY, generator)
    assert isinstance(made, DinoDiscriminator)
    return made


def _vit_config(**changes: Any) -> DINOv3ViTConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_register_tokens": 4}
    return DINOv3ViTConfig(**(sizes | {"num_hidden_layers": 12} | changes))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 12-block DINOv3-ViT as the hub stores it: the model, not the backbone."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    model = DINOv3ViTModel(_vit_config())
    torch.nn.init.normal_(model.norm.weight)
    model.save_pretrained(folder)
    return folder


def test_features_are_those_of_the_blocks_one_by_one(vit: Path, generator: Generator) -> None:
    D = build_discriminator(DiscriminatorConfig("dinov3", str(vit)), generator)
    assert isinstance(D, DinoDiscriminator)
    x = torch.rand(2, 3, 64, 96) * 2 - 1
    model = DINOv3ViTModel.from_pretrained(vit).eval()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    pixels = ((x + 1) / 2 - mean) / std
    with torch.no_grad():
        hidden, position = model.embeddings(pixels), model.rope_embeddings(pixels)
        expected = []
        for number, block in enumerate(model.model.layer, 1):
            hidden = block(hidden, position_embeddings=position)
            if number in (3, 6, 9):
                patches = model.norm(hidden)[:, 1 + 4 :]
                expected.append(patches.transpose(1, 2).reshape(2, 32, 4, 6))
        features = D.features(x)
    assert len(features) == 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(features, expected, strict=True))


def test_nine_blocks_are_enough(vit: Path, generator: Generator) -> None:
    D = build_discriminator(DiscriminatorConfig("dinov3", str(vit)), generator)
    whole = DINOv3ViTBackbone.from_pretrained(vit, out_indices=[3, 6, 9]).eval()
    assert len(D.backbone.model.layer) == 9
    assert len(whole.model.layer) == 12
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = D.backbone(x).feature_maps, whole(x).feature_maps
    torch.testing.assert_close(ours, theirs)


def test_sizes_at_full_scale() -> None:
    published = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}
    with torch.device("meta"):
        whole = DINOv3ViTBackbone(_vit_config(**published, num_attention_heads=12))
        cut = DINOv3ViTBackbone(_vit_config(**published | {"num_hidden_layers": 9}, num_attention_heads=12))
    millions = [round(sum(p.numel() for p in m.parameters()) / 1e6, 2) for m in (whole, cut)]
    assert millions == [85.66, 64.39]
    sizes = {name: sum(p.numel() for p in make_head(name, 768, 16).parameters()) for name in HEADS}
    assert sizes == {"vagan_conv": 884_993, "omgsr_conv": 3_484_417}


@pytest.mark.parametrize(
    ("name", "side", "logits"),
    [("vagan_conv", 32, 8), ("vagan_conv", 64, 16), ("omgsr_conv", 32, 1), ("omgsr_conv", 64, 2)],
)
def test_logits_at_512_and_1024_pixels(name: str, side: int, logits: int) -> None:
    assert make_head(name, 24, 16)(torch.zeros(1, 24, side, side)).shape == (1, 1, logits, logits)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_head_says_the_least_side_that_it_can_score(name: str, stride: int) -> None:
    head = make_head(name, 8, stride)
    n = head.smallest
    assert head(torch.zeros(1, 8, n, n)).shape[-1] >= 1
    with pytest.raises(RuntimeError):
        head(torch.zeros(1, 8, n - 1, n - 1))


@pytest.mark.parametrize(("stride", "padding", "side"), [(1, 1, 31), (1, 2, 33), (2, 1, 16)])
def test_blur_pool_keeps_what_is_constant_and_removes_what_alternates(
    stride: int, padding: int, side: int
) -> None:
    pool = BlurPool(2, stride, padding)
    constant = pool(torch.full((1, 2, 32, 32), 3.0))
    assert constant.shape == (1, 2, side, side)
    assert torch.allclose(constant[..., 2:-2, 2:-2], torch.tensor(3.0))
    alternating = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 2, 32, 32)
    assert pool(alternating)[..., 2:-2, 2:-2].abs().max() < 1e-6


def test_the_backbone_is_frozen_and_in_eval_whatever_is_asked(D: DinoDiscriminator) -> None:
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    for mode in (True, False, True):
        D.train(mode)
        assert not any(module.training for module in D.backbone.modules())
        assert all(module.training is mode for module in D.heads.modules())
    # in train mode DINOv3 rescales its positions at random
    torch.testing.assert_close(D.features(x), D.features(x))
    D.requires_grad_(True)
    assert not any(p.requires_grad for p in D.backbone.parameters())
    assert all(p.requires_grad for p in D.trainable().values())
    assert {*D.trainable()} == {name for name, _ in D.named_parameters() if name.startswith("heads.")}


def test_the_generators_step_leaves_no_gradient_in_d(D: DinoDiscriminator) -> None:
    x_hat = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    with D.frozen():
        TUDSR.generator(D(x_hat)).backward()
    assert x_hat.grad is not None
    assert x_hat.grad.abs().max() > 0
    assert all(p.grad is None for p in D.parameters())
    sum(TUDSR.discriminator(D(-x_hat.detach()), D(x_hat.detach()))).backward()  # type: ignore[union-attr]
    assert {name for name, p in D.named_parameters() if p.grad is not None} == {*D.trainable()}


def test_it_learns_to_tell_noise_from_flat(D: DinoDiscriminator) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(D.trainable().values(), lr=3e-3)
    backbone = {name: p.clone() for name, p in D.backbone.named_parameters()}
    for _ in range(30):
        real = torch.rand(2, 3, 64, 64) * 2 - 1
        fake = (torch.rand(2, 3, 1, 1) * 2 - 1).expand(-1, -1, 64, 64)
        l_real, l_fake = TUDSR.discriminator(D(real), D(fake))
        optimizer.zero_grad()
        (0.5 * (l_real + l_fake)).backward()
        optimizer.step()
    # a discriminator that cannot tell them apart stays at 0.835 + 0.511 or above
    assert l_real.item() + l_fake.item() < 1.1
    assert all(torch.equal(backbone[name], p) for name, p in D.backbone.named_parameters())


def test_autocast_changes_nothing(D: DinoDiscriminator) -> None:
    D.eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        logits = D(x)
    torch.testing.assert_close(logits, D(x))  # of the same type, and nearer than bfloat16 could be
    assert all(level.dtype == torch.float32 for level in logits)


def test_a_checkpoint_brings_back_weights_and_spectral_norms(generator: Generator) -> None:
    first, second = (build_discriminator(TOY, generator, seed) for seed in (0, 1))
    second.backbone.load_state_dict(first.backbone.state_dict())
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    optimizer = torch.optim.AdamW(first.trainable().values(), lr=1e-2)
    for _ in range(3):
        TUDSR.generator(first(x)).backward()
        optimizer.step()
    state = first.checkpoint_state()
    assert sum(name.endswith(("._u", "._v")) for name in state) == 3 * 2 * 2
    assert not any(name.startswith("backbone.") for name in state)
    first(x)  # moves u and v: the state is a copy
    second.load_checkpoint_state(state)
    first.load_checkpoint_state(state)
    for _ in range(2):
        torch.testing.assert_close(first(x), second(x))
    with pytest.raises(TrainingError, match="not the configured one"):
        first.load_checkpoint_state({name: value for name, value in state.items() if "_u" not in name})


def test_the_seed_alone_decides_the_heads(generator: Generator) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    states = [build_discriminator(TOY, generator, seed).checkpoint_state() for seed in (3, 3, 4)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_pictures_are_changed_before_they_are_seen(generator: Generator) -> None:
    config = DiscriminatorConfig("dinov3", "random", width=32)
    D = build_discriminator(config, generator).eval()
    assert isinstance(D, DinoDiscriminator)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    logits = []
    for seed in (0, 0, 1):
        D.rng = torch.Generator().manual_seed(seed)
        logits.append(D(x)[0])
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("convnext")
    config = DINOv3ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], layer_scale_init_value=1.0
    )
    DINOv3ConvNextModel(config).save_pretrained(folder)
    return folder


def test_a_convnext_comes_through_the_same_door(convnext: Path, generator: Generator) -> None:
    D = build_discriminator(DiscriminatorConfig("dinov3-convnext", str(convnext)), generator)
    assert isinstance(D, DinoDiscriminator)
    assert len(D.backbone.model.stages) == 3
    whole = DINOv3ConvNextBackbone.from_pretrained(convnext, out_indices=[1, 2, 3]).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = D.backbone(x).feature_maps, whole(x).feature_maps
    torch.testing.assert_close(ours, theirs)
    assert [tuple(f.shape[1:]) for f in ours] == [(8, 16, 16), (16, 8, 8), (24, 4, 4)]
    assert [logit.shape[-1] for logit in D(x)] == [4, 2, 1]


@pytest.mark.parametrize("head", HEADS)
def test_untrained_networks_are_made_only_by_name(head: str, generator: Generator) -> None:
    for kind in ("dinov3", "dinov3-convnext"):
        D = build_discriminator(DiscriminatorConfig(kind, "random", head=head, width=32), generator)
        assert D.space == "pixel"
        logits = D(torch.rand(1, 3, 384, 384) * 2 - 1)
        assert len(logits) == 3
        assert all(logit.isfinite().all() for logit in logits)


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "dino"}, "'dino'; none, dinov3, dinov3-convnext, vgg16, diffusion are known"),
    ({"precision": "fp8"}, "precision 'fp8' is not known; fp32 and bf16 are"),
    ({"kind": "diffusion", "precision": "bf16"}, "a diffusion one computes in float32 alone"),
    ({"kind": "none"}, "none to build; dinov3, dinov3-convnext, vgg16, diffusion can be"),
    ({"width": 48}, "width must be a multiple of 32"),
    ({"kind": "diffusion", "lora_rank": 0}, "lora_rank must be 1 to"),
    ({"head": "mlp"}, "'mlp' is not known; vagan_conv, omgsr_conv are"),
    ({"diff_augment": "flip"}, "'flip' is not known"),
    ({"layers": (6, 3)}, "ascending numbers of blocks"),
    ({"layers": (0, 3)}, "layers are counted from 1"),
    ({"kind": "dinov3-convnext", "layers": (3, 6, 9)}, "ascending numbers of stages, 1 to 4"),
])  # fmt: skip
def test_settings_that_cannot_be_meant(changes: dict[str, Any], message: str, generator: Generator) -> None:
    with pytest.raises(TrainingError, match=message):
        build_discriminator(
            DiscriminatorConfig(**{"kind": "dinov3", "weights": "random"} | changes), generator
        )


@pytest.mark.parametrize("kind", ["dinov3", "dinov3-convnext"])
def test_absent_weights_are_an_error_that_says_where_to_get_them(
    kind: str, tmp_path: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for weights in (str(tmp_path / "nowhere"), ""):
        with pytest.raises(TrainingError, match="no DINOv3 weights at") as caught:
            build_discriminator(DiscriminatorConfig(kind, weights), generator)
        assert "discriminator.weights" in str(caught.value.hint)


def test_weights_that_do_not_fill_the_network_are_refused(
    vit: Path, tmp_path: Path, generator: Generator
) -> None:
    small = DINOv3ViTModel(_vit_config(num_hidden_layers=4))
    small.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((vit / "config.json").read_text())
    with pytest.raises(TrainingError, match="weights are missing"):
        build_discriminator(DiscriminatorConfig("dinov3", str(tmp_path)), generator)
    with pytest.raises(TrainingError, match="ascending numbers of blocks, 1 to 12"):
        build_discriminator(DiscriminatorConfig("dinov3", str(vit), layers=(3, 13)), generator)


@pytest.mark.parametrize("side", [72, 48])
def test_pictures_that_d_cannot_look_at(side: int, D: Discriminator) -> None:
    with pytest.raises(TrainingError, match=f"{side} x {side} pixels: .* multiples of 16 and at least 64"):
        D(torch.zeros(1, 3, side, side))


def test_each_kind_has_its_losses() -> None:
    assert adversarial_loss(DiscriminatorConfig("dinov3")) is TUDSR
    assert adversarial_loss(DiscriminatorConfig("diffusion")) is D3SR


VGG, DINO, CONVNEXT = (
    DiscriminatorConfig(kind, "random", diff_augment="") for kind in ("vgg16", "dinov3", "dinov3-convnext")
)


def test_vgg16_features_are_those_of_the_convolutions_one_by_one(generator: Generator) -> None:
    D = build_discriminator(VGG, generator)
    assert isinstance(D, VggDiscriminator)
    weights, x = load_vgg16("random"), torch.rand(2, 3, 32, 64) * 2 - 1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    h, expected = ((x + 1) / 2 - mean) / std, []
    for stage, numbers in enumerate(VGG16[:4], 1):
        for number in numbers:
            h = F.conv2d(h, weights[f"features.{number}.weight"], padding=1).relu()
        if stage > 1:
            expected.append(h)
        h = F.max_pool2d(h, 2)
    assert [f.shape[1:] for f in D.features(x)] == [(128, 16, 32), (256, 8, 16), (512, 4, 8)]
    for found, raw, size in zip(D.features(x), expected, D.backbone.sizes, strict=True):
        assert torch.allclose(found * size, raw, atol=1e-4)
        assert 0.2 < float(found.square().mean().sqrt()) < 5


def test_a_vgg16_discriminator_trains_its_heads_alone_and_leads_the_picture(generator: Generator) -> None:
    D, x = build_discriminator(VGG, generator), torch.rand(1, 3, 64, 64) * 2 - 1
    assert all(name.startswith("heads.") for name in D.trainable())
    with D.frozen():
        x.requires_grad_(True)
        TUDSR.generator(D(x)).backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in D.parameters())
    sum(TUDSR.discriminator(D(x.detach()), D(-x.detach()))).backward()
    assert all(p.grad is not None for p in D.trainable().values())
    assert all(p.grad is None for p in D.backbone.parameters())


@pytest.mark.parametrize("layers", [(3, 2), (0, 1), (4, 6)])
def test_a_vgg16_has_five_stages(layers: tuple[int, ...], generator: Generator) -> None:
    with pytest.raises(TrainingError, match=r"ascending numbers of stages, 1 to 5|counted from 1"):
        build_discriminator(DiscriminatorConfig("vgg16", "random", layers=layers), generator)


@pytest.mark.parametrize("config", [VGG, DINO, CONVNEXT], ids=lambda config: config.kind)
def test_a_backbone_in_bfloat16_gives_nearly_the_same_logits_and_float32_heads(
    config: DiscriminatorConfig, generator: Generator
) -> None:
    cosines = []
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16) * 2 - 1, scale_factor=4, mode="bilinear")
        logits, gradients = [], []
        for precision in ("fp32", "bf16"):
            D = build_discriminator(replace(config, precision=precision), generator).eval()
            at = x.clone().requires_grad_()
            levels = D(at)
            assert all(level.dtype == torch.float32 for level in levels)
            torch.stack([level.mean() for level in levels]).sum().backward()
            assert at.grad is not None
            logits.append(torch.cat([level.detach().flatten() for level in levels]))
            gradients.append(at.grad.flatten())
        assert not torch.equal(*logits)  # else nothing was computed in bfloat16
        assert torch.allclose(*logits, atol=0.02)
        cosines.append(float(torch.cosine_similarity(*gradients, dim=0)))
    assert sum(cosines) / len(cosines) > 0.7
