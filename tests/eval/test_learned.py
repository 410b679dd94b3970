"""The learned metrics with drawn weights: what they compute, and what is said where weights are absent."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from cli import app
from tudsr_runtime.errors import BundleError, InputError, UsageError

torch = pytest.importorskip("torch", reason="the [eval] extra is absent")

from tudsr_eval.learned import Weights, fid, kid, load_learned  # noqa: E402
from tudsr_train.losses import dists_name as dists_name_module  # noqa: E402
from tudsr_train.losses.dists import CHANNELS, average_per_stage  # noqa: E402
from tudsr_train.losses.dists_name import dists_name  # noqa: E402
from tudsr_train.vgg16 import load_vgg16  # noqa: E402

REALSR = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(load_vgg16("random"), folder / "vgg16_toy.pth")
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3)}
    shapes |= {8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    alexnet = {f"features.{n}.weight": torch.randn(s, generator=generator) * 0.05 for n, s in shapes.items()}
    alexnet |= {f"features.{n}.bias": torch.zeros(s[0]) for n, s in shapes.items()}
    torch.save(alexnet, folder / "alexnet.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, s[0], 1, 1) for i, s in enumerate(shapes.values())}
    torch.save(heads, folder / "heads.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Toy()).save(str(folder / "inception.pt"))
    return Weights(
        str(folder / "vgg16_toy.pth"), "random", str(folder / "alexnet.pth"), str(folder / "heads.pth"),
        folder / "inception.pt",
    )  # fmt: skip


class Toy(torch.nn.Module):
    """The interface of FID's Inception: whole levels in, features out."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        return torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def test_equal_pictures_are_at_zero_and_others_above(weights: Weights) -> None:
    loaded = load_learned(["dists", "lpips"], weights)
    equal, other = loaded.of_picture(photo(), photo()), loaded.of_picture(photo(), photo(1))
    assert set(equal) == set(loaded.metrics) == {"dists[toy]", "lpips"}
    assert equal == pytest.approx({"dists[toy]": 0, "lpips": 0}, abs=1e-6)
    assert all(value > 0.001 for value in other.values())
    assert loaded.of_picture(photo(), None) == {}
    with pytest.raises(InputError, match="32 x 32"):
        loaded.of_picture(photo()[:31], photo()[:31])


def test_lpips_is_the_papers_formula(weights: Weights) -> None:
    from torch import nn

    state = torch.load(weights.alexnet, weights_only=True)
    heads = torch.load(weights.lpips, weights_only=True)
    features = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    ).requires_grad_(False)  # fmt: skip
    features.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    maps = []
    for picture in (photo(), photo(1)):
        h = ((torch.from_numpy(picture).float() / 255 - mean) / std).permute(2, 0, 1)[None]
        maps.append([h := layer(h) for layer in features])
    expected = 0.0
    for head, after in enumerate((1, 4, 7, 9, 11)):
        f, g = (m[after] / (m[after].norm(dim=1, keepdim=True) + 1e-10) for m in maps)
        expected += float(((f - g) ** 2 * heads[f"lin{head}.model.1.weight"]).sum(1).mean())
    found = load_learned(["lpips"], weights).of_picture(photo(), photo(1))["lpips"]
    # LPIPS' normalisation is ImageNet's, rounded to three digits
    assert found == pytest.approx(expected, rel=0.01)


def test_averaged_weights_keep_each_stages_sum() -> None:
    drawn = torch.rand(sum(CHANNELS))
    sums = [part.sum() for part in average_per_stage(drawn).split(CHANNELS)]
    assert torch.allclose(torch.stack(sums), torch.stack([p.sum() for p in drawn.split(CHANNELS)]))
    assert all(part.unique().numel() == 1 for part in average_per_stage(drawn).split(CHANNELS))


def test_only_the_vgg16_of_dists_is_called_dists(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dists_name("timm/vgg16.tv_in1k") == "DISTS"
    assert dists_name("somewhere/vgg16_hed.safetensors") == "dists[hed]"
    assert dists_name("vgg16.pth") == "dists[vgg16]"
    assert weights.vgg16 is not None
    assert dists_name(weights.vgg16) == "dists[toy]"
    monkeypatch.setattr(dists_name_module, "file_sha256", lambda _: "397923af" + "0" * 56)
    assert dists_name(weights.vgg16) == "DISTS"


def test_frechet_distance_by_a_matrix_root() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(50, 6)) @ np.diag([1, 2, 1, 1, 3, 1]) + 0.3
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert fid(x, y) == pytest.approx(expected, rel=1e-6)
    assert fid(x, x) == pytest.approx(0, abs=1e-8)


def test_kid_counts_no_picture_against_itself() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
    cubic = lambda a, b: (float(a @ b) / 4 + 1) ** 3  # noqa: E731
    own = [
        np.mean([cubic(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (x, y)
    ]
    assert kid(x, y) == pytest.approx(sum(own) - 2 * np.mean([[cubic(a, b) for b in y] for a in x]))


def test_all_of_them_by_the_command(
    pictures: Path, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        pictures / "bicubic", "--reference", pictures / "HR", "--metrics", "psnr,learned,fid,kid",
        "--vgg16", weights.vgg16, "--dists", "random", "--alexnet", weights.alexnet, "--lpips", weights.lpips,
        "--inception", weights.inception, "-o", pictures / "out",
    ]  # fmt: skip
    app(["eval", *map(str, words)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "dists[toy] ↓ | LPIPS ↓ | FID ↓ | KID ↓ |" in printed
    records = [json.loads(line) for line in (pictures / "out" / "scores.jsonl").read_text().splitlines()]
    assert all(set(r["scores"]) == {"psnr_y", "dists[toy]", "lpips"} for r in records)


@pytest.mark.parametrize(
    ("name", "option", "where"),
    [
        ("dists", "vgg16", "vgg16-397923af"),
        ("lpips", "alexnet", "alexnet-owt"),
        ("fid", "inception", "https"),
    ],
)
def test_absent_weights_are_an_error_that_says_where_they_are(
    name: str, option: str, where: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as unnamed:
        load_learned([name], Weights())
    absent = tmp_path / "absent.pth"
    named = Weights(**{option: absent if option == "inception" else str(absent)})  # type: ignore[arg-type]
    with pytest.raises(BundleError) as missing:
        load_learned([name], named)
    for error in (unnamed.value, missing.value):
        assert f"--{option}" in str(error.hint)
        assert where in str(error.hint)


def test_weights_of_another_network_are_refused(weights: Weights) -> None:
    with pytest.raises(BundleError, match="missing"):
        load_learned(["lpips"], Weights(alexnet=weights.vgg16, lpips=weights.lpips))
    with pytest.raises(BundleError, match="missing"):
        load_learned(["dists"], Weights(vgg16=weights.alexnet, dists="random"))
