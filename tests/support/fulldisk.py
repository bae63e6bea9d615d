"""
A small file system that can be filled.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["fill", "smallDisk"]


@contextmanager
def smallDisk(path: Path, octets: int) -> Iterator[None]:
    """
    Mount a file system in memory on a directory.  Skip the test if this is not allowed.

    @param octets: the size of the file system.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={octets},mode=0755", "none", str(path)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """
    Write to a file until its file system is full.
    """
    with path.open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
