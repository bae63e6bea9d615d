"""
Endpoint strings, and arguments with the same quoting.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.internet.testing import MemoryReactor

from pop3svc.interfaces import IDelivery, IReadOnlyMailbox
from pop3svc.service.endpoints import (
    InheritedPortReactor,
    _isBareSSL,
    parseArguments,
    serverEndpoint,
)
from pop3svc.service.plugins import makeFolder, makeMaildir, makeMemory


@pytest.mark.parametrize(
    ("text", "positional", "named"),
    [
        ("", [""], {}),
        ("/srv/mail", ["/srv/mail"], {}),
        ("/srv/mail:readonly=yes", ["/srv/mail"], {"readonly": "yes"}),
        (r"/srv/a\:b\=c\\d", [r"/srv/a:b=c\d"], {}),
        ("a=b=c", [], {"a": "b=c"}),
        ("a\\", ["a\\"], {}),
        ("ssl:995:interface=\\:\\:", ["ssl", "995"], {"interface": "::"}),
    ],
)
def test_parseArguments(text: str, positional: list[str], named: dict[str, str]) -> None:
    assert parseArguments(text) == (positional, named)


def test_argumentGivenTwice() -> None:
    with pytest.raises(ValueError, match="a is given twice"):
        parseArguments("a=1:a=2")


def test_takesTheServicesCertificate() -> None:
    assert _isBareSSL("ssl:995")
    assert _isBareSSL("ssl:995:interface=127.0.0.1")
    assert not _isBareSSL("ssl:995:privateKey=x.pem")
    assert not _isBareSSL("ssl:995:certKey=x.pem")
    assert not _isBareSSL("tcp:995")


def listening(text: str) -> Any:
    endpoint = serverEndpoint(MemoryReactor(), text, object())
    return endpoint._endpoint


def test_bareSSL() -> None:
    assert type(listening("ssl:995")).__name__ == "_DualStackEndpoint"
    assert type(listening("ssl:port=995")).__name__ == "_DualStackEndpoint"
    assert type(listening("ssl:995:interface=127.0.0.1")).__name__ == "TCP4ServerEndpoint"
    assert type(listening(r"ssl:995:interface=\:\:1:backlog=9")).__name__ == "TCP6ServerEndpoint"


@pytest.mark.parametrize(
    ("text", "backlog"),
    [
        ("tcp:110", 1024),
        ("tcp:110:interface=127.0.0.1", 1024),
        ("tcp:110:127.0.0.1", 1024),
        ("tcp:110:127.0.0.1:9", 9),
        ("tcp:port=110:backlog=9", 9),
        ("tcp6:110", 1024),
        ("tcp6:110:9", 9),
        ("ssl:995:interface=127.0.0.1", 1024),
    ],
)
def test_backlog(text: str, backlog: int) -> None:
    """
    Up to 1,024 new clients may wait, unless the endpoint says another number.
    """
    reactor = MemoryReactor()
    serverEndpoint(reactor, text, CertificateOptions()).listen(Factory())
    assert [each[2] for each in reactor.tcpServers] == [backlog]


def test_inheritedPorts() -> None:
    """
    Each endpoint is given the next inherited port, whatever the endpoint would listen on.
    """
    adopted: list[Any] = []

    class Reactor:
        def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> int:
            adopted.append((descriptor, family, type(factory).__name__))
            return descriptor

    texts = ["tcp:110", "ssl:995", "ssl:995:interface=\\:\\:1", "systemd:domain=INET6:name=x"]
    ports = [(os.open(os.devnull, os.O_RDONLY), number) for number in range(10, 14)]
    on = InheritedPortReactor(Reactor(), ports)
    for text, (descriptor, _) in zip(texts, ports, strict=True):
        listening: list[Any] = []
        serverEndpoint(on, text, CertificateOptions()).listen(Factory()).addCallback(
            listening.append
        )
        assert listening == [descriptor]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    kinds = ["Factory", "TLSMemoryBIOFactory", "TLSMemoryBIOFactory", "Factory"]
    assert adopted == [(*port, kind) for port, kind in zip(ports, kinds, strict=True)]


@pytest.mark.parametrize(
    "text",
    [
        "ssl:",
        "ssl",
        "ssl:x",
        "ssl:-1",
        "ssl:65536",
        "ssl:1:2",
        "ssl:1:x=y",
        "ssl:1:backlog=x",
        "x:1",
    ],
)
def test_badEndpoints(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        serverEndpoint(MemoryReactor(), text, object())


BAD_PATHS = ["", ":", "a:b", "/:readonly=maybe", "/:x=y", "path=/:/tmp", "/:wait=5"]
BAD_PATHS += ["/:lock=refuse:wait=5", "/:lock=wait:wait=x", "/:lock=maybe"]


@pytest.mark.parametrize("argument", BAD_PATHS)
def test_badPaths(argument: str) -> None:
    for make in (makeMaildir, makeFolder):
        with pytest.raises(ValueError, match=r"."):
            make(argument)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("uidl=cyrus", "uidl is dovecot, courier or a format such as %v.%u"),
        ("uidl=%q", "%q is not known"),
        ("uidl=courier:duplicates=rename", "uidl=courier has neither"),
        ("uidl=dovecot:duplicates=yes", "duplicates is allow or rename"),
        ("uidl=dovecot:xuidl=maybe", "xuidl is yes or no"),
        ("uidl=dovecot:control=/a/../b", "control: "),
        ("control=/", "require uidl"),
        ("xuidl=yes", "require uidl"),
    ],
)
def test_badMigrations(options: str, part: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        makeMaildir(f"{tmp_path}:{options}")


def test_pluginArguments(tmp_path: Any) -> None:
    stores: list[tuple[Any, bool]] = [
        (makeMaildir(f"{tmp_path}:readonly=yes"), True),
        (makeFolder(f"path={tmp_path}:readonly=no"), False),
    ]
    for store, isReadOnly in stores:
        mailbox = store.openMailbox(None, "alice")
        assert IReadOnlyMailbox.providedBy(mailbox) is isReadOnly
        assert IDelivery.providedBy(store) is not isReadOnly
    makeMaildir(f"{tmp_path}:lock=wait:wait=5")
    makeMaildir(f"{tmp_path}:lock=wait")
    for uidl in ("dovecot", "courier", "%v.%u", "%{uid | hex(8)}", r"%u\:%v"):
        makeMaildir(f"{tmp_path}:uidl={uidl}")
    makeMaildir(f"{tmp_path}:uidl=dovecot:control={tmp_path}/{{user}}:duplicates=rename:xuidl=yes")
    assert len(makeMemory("messages=3").maildrop("x").messages) == 3
    assert len(makeMemory("").maildrop("x").messages) == 1
    for argument in ("x", "messages=x", "messages=-1", "y=1"):
        with pytest.raises(ValueError, match="messages"):
            makeMemory(argument)
