"""
Messages with UTF-8 in header fields, from a running service.
"""

from __future__ import annotations

import poplib
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path

import pytest

from pop3svc.accounts.passwordediting import addUser
from tests.interop.clients import program, run, writePrivately
from tests.support.maildirs import deliver
from tests.support.running import Running, freePort

NAME, PASSWORD = "jürgen", "größe"
MAIL = "From: Jürgen <jürgen@example.org>\nSubject: Grüße\n\nü\n.\n".encode()
SENT = MAIL.replace(b"\n", b"\r\n")
PLAIN = b"Subject: plain\r\n\r\nx\r\n"


class Client(poplib.POP3):
    """
    Sends names and passwords in UTF-8.
    """

    encoding = "utf-8"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("utf8")
    addUser(str(path / "users"), NAME, PASSWORD)
    (path / "mail" / NAME).mkdir(parents=True)
    deliver(path / "mail" / NAME, "1.x", MAIL)
    deliver(path / "mail" / NAME, "2.x", PLAIN)
    return path


def options(home: Path, port: int, *more: str) -> list[str]:
    return [
        *("--provider", f"maildir:{home / 'mail'}", "--auth", f"passwd:{home / 'users'}"),
        *("--endpoint", f"tcp:{port}:interface=127.0.0.1", *more),
    ]


@pytest.fixture(scope="module")
def port(home: Path) -> Iterator[int]:
    port = freePort()
    with Running(home / "running", *options(home, port)) as running:
        running.up()
        yield port


def loggedIn(port: int, isUTF8: bool = False) -> Client:
    client = Client("127.0.0.1", port, timeout=60)
    assert client.capa()["UTF8"] == ["USER"]
    if isUTF8:
        assert client.utf8().startswith(b"+OK")
    client.user(NAME)
    client.pass_(PASSWORD)
    return client


def sizes(client: Client) -> list[int]:
    return [int(line.split()[1]) for line in client.list()[1]]


def retrieved(client: Client, number: int) -> bytes:
    return b"".join(line + b"\r\n" for line in client.retr(number)[1])


def test_poplib(port: int) -> None:
    """
    The size that LIST shows is the size that RETR sends, before and after UTF8; a second session
    knows the sizes from the Maildir.
    """
    for isUTF8 in (False, True, False):
        client = loggedIn(port, isUTF8)
        messages = [retrieved(client, number) for number in (1, 2)]
        assert sizes(client) == [len(each) for each in messages]
        assert client.stat() == (2, sum(map(len, messages)))
        assert messages[1] == PLAIN
        if isUTF8:
            assert messages[0] == SENT
        else:
            header, _, body = messages[0].partition(b"\r\n\r\n")
            assert header.isascii() and body == "ü\r\n.\r\n".encode()
            found = message_from_bytes(messages[0], policy=SMTP)
            assert found["subject"] == "Grüße"
            assert found["from"] == (
                '"Jürgen <jürgen@example.org>" <invalid@internationalized-address.invalid>'
            )
        client.quit()


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "USER"])
def test_curl(port: int, home: Path, mechanism: str) -> None:
    """
    curl logs in with a name and a password in UTF-8, and gets a surrogate.
    """
    login = [] if mechanism == "USER" else ["--login-options", f"AUTH={mechanism}"]
    url = f"pop3://127.0.0.1:{port}/1"
    got = run([program("curl"), "-sS", "-u", f"{NAME}:{PASSWORD}", *login, url], home)
    assert b"Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n" in got
    assert got.partition(b"\r\n\r\n")[0].isascii()


def test_mpop(port: int, home: Path) -> None:
    """
    mpop compares the octets that it receives with the size in LIST.
    """
    inbox = home / "mpop"
    for name in ("cur", "new", "tmp"):
        (inbox / name).mkdir(parents=True)
    writePrivately(
        home / "mpoprc",
        f"account default\nhost 127.0.0.1\nport {port}\nuser {NAME}\npassword {PASSWORD}\n"
        f"auth user\ntls off\nkeep on\ndelivery maildir {inbox}\nuidls_file {home / 'uidls'}\n",
    )
    run([program("mpop"), f"--file={home / 'mpoprc'}"], home)
    got = [each.read_bytes() for each in (inbox / "new").iterdir()]
    assert len(got) == 2
    assert any(b"Subject: =?utf-8?B?R3LDvMOfZQ==?=\n" in each for each in got)


@pytest.mark.parametrize("option", ["--utf8-headers=refuse", "--without=UTF8"])
def test_otherSettings(home: Path, option: str) -> None:
    port = freePort()
    with Running(home / "other", *options(home, port, option)) as running:
        running.up()
        client = Client("127.0.0.1", port, timeout=60)
        client.user(NAME)
        client.pass_(PASSWORD)
        assert sizes(client) == [len(SENT), len(PLAIN)]
        assert retrieved(client, 2) == PLAIN
        if option == "--without=UTF8":
            assert "UTF8" not in client.capa()
            assert retrieved(client, 1) == SENT
            return
        for command in (client.retr, client.list):
            with pytest.raises(poplib.error_proto, match=r"-ERR \[UTF8\] "):
                command(1)
        client.quit()
        client = loggedIn(port, isUTF8=True)
        assert retrieved(client, 1) == SENT


def test_wrongValue(home: Path) -> None:
    with Running(home / "wrong", *options(home, freePort(), "--utf8-headers=maybe")) as running:
        assert running.process.wait(60) == 1
        assert running.waitFor("must be one of convert, refuse")
