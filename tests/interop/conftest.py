"""
What the tests with real clients share.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """
    The home directory of a client.
    """
    home = tmp_path / "home"
    home.mkdir()
    return home
