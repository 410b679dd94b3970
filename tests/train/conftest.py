"""A base that takes no time to make: the nano architecture, a hundredth of its size."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the trainer's tests need the [train] extra")

from tudsr_train.generator import Generator
from tudsr_train.nano import NanoBase, create_base

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


@pytest.fixture
def generator(tiny_base: Path) -> Generator:
    return Generator.load(tiny_base)
