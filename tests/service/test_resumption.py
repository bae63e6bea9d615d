"""
OpenSSL's client resumes its TLS sessions with a real service.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pop3svc.service.datadirectory import _selfSigned
from tests.support.running import PATIENCE, Running, freePort

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

KINDS = {
    "TLS 1.3 ticket": ["-tls1_3"],
    "TLS 1.2 ticket": ["-tls1_2"],
    "TLS 1.2 session id": ["-tls1_2", "-no_ticket"],
}


def renew(path: Path) -> None:
    certificate, key = _selfSigned()
    (path / "cert.pem").write_bytes(certificate)
    (path / "key.pem").write_bytes(key)


def visit(port: int, path: Path, *options: str) -> str:
    """
    Connect, and send NOOP and QUIT.

    @return: C{New} or C{Reused}, as OpenSSL says of the session.
    """
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-crlf", "-ign_eof"),
            *("-CAfile", str(path / "cert.pem"), "-verify_return_error", *options),
        ],
        input="NOOP\nQUIT\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Verify return code: 0 (ok)" in done.stdout
    assert re.search(r"^\+OK .*bye", done.stdout, re.MULTILINE | re.IGNORECASE), done.stdout
    (found,) = re.findall(r"^(New|Reused), TLSv", done.stdout, re.MULTILINE)
    return str(found)


def ticketOctets(saved: str) -> int:
    """
    @return: the number of octets in the ticket of a saved session.
    """
    done = subprocess.run(
        ["openssl", "sess_id", "-in", saved, "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    )
    _, _, ticket = done.stdout.partition("TLS session ticket:")
    return 16 * len(re.findall(r"^ +[0-9a-f]{4} - ", ticket, re.MULTILINE))


def test_resumes(tmp_path: Path) -> None:
    """
    Sessions are resumed by tickets and by session ids, on the same port and on the other one.
    After the certificate was renewed, no earlier session is resumed.
    """
    plain, secure = freePort(), freePort()
    renew(tmp_path)
    (tmp_path / "users").write_text("")
    ports = [(secure, []), (plain, ["-starttls", "pop3"])]
    with Running(
        tmp_path / "home",
        *("--provider", f"maildir:{tmp_path}", "--auth", f"passwd:{tmp_path / 'users'}"),
        *("--certificate", str(tmp_path / "cert.pem"), "--private-key", str(tmp_path / "key.pem")),
        *("--endpoint", f"tcp:{plain}:interface=127.0.0.1"),
        *("--endpoint", f"ssl:{secure}:interface=127.0.0.1"),
    ) as running:
        running.up()
        for kind, how in KINDS.items():
            saved = str(tmp_path / kind)
            for port, stls in ports:
                assert visit(port, tmp_path, *how, *stls, "-sess_out", saved) == "New", kind
                # A short ticket would only name a session that the server stores.
                assert (ticketOctets(saved) > 100) == ("ticket" in kind)
                for again, stlsAgain in ports:
                    took = visit(again, tmp_path, *how, *stlsAgain, "-sess_in", saved)
                    assert took == "Reused", kind
        # The file has another time, but the same content.
        (tmp_path / "cert.pem").touch()
        for kind, how in KINDS.items():
            assert visit(secure, tmp_path, *how, "-sess_in", str(tmp_path / kind)) == "Reused"
        renew(tmp_path)
        for kind, how in KINDS.items():
            for port, stls in ports:
                saved = str(tmp_path / kind)
                assert visit(port, tmp_path, *how, *stls, "-sess_in", saved) == "New", kind
            visit(secure, tmp_path, *how, "-sess_out", saved)
            assert visit(secure, tmp_path, *how, "-sess_in", saved) == "Reused", kind
        running.waitFor("serving the renewed certificate")
    assert sum("renewed" in line for line in running.lines) == 1
