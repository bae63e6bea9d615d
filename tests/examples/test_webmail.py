"""
The example of POP3 beside a web server.
"""

from __future__ import annotations

import signal
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.examples.serving import logIn, messages, program, untilOpen
from tests.support.running import PATIENCE, freePort


def send(port: int, **fields: str) -> str:
    data = urllib.parse.urlencode(fields).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data, PATIENCE) as answer:
        return answer.read().decode()


def test_served(tmp_path: Path) -> None:
    web, mail = freePort(), freePort()
    with program(tmp_path, "webmail.py", str(web), str(mail)) as running:
        untilOpen(web)
        untilOpen(mail)
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/", None, PATIENCE) as page:
            assert b"0 messages wait" in page.read()
        assert "1 messages wait" in send(web, subject="Grüße", text=".\n..\n")
        for status, fields in {
            400: {"subject": "a\nBcc: x"},
            413: {"text": "x" * 100_001},
        }.items():
            with pytest.raises(urllib.error.HTTPError) as caught:
                send(web, **fields)
            assert caught.value.code == status
            caught.value.close()
        client = logIn(mail, "alice", "secret")
        (message,) = messages(client)
        assert b"Subject: =?utf-8?" in message and message.endswith(b"\n.\n..\n")
        client.dele(1)
        client.quit()
        client = logIn(mail, "alice", "secret")
        assert client.stat() == (0, 0)
        # The program closes the connections of open sessions before it ends.
        status, said = running.end(signal.SIGINT)
        assert status == 0 and "Traceback" not in said and "the service is stopping" in said, said
        assert client.file.readline() == b""
        client.close()
