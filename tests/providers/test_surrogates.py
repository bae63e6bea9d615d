"""
Surrogates of messages in Maildirs and mboxes.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pop3svc.downgrading.converter import surrogateSize
from pop3svc.providers.files import counting
from pop3svc.providers.maildir.store import MaildirStore
from pop3svc.providers.mbox.store import MboxStore
from pop3svc.testing import Client, Inline, conversation
from tests.anybody import Anybody
from tests.support.conversations import ALICE
from tests.support.maildirs import deliver
from tests.support.messages import asSent

MAIL = "Subject: Grüße\n\nü\n".encode()
LARGE = MAIL + b"x\xc3\xbc\n" * 400_000
PLAIN = b"Subject: x\n\nx\n"


def size(message: bytes) -> int:
    return surrogateSize([message]) or len(asSent(message))


def sizes(client: Client) -> list[int]:
    lines = client.say(b"LIST").split(b"\r\n")[1:-2]
    return [int(line.split(b" ")[1]) for line in lines]


def sent(client: Client, number: int) -> bytes:
    return client.say(b"RETR %d" % number).partition(b"\r\n")[2].removesuffix(b".\r\n")


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    path = tmp_path / "alice"
    path.mkdir()
    return path


def test_rememberedOverARestart(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    After a restart, the service reads the sizes from the file C{pop3svc-sizes}, and counts no
    message again.
    """
    packed = gzip.compress(MAIL * 2)
    messages = [MAIL, PLAIN, LARGE, MAIL * 2]
    for number, message in enumerate([MAIL, PLAIN, LARGE, packed]):
        deliver(maildir, f"{number}.x", message)
    expected = [size(each) for each in messages]
    for isFirst in (True, False):
        store = MaildirStore(str(maildir.parent), runner=Inline())
        client = conversation(Anybody(store), ALICE)
        if isFirst:
            assert len(sent(client, 1)) == expected[0]
        assert sizes(client) == expected
        assert [len(sent(client, number)) for number in (1, 2, 3, 4)] == expected
        assert client.say(b"QUIT").startswith(b"+OK")
        # A second count would fail.
        monkeypatch.setattr(counting, "measure", None)


def test_sizesInNames(maildir: Path) -> None:
    """
    With sizes=names, RETR sends messages and no surrogates, because LIST shows the sizes in the
    names.
    """
    octets = len(asSent(MAIL))
    deliver(maildir, f"1.x,S={len(MAIL)},W={octets}", MAIL)
    store = MaildirStore(str(maildir.parent), runner=Inline(), believesNames=True)
    client = conversation(Anybody(store), ALICE)
    assert sent(client, 1) == asSent(MAIL)
    assert sizes(client) == [octets]


@pytest.mark.parametrize("variant", ["mboxo", "mboxrd"])
def test_mbox(tmp_path: Path, variant: str) -> None:
    """
    LIST shows the size of the surrogate that RETR sends.  A surrogate is made without the quoting
    of mboxrd, but with the quoting of mboxo.
    """
    quoted = MAIL + b">From \xc3\xbc\n"
    messages = [quoted, PLAIN, LARGE]
    (tmp_path / "alice").write_bytes(
        b"".join(b"From a@b Thu Jan  1 00:00:00 2026\n" + each + b"\n" for each in messages)
    )
    store = MboxStore(str(tmp_path / "{user}"), variant=variant, runner=Inline())
    client = conversation(Anybody(store), ALICE)
    if variant == "mboxrd":
        messages[0] = quoted.replace(b">From", b"From")
    assert sizes(client) == [size(each) for each in messages]
    assert [len(sent(client, number)) for number in (1, 2, 3)] == sizes(client)
    assert sent(client, 1).startswith(b"Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n")
