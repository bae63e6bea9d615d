"""
A mail host: accounts, mail and a certificate.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from pop3svc.service.datadirectory import _selfSigned
from tests.support.passwords import hashed
from tests.support.running import PATIENCE, environment


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A mail host: accounts, mail, a certificate.
    """
    path = tmp_path_factory.mktemp("site")
    users = path / "users"
    users.touch(0o600)
    users.write_text("".join(f"{name}:{hashed('secret word')}\n" for name in ("alice", "bob")))
    for name in ("alice", "bob"):
        (path / "mail" / name).mkdir(parents=True)
    renew(path)
    return path


def renew(path: Path) -> None:
    certificate, key = _selfSigned()
    (path / "cert.pem").write_bytes(certificate)
    (path / "key.pem").write_bytes(key)


def options(site: Path, *more: str) -> list[str]:
    return [
        *("--provider", f"maildir:{site / 'mail'}", "--auth", f"passwd:{site / 'users'}"),
        *("--certificate", str(site / "cert.pem"), "--private-key", str(site / "key.pem")),
        *more,
    ]


def trusting(site: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site / "cert.pem"))


def served(port: int, name: str | None = None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw:
        with context.wrap_socket(raw, server_hostname=name) as wrapped:
            return wrapped.getpeercert(True) or b""


def run(arguments: list[str], home: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    return subprocess.run(
        arguments,
        cwd=home,
        env=environment(home),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
