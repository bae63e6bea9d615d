"""
Large replies over TLS, to clients that are quick and slow, from a real twistd.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from pop3svc.service.datadirectory import _selfSigned
from tests.support.running import Connection, Running, freePort

# More than the kernel takes at once.
MESSAGE = b"Subject: large\r\n\r\n" + b"".join(b"%070d\r\n" % line for line in range(100_000))


@pytest.mark.parametrize("isSTLS", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_largeMessage(tmp_path: Path, isSTLS: bool, version: ssl.TLSVersion) -> None:
    """
    Its octets arrive, encrypted and in order, however slowly they are taken.
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
        # So that the server has to wait.
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        if isSTLS:
            connection.line()
            assert connection.say(b"STLS").startswith(b"+OK")
            connection.startTLS(context)
        else:
            connection.startTLS(context)
            assert connection.line().startswith(b"+OK")
        connection.logIn(b"alice", b"secret")
        # A file whose octets are known may go out by another way, without TLS.
        assert connection.say(b"STAT") == b"+OK 1 %d\r\n" % len(MESSAGE)
        for _ in range(2):
            assert connection.say(b"RETR 1").startswith(b"+OK")
            assert b"".join(connection.lines()) == MESSAGE
        # Many replies behind one another, while nothing is read.
        connection.socket.sendall(b"RETR 1\r\nNOOP\r\n" * 2 + b"QUIT\r\n")
        for _ in range(2):
            assert connection.line().startswith(b"+OK")
            assert b"".join(connection.lines()) == MESSAGE
            assert connection.line().startswith(b"+OK")
        assert connection.line().startswith(b"+OK")
        # After close_notify, not a cut connection.
        assert connection.line() == b""
        connection.socket.close()
        assert "4 messages" in running.waitFor("alice from")
