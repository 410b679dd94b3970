"""`nano`'s recipe is frozen: the released model was trained on these very pairs."""

from __future__ import annotations

import hashlib

import numpy as np
import PIL
import pytest
import torch

from tudsr_train.data import Pairs, Softness, Task
from tudsr_train.degradation import Degradation, degrade

POOL = np.random.default_rng(11).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
"""Noise stands in for pictures: every pixel of it matters."""
STAGES = {
    1: (Task(64, (2, 4), 64), "7e3ba0c8566b66ef281bcfd7753884281279af763741fc067820e996fcfd8559"),
    2: (Task(64, (4, 8), 32), "aeca87c7416f62d6102cfc01ed92d268fc3b47764cca778fea963d9f7ee9f535"),
}
MEANS = {
    1: [(-0.144942, -0.145517), (-0.976655, -0.978802), (-0.012745, -0.01472), (-0.445486, -0.441184)],
    2: [(0.087286, 0.086726), (0.282312, 0.280911), (-0.448897, -0.44866), (-0.399101, -0.392966)],
}
HASHED_WITH = ("2.13", "13", "AVX512")
"""torch, Pillow, instruction set; another FFT or JPEG encoder may round the last bit another way."""


def _pairs(stage: int) -> Pairs:
    return Pairs(POOL, STAGES[stage][0], Softness(), Degradation(), seed=4 + stage, length=100)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_pairs_are_those_that_nano_was_trained_on_bit_for_bit(stage: int) -> None:
    here = (
        ".".join(torch.__version__.split(".")[:2]),
        PIL.__version__.split(".")[0],
        torch.backends.cpu.get_cpu_capability(),
    )
    if here != HASHED_WITH:
        pytest.skip(f"the hash needs torch, Pillow and CPU {HASHED_WITH}, this is {here}")
    digest = hashlib.sha256()
    for number in range(40):
        for x in _pairs(stage)[number]:
            digest.update(x.numpy().tobytes())
    assert digest.hexdigest() == STAGES[stage][1]


@pytest.mark.parametrize("stage", [1, 2])
def test_the_pairs_are_those_that_nano_was_trained_on_to_rounding(stage: int) -> None:
    means = [[float(x.mean()) for x in _pairs(stage)[number]] for number in range(4)]
    assert np.allclose(means, MEANS[stage], atol=3e-4)


def test_the_draws_are_made_in_the_order_that_nano_was_trained_with() -> None:
    rng = np.random.default_rng(3)
    x_H = torch.from_numpy(np.random.default_rng(1).random((3, 48, 48), np.float32))
    for scale in (1, 2, 4):
        degrade(x_H, scale, Degradation(), rng)
    assert rng.bit_generator.state["state"]["state"] == 38800065161765917884466210794347104379
