"""Networks read by spandrel, exported and refused; spandrel's own call is the oracle."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.network_tiles import by_cutting_off, by_tudsr, photograph, whole
from tudsr_export import command
from tudsr_export.network_export import sized
from tudsr_export.networks import import_spandrel, read_network
from tudsr_export.options import ExportOptions
from tudsr_export.plan import NetworkPlan
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.errors import BundleError, DeviceError, NotFiniteError, UsageError
from tudsr_runtime.golden_tile import run_golden
from tudsr_runtime.tiling.resample import resize
from tudsr_runtime.upscaler import Upscaler

TILE, OVERLAP = 64, 32
REACH = 2 * 4
"""Px of its result that a pixel of the compact network's input reaches: four convolutions, x2."""

pytestmark = pytest.mark.usefixtures("spandrel")


@pytest.fixture(scope="session")
def spandrel() -> ModuleType:
    try:
        return import_spandrel()
    except DeviceError as error:
        pytest.skip(str(error))


def compact(scale: int = 2) -> torch.nn.Module:
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    return Compact(num_feat=8, num_conv=2, upscale=scale)


def rrdbnet(**other: Any) -> torch.nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    return ESRGAN(num_filters=8, num_blocks=1, scale=4, **other)


def unshuffled() -> torch.nn.Module:
    """As Real-ESRGAN x2plus: four input pixels are one of its own."""
    return rrdbnet(in_nc=12, shuffle_factor=2)


@pytest.fixture(scope="session")
def checkpoint(spandrel: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp(spandrel.__name__) / "compact.pth"
    torch.save({"params": compact().state_dict()}, file)
    return file


def export(file: Path, output: Path, **options: Any) -> Bundle:
    command.run(ExportOptions(output, from_spandrel=file, licence="MIT", **options), tile=TILE)
    return open_bundle(output)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(checkpoint, tmp_path_factory.mktemp("spandrel") / "compact", precision="fp32")


@pytest.fixture(scope="session")
def upscaler(bundle: Bundle) -> Upscaler:
    return Upscaler(bundle, backend="onnxruntime", overlap=OVERLAP, color="none", sanity=False)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 997 + width).random((height, width, 3), dtype=np.float32)


