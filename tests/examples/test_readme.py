"""
The list of examples is complete.
"""

from __future__ import annotations

import re

from tests.examples.serving import EXAMPLES


def test_list() -> None:
    page = (EXAMPLES / "README.rst").read_text()
    assert set(re.findall(r"``(\w+\.py)``", page)) == {each.name for each in EXAMPLES.glob("*.py")}
