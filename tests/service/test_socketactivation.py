"""
Ports that systemd opens, passed on by systemd's tool for tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from pop3svc.service.endpoints import serverEndpoint
from tests.support.running import PATIENCE, Connection, Running, freePort, script
from tests.support.site import options, trusting


def activator() -> str:
    found = shutil.which("systemd-socket-activate")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-socket-activate is not installed")
        pytest.skip("systemd-socket-activate is not installed")
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_namedSockets(site: Path, tmp_path: Path, workers: str) -> None:
    """
    Each listener gets the socket of its name: POP3, POP3 over TLS, and LMTP on a UNIX socket, whose
    file stays for the next start.
    """
    plain, secure, mail = freePort(), freePort(), tmp_path / "lmtp"
    command = [
        activator(),
        *("-l", f"[::]:{secure}", "-l", str(mail), "-l", f"[::]:{plain}"),
        *("--fdname", "pop3s:mail:pop3"),
        *("-E", "HOME", "-E", "PYTHONPATH"),
        *(script("twistd"), "-n", "--pidfile=", "pop3svc"),
        *options(site, "--workers", workers),
        *("--endpoint", "systemd:domain=INET6:name=pop3"),
        *("--tls-endpoint", "systemd:domain=INET6:name=pop3s"),
        *("--lmtp", "systemd:domain=UNIX:name=mail"),
    ]
    with Running(tmp_path / "home", command=command) as running:
        running.waitFor("Listening on")
        # The first connection starts the service.
        connection = Connection(plain)
        assert connection.line().startswith(b"+OK")
        connection.logIn(b"alice", b"secret word")
        assert connection.say(b"QUIT").startswith(b"+OK")
        with socket.create_connection(("::1", secure), PATIENCE) as raw:
            with trusting(site).wrap_socket(raw, server_hostname="localhost") as wrapped:
                assert wrapped.recv(100).startswith(b"+OK")
                wrapped.sendall(b"QUIT\r\n")
                assert wrapped.recv(100).startswith(b"+OK")
        with socket.socket(socket.AF_UNIX) as lmtp:
            lmtp.settimeout(PATIENCE)
            lmtp.connect(str(mail))
            assert lmtp.recv(100).startswith(b"220 ")
        assert running.end(signal.SIGTERM) == 0
        assert mail.is_socket()


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="^systemd passes no socket of this name or index$"):
        serverEndpoint(None, "systemd:domain=INET:name=pop3", None)
    with pytest.raises(ValueError, match="^systemd passes no socket of this name or index$"):
        serverEndpoint(None, "systemd:domain=INET:index=0", None)
    monkeypatch.setenv("LISTEN_FDNAMES", "pop3:pop3s:pop3")
    with pytest.raises(ValueError, match="several sockets of this name"):
        serverEndpoint(None, "systemd:domain=INET:name=pop3", None)
