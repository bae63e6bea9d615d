"""
Endpoint strings and arguments quoted as in them.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.testing import MemoryReactor

from pop3svc.service.endpoints import _isBareSSL, parseArguments, serverEndpoint
from pop3svc.service.makers import makeFolder, makeMaildir, makeMemory


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


def test_twice() -> None:
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


@pytest.mark.parametrize("argument", ["", ":", "a:b", "/:readonly=maybe", "/:x=y", "path=/:/tmp"])
def test_badPaths(argument: str) -> None:
    for make in (makeMaildir, makeFolder):
        with pytest.raises(ValueError, match=r"."):
            make(argument)


def test_makers(tmp_path: Any) -> None:
    assert makeMaildir(f"{tmp_path}:readonly=yes")._readOnly
    assert not makeFolder(f"path={tmp_path}:readonly=no")._readOnly
    assert len(makeMemory("messages=3").maildrop("x").messages) == 3
    assert len(makeMemory("").maildrop("x").messages) == 1
    for argument in ("x", "messages=x", "messages=-1", "y=1"):
        with pytest.raises(ValueError, match="messages"):
            makeMemory(argument)
