"""
A real service sends large replies over TLS to quick and slow clients.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from pop3svc.service.datadirectory import _selfSigned
from tests.support.running import Connection, Running, freePort

# The message is larger than the kernel accepts at once.
MESSAGE = b"Subject: large\r\n\r\n" + b"".join(b"%070d\r\n" % line for line in range(100_000))


@pytest.mark.parametrize("isSTLS", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_largeMessage(tmp_path: Path, isSTLS: bool, version: ssl.TLSVersion) -> None:
    """
    The octets of a large message arrive encrypted and in order, however slowly the client reads.
    """
    port = freePort()
    certificate, key = _selfSigned()
    (tmp_path / "both.pem").write_bytes(key + certificate)
    (tmp_path / "users").write_text("alice:{PLAIN}secret\n")
    for folder in ("tmp", "new", "cur"):
        (tmp_path / "mail" / "alice" / folder).mkdir(parents=True)
    (tmp_path / "mail" / "alice" / "new" / "1.x").write_bytes(MESSAGE)
    context = ssl.create_default_context(cafile=str(tmp_path / "both.pem"))
    context.minimum_version = context.maximum_version = version
    kind = "tcp" if isSTLS else "ssl"
    with Running(
        tmp_path / "home",
        *("--provider", f"maildir:{tmp_path / 'mail'}", "--auth", f"passwd:{tmp_path / 'users'}"),
        *("--certificate", str(tmp_path / "both.pem")),
        *("--private-key", str(tmp_path / "both.pem")),
        *("--endpoint", f"{kind}:{port}:interface=127.0.0.1"),
    ) as running:
        running.up()
        connection = Connection(port)
        # With a small buffer the server has to wait.
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        if isSTLS:
            connection.line()
            assert connection.say(b"STLS").startswith(b"+OK")
            connection.startTLS(context)
        else:
            connection.startTLS(context)
            assert connection.line().startswith(b"+OK")
        connection.logIn(b"alice", b"secret")
        # When the size is known, a reply without TLS can be sent by sendfile().
        assert connection.say(b"STAT") == b"+OK 1 %d\r\n" % len(MESSAGE)
        for _ in range(2):
            assert connection.say(b"RETR 1").startswith(b"+OK")
            assert b"".join(connection.lines()) == MESSAGE
        # Ask for many replies, and read nothing meanwhile.
        connection.socket.sendall(b"RETR 1\r\nNOOP\r\n" * 2 + b"QUIT\r\n")
        for _ in range(2):
            assert connection.line().startswith(b"+OK")
            assert b"".join(connection.lines()) == MESSAGE
            assert connection.line().startswith(b"+OK")
        assert connection.line().startswith(b"+OK")
        # The connection ends with close_notify, and is not cut.
        assert connection.line() == b""
        connection.socket.close()
        assert "4 messages" in running.waitFor("alice from")