def by_spandrel(spandrel: ModuleType, network: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """The whole picture at once, by spandrel's own call."""
    found = spandrel.ModelLoader().load_from_state_dict(network.state_dict())
    return found(torch.from_numpy(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_the_runtime_makes_what_spandrel_makes(
    spandrel: ModuleType, upscaler: Upscaler, height: int, width: int
) -> None:
    """But for the right and lower border of what is smaller than a tile: it is mirrored, not followed by
    zeros. Where tiles meet, nothing is to be seen."""
    x = picture(height, width)
    expected, result = by_spandrel(spandrel, compact(), x), upscaler.upscale(x)
    assert result.shape == expected.shape
    across = expected.shape[1] - (REACH if 2 * width < TILE else 0)
    down = expected.shape[0] - (REACH if 2 * height < TILE else 0)
    if min(across, down) > 0:
        assert np.abs(result[:down, :across] - expected[:down, :across]).max() < 1e-4 < 1 / 255


def test_strength_draws_towards_lanczos(upscaler: Upscaler) -> None:
    x = picture(40, 50)
    planes = x.transpose(2, 0, 1)
    plain, network = resize(planes, 80, 100).transpose(1, 2, 0), upscaler.upscale(x)
    for strength in (0.0, 0.5):
        expected = (plain + strength * (network - plain)).clip(0, 1)
        result = upscaler.with_look(strength=strength).upscale(x)
        assert np.abs(result - expected).max() < 1e-5


def test_the_bundle_says_what_it_is(bundle: Bundle, upscaler: Upscaler) -> None:
    manifest = bundle.manifest
    assert (manifest.own_factors, manifest.latent, manifest.tile) == ((2, 2), None, TILE)
    assert manifest.provenance["network"]["architecture"] == "RealESRGAN Compact (8nf, 2nc)"
    assert manifest.numerics["runtime_vs_torch"]["photograph, all stages"]["value"] > 60
    card = (bundle.folder / "README.md").read_text()
    assert "which enlarges x2" in card
    assert "beyond that twice (x4)" in card
    assert min(figure.psnr_db for figure in run_golden(bundle, upscaler.choice)) > 80
    assert upscaler.upscale(picture(20, 30), 4).shape == (80, 120, 3)


def test_a_network_in_half_with_tiles_of_two_sizes(spandrel: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "x3.safetensors"
    save_file(compact(3).state_dict(), file)
    bundle = export(file, tmp_path / "out", tile=(96,))
    assert bundle.tiles == (96, 66)
    assert set(bundle.precisions) == {"fp16", "fp32"}
    x = picture(40, 43)
    with Upscaler(bundle, backend="onnxruntime", overlap=OVERLAP, color="none", sanity=False) as upscaler:
        assert np.abs(upscaler.upscale(x) - by_spandrel(spandrel, compact(3), x)).max() < 1 / 255


@pytest.mark.parametrize("make", [compact, rrdbnet, unshuffled])
def test_what_is_exported_is_what_spandrel_calls(make: Any, tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    save_file(make().state_dict(), file)
    network = read_network(file)
    x = torch.rand(1, 3, 12, 16) * 2 - 1
    assert network.factor == (4 if make is rrdbnet else 2)
    made = network.module(x)
    assert made.shape == (1, 3, 12 * network.factor, 16 * network.factor)
    assert torch.allclose(made.clamp(-1, 1), network.reference(x), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "tile", "more", "expected"),
    [
        (compact, 512, None, (512, 1024)),
        (compact, 512, (256,), (512, 256)),
        (lambda: compact(3), 512, None, (510, 1020)),
        (unshuffled, 500, None, (496,)),
        (rrdbnet, 64, None, (64,)),
    ],
)
def test_tiles_are_of_whole_input_pixels(
    make: Any, tile: int, more: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    save_file(make().state_dict(), file)
    plan = NetworkPlan(
        checkpoint=file,
        output=tmp_path / "o",
        precision="fp32",
        name="n",
        licence="MIT",
        tile=tile,
        tiles=more,
    )
    assert tuple(shape.tile for shape in sized(plan, read_network(file)).shapes) == expected


def test_a_tile_that_the_network_cannot_have_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tile 258: this network takes multiples of 4 px from 64"):
        export(checkpoint, tmp_path / "out", tile=(258,))
    assert not (tmp_path / "out").exists()


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def changed(**weights: Any) -> dict[str, Any]:
    return compact().state_dict() | weights


def weight() -> torch.Tensor:
    return compact().state_dict()["body.0.weight"]


HOSTILE: dict[str, Any] = {
    "code": lambda: {"params": Code()},
    "a list": lambda: [1, 2],
    "nothing": lambda: {},
    "no tensors": lambda: {"params": {"body.0.weight": "x", "body.1.weight": 3}},
    "names that are none": lambda: {1: torch.zeros(1)},
    "another network": lambda: {"fc.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)},
    "a weight that is missing": lambda: {
        k: v for k, v in compact().state_dict().items() if k != "body.2.bias"
    },
    "a weight that is too large": lambda: changed(**{"body.0.weight": torch.zeros(9, 3, 3, 3)}),
    "a number stored for millions": lambda: changed(
        **{"body.0.weight": torch.zeros(1).expand(2**20, 2**10, 3, 3)}
    ),
    "layers without end": lambda: changed(**{"body.99999999.weight": torch.zeros(1)}),
    "four channels": lambda: changed(**{"body.0.weight": torch.zeros(8, 4, 3, 3)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hostile.pth"
    if name == "code":
        file.write_bytes(pickle.dumps(HOSTILE[name]()))
    else:
        torch.save(HOSTILE[name](), file)
    with pytest.raises(BundleError) as caught:
        export(file, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "ran" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_damaged_checkpoint_is_an_error_of_ours(data: st.DataObject, checkpoint: Path) -> None:
    raw = bytearray(checkpoint.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file = checkpoint.parent / "damaged.pth"
    file.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(BundleError, NotFiniteError):
        read_network(file)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "nan.pth"
    torch.save(changed(**{"body.0.weight": weight() * float("nan")}), file)
    with pytest.raises(NotFiniteError, match=r"body.0.weight: 216 of 216 values"):
        export(file, tmp_path / "out")


@pytest.mark.parametrize("name", ["missing.pth", "folder.pth", "text.txt", "torn.safetensors", "empty.ckpt"])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "folder.pth":
        file.mkdir()
    elif name != "missing.pth":
        file.write_bytes(b"" if name == "empty.ckpt" else b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(BundleError, match=name):
        export(file, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": Path("x")}, "--base has no meaning with --from-spandrel"),
        ({"stage2": Path("x")}, "--stage2 has no meaning"),
        ({"prompt": "a cat"}, "--prompt has no meaning"),
        ({"merge_lora": False}, "--no-merge-lora has no meaning"),
    ],
)
def test_what_only_diffusion_has_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export(tmp_path / "x.pth", tmp_path / "out", **options)


def test_without_a_base_or_a_network_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no base model") as caught:
        command.run(ExportOptions(tmp_path / "out", stage1=tmp_path))
    assert "--from-spandrel FILE" in str(caught.value.hint)


def spreading() -> torch.nn.Module:
    """RRDBNet whose pixels see far: what is cut off at a tile's edge is missed."""
    network = rrdbnet()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2 if weight.ndim == 4 else 1)
    return network


def test_tiles_show_no_seam_where_those_that_are_cut_off_show_one(tmp_path: Path) -> None:
    """The command's bundle, in tiles, is the whole picture; squares with a small margin are not."""
    file, low = tmp_path / "spreading.safetensors", photograph()[:48, :72]
    save_file(spreading().state_dict(), file)
    command.run(
        ExportOptions(tmp_path / "out", from_spandrel=file, licence="MIT", precision="fp32"), tile=128
    )
    run = whole(read_network(file).module)
    reference = run(low)
    theirs = by_cutting_off(run, low, reference, tile=24, margin=2, ramp=48)
    with Upscaler(
        tmp_path / "out", backend="onnxruntime", overlap=64, color="none", sanity=False
    ) as upscaler:
        ours = by_tudsr(upscaler, low, reference)
    assert ours.tiles > 4
    assert ours.away < 1
    assert abs(ours.seam_energy - 1) < 0.02
    assert theirs.near > 10 * max(ours.near, 1)
    assert theirs.seam_energy > 1.2
