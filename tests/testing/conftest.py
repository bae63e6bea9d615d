"""
pytest does not collect C{newproject} here, because L{test_newproject} runs the tests of that
project in an environment of their own.
"""

from __future__ import annotations

collect_ignore = ["newproject"]
