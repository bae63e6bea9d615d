"""
Connections in memory, their time, their events and how they end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from pop3svc.protocol.commands import COMMANDS
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.session import State
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client
from tests.support.mailboxes import logged

BIG = b"Subject: big\n\n" + b"0123456789abcdef\n" * 50_000


def makeFactory(messages: Any = (b"a: b\n\nc\n", BIG), **options: Any) -> POP3Factory:
    provider = MemoryProvider({"alice": "secret"}, messages)
    return POP3Factory(provider, **{"clock": Clock(), **options})


def loggedIn(**options: Any) -> Client:
    client = Client(makeFactory(**options))
    client.logIn()
    return client


def reason(client: Client, act: Any) -> str:
    """
    @return: the reason in the last log line of the connection.
    """
    (event,) = events("close", act)
    return str(event["reason"])


def events(kind: str, act: Any) -> list[Any]:
    """
    @return: the events of this kind during C{act}.
    """
    return [event for event in logged(act) if event.get("pop3Event") == kind]


def advance(client: Client, seconds: float) -> None:
    factory = client.protocol.factory
    assert isinstance(factory, POP3Factory)
    factory.clock.advance(seconds)  # type: ignore[attr-defined]
    client.pump()


def withCommand(run: Callable[..., Any], **fields: Any) -> POP3Factory:
    """
    @return: a factory with one more command, X.
    """
    command = Command("X", frozenset([State.AUTHORIZATION]), run, **fields)
    provider = MemoryProvider({"alice": "secret"}, [b"x\n"])
    return POP3Factory(provider, clock=Clock(), commands={**COMMANDS, "X": command})


def connected(factory: POP3Factory, transport: Any) -> Any:
    protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000))
    protocol.makeConnection(transport)
    return protocol
