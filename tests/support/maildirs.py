"""
Maildirs on disk.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from unittest import TestCase, mock


def deliver(maildir: Path, name: str, message: bytes = b"a: b\n\nc\n", folder: str = "new") -> Path:
    for each in ("tmp", "new", "cur"):
        (maildir / each).mkdir(parents=True, exist_ok=True)
    path = maildir / folder / name
    path.write_bytes(message)
    return path


def failMoving(test: TestCase, part: str) -> None:
    """
    Let L{os.rename} fail if the name of the source contains C{part}.
    """
    rename = os.rename

    def stubborn(source: Any, target: Any, **directories: Any) -> None:
        if part in str(source):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target, **directories)

    patch = mock.patch("os.rename", stubborn)
    patch.start()
    test.addCleanup(patch.stop)
