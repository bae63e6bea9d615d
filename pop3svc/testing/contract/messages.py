"""
Tests of the contract: contents of messages.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock

from pop3svc.interfaces import IChunkedContent, IFileContent, IMessageContent
from pop3svc.protocol.content import MessageBody
from pop3svc.testing.contract.case import MESSAGES, ContractCase, nameOf
from pop3svc.testing.contract.session import bodyOf, normalised

__all__ = ["MessageContract"]


def openFiles() -> int | None:
    """
    @return: the number of open descriptors of this process; L{None} if it is not known.
    """
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None


class MessageContract(ContractCase):
    """
    Messages are bytes and unchanged, and their contents are closed once.
    """

    def test_content(self) -> None:
        """
        Except for their line ends, messages are unchanged.  They are in the order of the listing.
        """
        mailbox, listed = self._opened()
        for uniqueID, message in zip(listed, MESSAGES, strict=True):
            got = self._content(mailbox, uniqueID)
            self.assertEqual(
                got.replace(b"\r\n", b"\n").rstrip(b"\n"),
                message.replace(b"\r\n", b"\n").rstrip(b"\n"),
            )
        self._closed(mailbox)

    def test_contentIsBytes(self) -> None:
        """
        A message is bytes, not text, in each form of content.
        """
        mailbox, listed = self._opened()
        for uniqueID in listed:
            content = self._now(mailbox.messageContent, self._info(), uniqueID)
            name = nameOf(mailbox, "messageContent")
            assert content is not None and not isinstance(content, str), (
                f"{name} returned {type(content).__name__}; messages are bytes"
            )
            close: Callable[[], Any] = getattr(content, "close", lambda: None)
            try:
                part, how = self._firstPart(content)
            finally:
                close()
            assert part is None or isinstance(part, bytes), (
                f"{name} returned something whose {how} gives {type(part).__name__}; messages are "
                "bytes"
            )
        self._closed(mailbox)

    def _firstPart(self, content: Any) -> tuple[Any, str]:
        """
        @return: the first part of a content, and the name of the method that returned it.
        """
        if IFileContent.providedBy(content) or isinstance(content, bytes):
            return None, ""
        if IMessageContent.providedBy(content):
            return self._now(content.nextLine), f"{type(content).__qualname__}.nextLine"
        if IChunkedContent.providedBy(content):
            return self._now(content.nextChunk), f"{type(content).__qualname__}.nextChunk"
        if hasattr(content, "read"):
            return content.read(1), "read"
        return next(iter(content), None), "iteration"

    def test_contentAsItIsSent(self) -> None:
        """
        A content that provides L{IFileContent} is a part of a file with exactly the octets that
        RETR sends.
        """
        mailbox, listed = self._opened()
        for uniqueID in listed:
            content = self._now(mailbox.messageContent, self._info(), uniqueID)
            if IFileContent.providedBy(content):
                region = os.pread(content.fileno, content.length, content.offset)
                self.assertEqual(len(region), content.length)
                self.assertEqual(region, normalised(region), "it has bare LFs")
                self.assertFalse(region.startswith(b".") or b"\r\n." in region, "it has dots")
            MessageBody(content, Clock(), 10).close()
        self._closed(mailbox)

    def test_contentTwice(self) -> None:
        """
        A message can be read again, also while it is still being read.
        """
        mailbox, listed = self._opened()
        for uniqueID in listed:
            first = self._content(mailbox, uniqueID)
            self.assertEqual(self._content(mailbox, uniqueID), first)
        whole = self._content(mailbox, listed[3])
        content = self._now(mailbox.messageContent, self._info(), listed[3])
        body = MessageBody(content, Clock(), 10)
        begin = self._now(body.next)
        self.assertEqual(self._content(mailbox, listed[3]), whole)
        while (chunk := self._now(body.next)) is not None:
            begin += chunk
        self.assertEqual(begin, whole)
        body.close()
        self._closed(mailbox)

    def test_closings(self) -> None:
        """
        The service closes the content of a message once, and the content then releases its
        resources.  The test reads a message to its end, cuts it short by TOP, disconnects while the
        service sends it, and opens it without reading it.
        """
        # Free the objects that earlier tests have left, because their descriptors would be closed
        # during this test.
        gc.collect()
        session = self._session()
        session.logIn()
        session.ok(b"RETR 4")
        session.ok(b"TOP 4 1")
        before = openFiles()
        for line in (b"RETR 4", b"TOP 4 1", b"RETR 1", b"TOP 2 0", b"RETR 2"):
            session.ok(line)
        self.assertEqual(openFiles(), before, "descriptors are left open")
        session.quit()
        before = openFiles()
        session = self._furtherSession()
        session.logIn()
        session.stallIn(b"RETR 4")
        session.vanish()
        self.assertEqual(openFiles(), before, "descriptors are left open")
        mailbox, listed = self._reopened()
        content = self._now(mailbox.messageContent, self._info(), listed[3])
        MessageBody(content, Clock(), 10).close()
        self._closed(mailbox)
        self.assertEqual(openFiles(), before, "descriptors are left open")

    def test_retrAndTop(self) -> None:
        """
        RETR sends each message whole and unchanged.  TOP sends the beginning of a message, or the
        whole message.
        """
        session = self._session()
        session.logIn()
        for number, message in enumerate(MESSAGES, 1):
            got = bodyOf(session.ok(b"RETR %d" % number))
            self.assertEqual(got, normalised(message) if message else got)
            everything = bodyOf(session.ok(b"TOP %d 99999999" % number))
            self.assertEqual(everything, got)
            header = got.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if b"\r\n\r\n" in got else got
            self.assertEqual(bodyOf(session.ok(b"TOP %d 0" % number)), header)
            line = got[len(header) :].partition(b"\r\n")[0] + b"\r\n" if header != got else b""
            self.assertEqual(bodyOf(session.ok(b"TOP %d 1" % number)), header + line)
        session.quit()
