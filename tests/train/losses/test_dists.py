"""DISTS against its authors' own code, EA-DISTS, and where the weights come from."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.losses.dists import CHANNELS, DISTS, DistsConfig, average_per_stage, load_alpha_beta
from tudsr_train.losses.reconstruction import Losses, LossWeights, ea_dists, sobel
from tudsr_train.vgg16 import VGG16, load_vgg16

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("DISTS_pytorch") is None, reason="needs DISTS-pytorch (the [dev] extra)"
)


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return load_vgg16("random")


@pytest.fixture(scope="module")
def dists(vgg16: dict[str, Tensor]) -> DISTS:
    return DISTS(vgg16, *load_alpha_beta("random"))


def _torchvision_vgg16(state: dict[str, Tensor]) -> nn.Module:
    """VGG16 with the layers, and the numbers of layers, that torchvision's has."""
    layers: list[nn.Module] = []
    for stage in VGG16:
        for number in stage:
            weight = state[f"features.{number}.weight"]
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            convolution.load_state_dict({"weight": weight, "bias": state[f"features.{number}.bias"]})
            layers += [convolution, nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.fixture
def reference(vgg16: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The authors' DISTS over the same VGG16, with the published alpha and beta; no torchvision."""
    torchvision = types.ModuleType("torchvision")
    vars(torchvision)["transforms"] = types.ModuleType("torchvision.transforms")
    vars(torchvision)["models"] = types.SimpleNamespace(
        vgg16=lambda pretrained: types.SimpleNamespace(features=_torchvision_vgg16(vgg16))  # noqa: ARG005
    )
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    published: nn.Module = importlib.import_module("DISTS_pytorch").DISTS(load_weights=False)
    alpha, beta = load_alpha_beta("")
    published.alpha.data, published.beta.data = alpha.view(1, -1, 1, 1), beta.view(1, -1, 1, 1)
    return published


@needs_reference
@pytest.mark.parametrize("shape", [(2, 3, 48, 64), (1, 3, 33, 47), (1, 1, 40, 40)])
def test_values_and_gradients_are_those_of_the_authors(
    shape: tuple[int, ...], reference: nn.Module, vgg16: dict[str, Tensor]
) -> None:
    torch.manual_seed(1)
    ours, y = DISTS(vgg16, *load_alpha_beta("")), torch.rand(shape)
    x = (y + 0.1 * torch.randn(shape)).clamp(0, 1)
    results = []
    for distance in (ours, lambda a, b: reference(a, b, require_grad=True)):
        at = x.clone().requires_grad_()
        value = distance(at, y)
        value.sum().backward()
        assert at.grad is not None
        results.append((value.detach().flatten(), at.grad))
    (value, gradient), (expected_value, expected_gradient) = results
    assert value.min() > 1e-3
    assert gradient.abs().max() > 1e-5
    assert torch.allclose(value, expected_value, atol=1e-6, rtol=0)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6, rtol=0)


@needs_reference
def test_the_published_weights_are_read_without_importing_their_package() -> None:
    alpha, beta = load_alpha_beta("")
    assert alpha.sum().item() == pytest.approx(0.8760, abs=1e-4)
    assert beta.sum().item() == pytest.approx(0.1240, abs=1e-4)
    assert [round(part.sum().item(), 4) for part in alpha.split(CHANNELS)][-2:] == [0.2747, 0.2686]


def test_equal_pictures_are_at_distance_nothing(dists: DISTS) -> None:
    for x in (torch.rand(2, 3, 32, 32), torch.full((2, 3, 32, 32), 0.5)):
        at = x.clone().requires_grad_()
        value = dists(at, x)
        value.sum().backward()
        assert at.grad is not None
        assert value.abs().max() < 1e-6
        assert at.grad.isfinite().all()


def test_it_is_symmetric_and_grows_with_damage(dists: DISTS) -> None:
    torch.manual_seed(2)
    x = torch.rand(1, 3, 48, 48)
    noise = torch.randn_like(x)
    values = [dists(x, (x + scale * noise).clamp(0, 1)).item() for scale in (0.02, 0.1, 0.5)]
    assert 0 < values[0] < values[1] < values[2]
    y = (x + 0.1 * noise).clamp(0, 1)
    assert dists(x, y).item() == pytest.approx(dists(y, x).item(), abs=1e-6)


def test_one_channel_counts_as_three_equal_ones(dists: DISTS) -> None:
    x, y = torch.rand(2, 2, 1, 32, 32)
    assert torch.allclose(dists(x, y), dists(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)), atol=1e-6)


