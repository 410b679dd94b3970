"""The rivals' tile plans that `benchmarks/table3.py` times: how many tiles, and no holes."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from benchmarks.peers.pipelines import (  # noqa: E402
    Networks,
    blended,
    coupled,
    in_parts,
    latent_tiles,
    starts,
)


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
    ("plan", "expected"),
    [(latent_tiles, (4, 16, 4)), (coupled, (7, 7, 7))],  # 49 tiles, eight at a time
    ids=["latent_tiles", "coupled"],
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


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_change_nothing(batch: int) -> None:
    x = torch.randn(1, 4, 100, 70)
    assert (blended(x, 32, 16, torch.tanh, batch) - blended(x, 32, 16, torch.tanh)).abs().max() <= 1e-6


@pytest.mark.parametrize(("side", "parts"), [(64, 1), (88, 1), (96, 4), (256, 16)])
def test_parts_are_the_whole_where_enough_beyond_them_is_seen(side: int, parts: int) -> None:
    """An average over 5 x 5 pixels, then every second one."""
    calls = []

    def run(x: Any) -> Any:
        calls.append(x.shape)
        return torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)[..., ::2, ::2]

    x = torch.randn(1, 3, side, side)
    found = in_parts(x, 80, 4, 0.5, run)
    assert len(calls) == parts
    assert (found - run(x)).abs().max() <= 1e-6


def test_without_the_device_that_was_asked_for_nothing_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers", reason="the rivals are built with diffusers")
    from benchmarks import table3

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["table3", "--bundle", "nano", "--device", "cuda"])
    with pytest.raises(SystemExit) as stop:
        table3.main()
    assert stop.value.code == 6
    assert "error: the rivals need PyTorch with CUDA" in capsys.readouterr().err


def test_what_a_rival_computes_is_counted_without_computing_it() -> None:
    """Encoder and decoder of 1024 px, and nine UNet tiles, or nine tiles of all three."""
    pytest.importorskip("diffusers", reason="the rivals are built with diffusers")
    from benchmarks.table3 import counted_tmac
    from tudsr_runtime.bench.table3 import PUBLISHED

    one, nine = (counted_tmac("tiny", coupled, row) for row in (PUBLISHED[0], PUBLISHED[1]))
    assert nine == pytest.approx(9 * one)
    assert one < counted_tmac("tiny", latent_tiles, PUBLISHED[1]) < nine
