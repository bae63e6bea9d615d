"""
What holds for all tests.
"""

from __future__ import annotations

from pop3svc import files


def pytest_sessionfinish() -> None:
    """
    Threads that a test left behind must not keep the run from ending.
    """
    files._disk.stop()
