"""A picture to enlarge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.batch.drawn import draw


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photo.png")
