"""The rivals' tile plans that `benchmarks/table3.py` times: how many tiles, and no holes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from benchmarks.peers.pipelines import Networks, blended, coupled, starts, whole_vae  # noqa: E402


def counting() -> tuple[Networks, dict[str, int]]:
    """Networks that only count: the autoencoder averages 8 x 8 px and repeats them, the UNet answers zero."""
    calls = dict.fromkeys(("encode", "unet", "decode"), 0)

    def encode(x: Any) -> Any:
        calls["encode"] += 1
        z = torch.nn.functional.avg_pool2d(x, 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: z))

    def decode(z: Any) -> Any:
        calls["decode"] += 1
        return SimpleNamespace(sample=torch.nn.functional.interpolate(z, scale_factor=8))

    def unet(z: Any, _: int, **__: Any) -> Any:
        calls["unet"] += 1
        return SimpleNamespace(sample=torch.zeros_like(z))

    config = SimpleNamespace(scaling_factor=0.5, block_out_channels=(1, 1, 1, 1))
    vae = SimpleNamespace(encode=encode, decode=decode, config=config)
    return Networks(vae, unet, torch.zeros(1, 1, 1), 200, 1.0), calls


@pytest.mark.parametrize(
    ("plan", "expected"), [(whole_vae, (1, 16, 1)), (coupled, (49, 49, 49))], ids=["whole_vae", "coupled"]
)
def test_counts_for_2048_px(plan: Any, expected: tuple[int, ...]) -> None:
    networks, calls = counting()
    y = plan(networks, torch.full((1, 3, 256, 256), 0.25), 8)
    assert y.shape == (1, 3, 2048, 2048)
    assert tuple(calls.values()) == expected
    assert (y - 0.25).abs().max() <= 1e-5


def test_tiles_cover_and_blend_to_one() -> None:
    assert starts(256, 96, 64) == [0, 64, 128, 160]
    assert starts(64, 96, 64) == [0]
    x = torch.randn(1, 4, 100, 70)
    assert (blended(x, 96, 64, lambda piece: piece) - x).abs().max() <= 1e-5
