"""A base that takes no time to make: the nano architecture, a hundredth of its size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the trainer's tests need the [train] extra")

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from tudsr_train.adapters import TARGETS, add_adapter, record_of, save_adapter
from tudsr_train.bases.nano import NanoBase, create_base
from tudsr_train.bases.prompt import save_prompt
from tudsr_train.data.sources import Data
from tudsr_train.generator import Generator

TINY = NanoBase(
    patch_size=4,
    margin=8,
    block_out_channels=(16, 32),
    num_attention_heads=2,
    cross_attention_dim=16,
    norm_num_groups=8,
)


@pytest.fixture(scope="session")
def tiny_model() -> NanoBase:
    return TINY


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    create_base(folder, TINY, seed=0)
    return folder


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(count=2, size=128, seed=1, cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_stage1(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 adapter as it is drawn: it changes nothing."""
    folder = tmp_path_factory.mktemp("adapters") / "stage1"
    folder.mkdir()
    G = Generator.load(tiny_base)
    add_adapter(G, "stage1", 4, TARGETS)
    save_adapter(G, "stage1", folder, record_of(G, "stage1", 1, 200, 2))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is the same bit for bit is so for one number of threads, which libraries change with the load."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator(tiny_base: Path) -> Generator:
    return Generator.load(tiny_base)


@pytest.fixture(scope="session")
def stable_diffusion_like_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real classes of Stable Diffusion, two levels each, a few channels wide."""
    folder = tmp_path_factory.mktemp("base") / "sd"
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, layers_per_block=1,
    ).save_pretrained(folder / "vae")  # fmt: skip
    UNet2DConditionModel(
        block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16, attention_head_dim=2,
        norm_num_groups=8, layers_per_block=1,
    ).save_pretrained(folder / "unet")  # fmt: skip
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    save_prompt(folder, torch.randn(1, 7, 16))
    return folder
