"""
Files as they are read.
"""

from __future__ import annotations

import os
import re

from hypothesis import given
from hypothesis import strategies as st

from pop3svc.files import examine


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n"]), max_size=30).map(b"".join))
def test_examine(message: bytes) -> None:
    """
    What reading a message tells is what is sent.
    """
    sent = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    if sent and not sent.endswith(b"\r\n"):
        sent += b"\r\n"
    stuffed = re.sub(rb"(?m)^\.", b"..", sent)
    descriptor = os.memfd_create("message")
    try:
        os.write(descriptor, message)
        assert examine(descriptor, len(message)) == (len(sent), stuffed == message)
    finally:
        os.close(descriptor)
