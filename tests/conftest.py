"""Settings of all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# A slow machine is no failure; and what CI says should depend on the change alone.
settings.register_profile("tudsr", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tudsr")
