"""Settings of all tests."""

from __future__ import annotations

import os
import sys
from zlib import crc32

import pytest
from hypothesis import settings

# A slow machine is no failure; and what CI says should depend on the change alone.
settings.register_profile("tudsr", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tudsr")


def pytest_configure(config: pytest.Config) -> None:
    """The order is random; that pytest-randomly also seeds before every test would hide who relies on whom."""
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
