"""Settings of all tests."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings

# Threads that wait for each other by spinning take the time of the one that is waited for: beside other work
# on as few cores as there are threads, a test of seconds took minutes. libgomp reads this as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A slow machine is no failure; and what CI says should depend on the change alone.
settings.register_profile(
    "tudsr",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tudsr")


def pytest_report_header() -> list[str]:
    """What figures depend on that are not the same everywhere."""
    names = ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    versions = [
        f"{name} {_version(name)}" for name in ("torch", "numpy", "pillow", "onnxruntime", "openvino")
    ]
    return [", ".join([_processor(), f"{os.cpu_count()} threads", *given]), ", ".join(versions)]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def pytest_configure(config: pytest.Config) -> None:
    """The order is random; to seed before every test as well would hide who relies on whom."""
    if hasattr(config.option, "randomly_reset_seed"):
        config.option.randomly_reset_seed = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """torch's own draws are those of the test, whatever ran before it: a failure is one alone as well."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(crc32(item.nodeid.encode()))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Engines that the tests make stay out of the user's cache."""
    os.environ["TUDSR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
