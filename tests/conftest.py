"""Settings of all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A slow machine is no failure; and what CI says should depend on the change alone.
settings.register_profile("tudsr", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tudsr")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Engines that the tests make stay out of the user's cache."""
    os.environ["TUDSR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
