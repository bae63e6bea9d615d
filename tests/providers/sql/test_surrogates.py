"""
A delivery to a database computes the sizes of surrogates.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from pop3svc.downgrading.converter import surrogateSize
from pop3svc.drivers import makeDriver
from pop3svc.interfaces import DeliveryCopy
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.sql.content import PIECE
from pop3svc.providers.sql.store import SQLStore
from pop3svc.testing import Inline
from tests.support.databases import InlinePool, finish

HEADERS = {
    "ann": b"Delivered-To: ann@x.example\r\n",
    "ben": "Delivered-To: bén@x.example\r\n".encode(),
    "eve": b"",
}


@pytest.fixture
def store(tmp_path: Path) -> SQLStore:
    driver = makeDriver(f"sqlite:{tmp_path}/mail.db", mayCreate=True)
    made = SQLStore(driver, clock=Clock(), pool=InlinePool(driver), executor=Inline())
    finish(made.prepare())
    return made


@pytest.mark.parametrize(
    "message",
    [
        b"Subject: x\r\n\r\nx\r\n",
        b"Subject: x\r\n\r\n\xc3\xbc\r\n",
        b"Subject: \xc3\xbc\r\n\r\nx\r\n",
        # The first line continues the last header field of the copy.
        b" \xc3\xbc\r\nSubject: x\r\n\r\nx\r\n",
        b"Subject: \xc3\xbc\r\n\r\n" + b"x" * 998 * (2 * PIECE // 998),
        b"",
    ],
)
def test_copies(store: SQLStore, message: bytes) -> None:
    """
    The surrogate of a copy is the surrogate of the whole message with the header fields of this
    copy.
    """
    copies = [DeliveryCopy(name, header=header) for name, header in HEADERS.items()]
    assert finish(store.deliver(copies, io.BytesIO(message))) == [None] * 3
    info = ConnectionInfo(1, None, True)
    for name, header in HEADERS.items():
        mailbox = store.openMailbox(info, name)
        [uniqueID] = finish(mailbox.listMessageUniqueIDs(info))
        whole = header + message
        needed = surrogateSize([whole])
        [size] = mailbox.messageSizes(info, [uniqueID])
        assert mailbox.surrogateSizes(info, [uniqueID]) == [needed or size]
        assert mailbox.needsUTF8(info, uniqueID) is (needed > 0)


def test_arrivedLater(store: SQLStore) -> None:
    """
    The size of the surrogate is also known for a message that arrived after the listing and that
    C{messageExists} has found.
    """
    info = ConnectionInfo(1, None, True)
    message = b"Subject: \xc3\xbc\r\n\r\n"
    assert finish(store.deliver([DeliveryCopy("ann")], io.BytesIO(b"x"))) == [None]
    mailbox = store.openMailbox(info, "ann")
    assert len(finish(mailbox.listMessageUniqueIDs(info))) == 1
    assert finish(store.deliver([DeliveryCopy("ann")], io.BytesIO(message))) == [None]
    _, uniqueID = finish(store.openMailbox(info, "ann").listMessageUniqueIDs(info))
    assert mailbox.surrogateSizes(info, [uniqueID]) == [None]
    assert finish(mailbox.messageExists(info, uniqueID))
    assert mailbox.surrogateSizes(info, [uniqueID]) == [surrogateSize([message])]
    assert mailbox.needsUTF8(info, uniqueID)
