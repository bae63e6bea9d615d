"""
The program fetches all messages, and loses none when something goes wrong.
"""

import subprocess
import sys

import pytest

from pop3svc.testing import CutOff, ExpiredCertificate

MAIL = [b"Subject: %d\n\n.dot\n" % number for number in range(3)]


def poll(server, directory):
    for message in MAIL:
        server.deliver("alice", message)
    login = [server.host, str(server.tlsPort), "alice", "secret", server.caFile, str(directory)]
    return subprocess.run(
        [sys.executable, "poll.py", *login], capture_output=True, text=True, timeout=60
    )


def fetched(directory):
    return [each.read_bytes() for each in sorted(directory.iterdir())]


@pytest.mark.pop3_server({"alice": "secret"})
def test_fetches(pop3_server, tmp_path):
    ran = poll(pop3_server, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert fetched(tmp_path) == MAIL
    assert pop3_server.messages("alice") == {}


@pytest.mark.pop3_server({"alice": "secret"}, faults=[CutOff(30, command="RETR", nth=2)])
def test_cutOff(pop3_server, tmp_path):
    ran = poll(pop3_server, tmp_path)
    assert ran.returncode == 1 and ran.stderr.startswith("mail stays on the server: ")
    assert fetched(tmp_path) == MAIL[:1]
    assert list(pop3_server.messages("alice").values()) == MAIL


@pytest.mark.pop3_server({"alice": "secret"}, faults=[ExpiredCertificate()])
def test_expiredCertificate(pop3_server, tmp_path):
    ran = poll(pop3_server, tmp_path)
    assert ran.returncode == 1 and "certificate has expired" in ran.stderr
    assert "PASS" not in pop3_server.transcriptText()
