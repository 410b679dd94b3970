"""What is said where the CUDA runtime finds no GPU."""

from __future__ import annotations

import tomllib
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from tudsr_runtime.engines.tensorrt import cuda
from tudsr_runtime.errors import DeviceError


class Status(IntEnum):
    """Two of the CUDA runtime's."""

    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (Status.cudaErrorInsufficientDriver, "a driver of 580 or later"),
        (Status.cudaErrorNoDevice, "nvidia-smi shows GPUs and driver"),
    ],
)
def test_a_driver_that_is_too_old_is_said_to_be_so(
    status: Status, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(
        cudaGetDeviceCount=lambda: (status, 0), cudaGetErrorString=lambda _: (0, b"in CUDA's words")
    )
    monkeypatch.setattr(cuda, "open_cuda", lambda: fake)
    with pytest.raises(DeviceError, match=f"{status.name}.*in CUDA's words") as raised:
        cuda.find_gpu("tensorrt-rtx has no GPU", "nvidia-smi shows GPUs and driver")
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize("extra", ["rtx", "tensorrt"])
def test_extras_take_no_cuda_that_the_named_driver_cannot_run(extra: str) -> None:
    file = Path(__file__).parents[2] / "pyproject.toml"
    listed = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["optional-dependencies"][extra]
    (bindings,) = [one for one in map(Requirement, listed) if one.name == "cuda-bindings"]
    assert [version for version in ("12.8.0", "13.5.0", "14.0.0") if version in bindings.specifier] == [
        *("12.8.0", "13.5.0")
    ]
