"""
The example of an asyncio program that serves POP3.
"""

from __future__ import annotations

import poplib
import signal
import socket
import time
import unittest
from pathlib import Path
from typing import Any

import pytest
from asyncmail import Mailbox, Maildrop

from pop3svc.testing import MailboxContract
from tests.examples.serving import logIn, messages, program, untilOpen
from tests.support.running import PATIENCE, freePort


class MailboxTests(MailboxContract, unittest.TestCase):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        self.maildrop = Maildrop()
        self.maildrop.change(messages, [])
        return self.again()

    def again(self) -> Any:
        return Mailbox(self.maildrop)

    def deliver(self, message: bytes) -> str:
        self.maildrop.change([message], [])
        return list(self.maildrop.messages)[-1]

    def remove(self, uniqueID: str) -> None:
        self.maildrop.change([], [uniqueID])


def send(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        except OSError:
            # The program has reset the connection, because the message was too large.
            pass


def test_served(tmp_path: Path) -> None:
    taking, mail = freePort(), freePort()
    with program(tmp_path, "asyncmail.py", str(taking), str(mail)) as running:
        untilOpen(mail)
        untilOpen(taking)
        send(taking, b"Subject: one\n\nHello.\n")
        send(taking, b"x" * 1_100_000)
        client = logIn(mail, "alice", "secret")
        assert messages(client) == [b"Subject: one\n\nHello.\n"]
        client.dele(1)
        client.quit()
        for name, password in (("alice", "wrong"), ("bob", "secret")):
            with pytest.raises(poplib.error_proto, match="AUTH"):
                logIn(mail, name, password)
        client = logIn(mail, "alice", "secret")
        assert client.stat() == (0, 0)
        before = time.monotonic()
        status, said = running.end(signal.SIGTERM)
        assert (status, said) == (0, "")
        assert time.monotonic() - before < PATIENCE / 2
        assert client.file.readline() == b""
        client.close()
