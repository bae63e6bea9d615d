"""
The tests of the operator's commands hash passwords with little work.
"""

from __future__ import annotations

from tests.support.passwords import cheapHashes

__all__ = ["cheapHashes"]
