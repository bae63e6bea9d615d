"""
A server with faults, and clients of it.
"""

from __future__ import annotations

import poplib
from typing import Any

from pop3svc.testing import (
    POP3Server,
)
from tests.support.running import PATIENCE

MESSAGE = b"Subject: hello\r\n\r\n" + b"A line of text.\r\n" * 100


def served(*faults: Any, **options: Any) -> POP3Server:
    return POP3Server({"alice": "secret"}, faults=faults, **options)


def connected(server: POP3Server) -> poplib.POP3:
    return poplib.POP3(server.host, server.port, PATIENCE)


def loggedIn(server: POP3Server) -> poplib.POP3:
    client = connected(server)
    client.user("alice")
    client.pass_("secret")
    return client
