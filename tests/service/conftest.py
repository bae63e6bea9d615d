"""
The mail host of the tests from outside.
"""

from tests.support.site import site

__all__ = ["site"]