def test_autocast_changes_nothing(dists: DISTS) -> None:
    x, y = torch.rand(2, 1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        value = dists(x, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, dists(x, y))  # nearer than bfloat16 could be


def test_convolutions_in_bfloat16_keep_value_and_direction(vgg16: dict[str, Tensor]) -> None:
    """Of several drawings in the mean: of one alone the directions' cosine is anything from 0.75 to 0.99, and
    which it is depends on the processor, whose vector width decides what torch draws."""
    alpha, beta = load_alpha_beta("random")
    cosines = []
    for seed in range(4):
        torch.manual_seed(seed)
        x_H = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12), scale_factor=4, mode="bilinear")
        x_hat = (x_H + 0.1 * torch.randn_like(x_H)).clamp(0, 1)
        values, gradients = [], []
        for precision in ("fp32", "bf16"):
            at = x_hat.clone().requires_grad_()
            value = DISTS(vgg16, alpha, beta, precision)(at, x_H)
            value.sum().backward()
            assert value.dtype == torch.float32
            assert at.grad is not None
            values.append(value.item())
            gradients.append(at.grad.flatten())
        assert values[0] != values[1]  # else nothing was computed in bfloat16
        assert values[1] == pytest.approx(values[0], rel=0.05)
        cosines.append(float(torch.cosine_similarity(*gradients, dim=0)))
    assert sum(cosines) / len(cosines) > 0.7


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(TrainingError, match="precision 'fp8' is not known; fp32 and bf16 are"):
        DistsConfig(precision="fp8")


def test_ea_dists_is_the_distance_of_pictures_and_of_edges(dists: DISTS) -> None:
    x_hat, x_H = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    expected = dists((x_hat + 1) / 2, (x_H + 1) / 2).mean() + dists(sobel(x_hat), sobel(x_H)).mean()
    assert torch.allclose(ea_dists(dists, x_hat, x_H), expected)


def test_the_reconstruction_is_weighted_as_eq_8_says(dists: DISTS) -> None:
    x_hat, x_H = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    losses = Losses(LossWeights(ea_dists=5, gan=0.5, mae=0.5), dists)
    loss, terms = losses.reconstruction(x_hat.requires_grad_(), x_H)
    assert terms.keys() == {"ea_dists", "mae"}
    assert loss.item() == pytest.approx(5 * terms["ea_dists"] + 0.5 * terms["mae"], rel=1e-5)
    loss.backward()
    assert not any(p.requires_grad or p.grad is not None for p in losses.parameters())


def test_networks_are_loaded_only_where_a_term_has_a_weight() -> None:
    absent = DistsConfig(vgg16="nowhere.pth")
    assert Losses.build(LossWeights(mae=1.0), absent).dists is None
    with pytest.raises(TrainingError, match=r"nowhere\.pth") as caught:
        Losses.build(LossWeights(ea_dists=5.0), absent)
    assert "vgg16-397923af.pth" in str(caught.value.hint)
    with pytest.raises(ValueError, match="no network"):
        Losses(LossWeights(ea_dists=5.0))


@pytest.mark.parametrize("name", ["vgg16.pth", "vgg16.safetensors"])
def test_vgg16_is_read_from_a_file(name: str, vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    state = vgg16 | {"classifier.0.weight": torch.zeros(1)}
    if name.endswith("pth"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    read = load_vgg16(str(tmp_path / name))
    assert read.keys() == vgg16.keys()
    assert all(torch.equal(read[key], vgg16[key]) for key in vgg16)


def test_random_weights_are_the_same_in_every_process() -> None:
    torch.manual_seed(5)
    first, alpha = load_vgg16("random"), load_alpha_beta("random")[0]
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    second = load_vgg16("random")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(alpha, load_alpha_beta("random")[0])


def test_files_that_are_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(TrainingError, match=r"25 are missing, first features\.0\.bias"):
        load_vgg16(str(tmp_path / "other.pth"))
    with pytest.raises(TrainingError, match="cannot be read"):
        load_vgg16(str(tmp_path / "torn.pth"))
    with pytest.raises(TrainingError, match="no such file"):
        load_alpha_beta(str(tmp_path / "absent.pt"))
    with pytest.raises(TrainingError, match="not DISTS' weights"):
        load_alpha_beta(str(tmp_path / "other.pth"))
    torch.save({"alpha": torch.zeros(3), "beta": torch.zeros(3)}, tmp_path / "short.pt")
    with pytest.raises(TrainingError, match="3 and 3 weights"):
        load_alpha_beta(str(tmp_path / "short.pt"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TrainingError, match="alpha and beta") as caught:
        load_alpha_beta("")
    assert "pip install --no-deps DISTS-pytorch" in str(caught.value.hint)


def test_a_hub_that_has_nothing_is_an_error_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingError, match="no VGG16 weights at someone/nothing") as caught:
        load_vgg16("someone/nothing")
    assert "dists.vgg16" in str(caught.value.hint)


def test_averaged_weights_do_not_tell_a_stages_channels_apart() -> None:
    alpha, _ = load_alpha_beta("random")
    averaged = average_per_stage(alpha)
    for part, before in zip(averaged.split(CHANNELS), alpha.split(CHANNELS), strict=True):
        assert torch.allclose(part, before.mean().expand(len(part)))
    vgg16, x, y = load_vgg16("random"), torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    turned = dict(vgg16)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    turned["features.7.weight"], turned["features.7.bias"] = (
        vgg16[f"features.7.{key}"][order] for key in ("weight", "bias")
    )
    turned["features.10.weight"] = vgg16["features.10.weight"][:, order]
    beta = average_per_stage(load_alpha_beta("random")[1])
    one, other = (DISTS(weights, averaged, beta)(x, y) for weights in (vgg16, turned))
    assert torch.allclose(one, other, atol=1e-5)
