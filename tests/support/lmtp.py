"""
A client that sends a message by LMTP.
"""

from __future__ import annotations

import socket
from pathlib import Path

from tests.support.running import PATIENCE

__all__ = ["offer"]


def offer(address: Path, message: bytes, *names: str) -> list[str]:
    """
    Send a message by LMTP.

    @param address: the socket.
    @return: the reply for each recipient: to RCPT if that is a refusal, else to the message.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(address))
        lines = connection.makefile("rb")

        def reply() -> str:
            while (line := lines.readline())[3:4] == b"-":
                pass
            return line.decode()[:9].rstrip()

        def say(text: bytes) -> str:
            connection.sendall(text)
            return reply()

        assert reply().startswith("220")
        assert say(b"LHLO x\r\n").startswith("250")
        assert say(b"MAIL FROM:<a@b.example>\r\n").startswith("250")
        replies = [say(f"RCPT TO:<{each}>\r\n".encode()) for each in names]
        if any(each.startswith("250") for each in replies):
            assert say(b"DATA\r\n").startswith("354")
            connection.sendall(message + b".\r\n")
        return [reply() if each.startswith("250") else each for each in replies]
