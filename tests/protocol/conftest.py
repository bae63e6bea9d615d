"""
The hashes in the tests of the protocol.
"""

from __future__ import annotations

from tests.support.passwords import cheapHashes

__all__ = ["cheapHashes"]
