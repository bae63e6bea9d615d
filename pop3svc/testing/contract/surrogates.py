"""
Tests of the contract: surrogates of messages with UTF-8 in header fields.
"""

from __future__ import annotations

from typing import Any

from pop3svc.downgrading.converter import surrogateSize
from pop3svc.interfaces import ISurrogates
from pop3svc.testing.contract.case import ContractCase, nameOf
from pop3svc.testing.contract.session import bodyOf

__all__ = ["SurrogateContract"]

# A message of ASCII; messages with UTF-8 in the header, in the body only, and in the header of a
# part; and a message in another charset.
_MESSAGES = (
    b"Subject: one\n\none\n",
    b"Subject: gr\xc3\xbc\xc3\x9fe\nFrom: \xc3\xa9@x.example\n\n.two\n",
    b"Subject: three\n\nthr\xc3\xa9\xc3\xa9\n",
    b"Content-Type: multipart/mixed; boundary=x\n\n--x\nA: \xc3\xa9\n\n--x--\n",
    b"Subject: f\xfcnf\n\nf\xfcnf\n",
)
_NEED = (False, True, False, True, False)


class SurrogateContract(ContractCase):
    """
    Clients get surrogates until they send UTF8, and LIST gives the number of octets that RETR
    sends.
    """

    def _convertible(self) -> tuple[Any, list[str]]:
        mailbox, listed = self._opened(_MESSAGES)
        if not (ISurrogates.providedBy(mailbox) and mailbox.hasSurrogates):
            self._closed(mailbox)
            self.skipTest("it does not provide ISurrogates")
        return mailbox, listed

    def test_surrogateSizes(self) -> None:
        """
        If a message needs a surrogate, C{surrogateSizes} gives the size of the surrogate, and
        otherwise the size of the message itself.  C{needsUTF8} agrees with these sizes, or returns
        L{None}.
        """
        mailbox, listed = self._convertible()
        for asked in (listed, listed[1:2], listed[::-1]):
            try:
                sizes = list(self._now(mailbox.surrogateSizes, self._info(), list(asked)))
            except NotImplementedError:
                break
            contents = [self._content(mailbox, each) for each in asked]
            right = [
                surrogateSize([content]) or self._sentSize(mailbox, uniqueID)
                for uniqueID, content in zip(asked, contents, strict=True)
            ]
            name = nameOf(mailbox, "surrogateSizes")
            assert sizes == right, f"{name} returned {sizes}; the sizes are {right}"
        for uniqueID, isNeeded in zip(listed, _NEED, strict=True):
            needs = mailbox.needsUTF8(self._info(), uniqueID)
            name = nameOf(mailbox, "needsUTF8")
            assert needs is None or needs is isNeeded, (
                f"{name} returned {needs!r} for {uniqueID!r}, not {isNeeded}"
            )
        self._closed(mailbox)

    def test_surrogatesInASession(self) -> None:
        """
        With and without UTF8, LIST gives the number of octets that RETR sends.  Only a client that
        has sent UTF8 gets UTF-8 in header fields.
        """
        mailbox, _ = self._convertible()
        self._closed(mailbox)
        for isUTF8 in (False, True, False):
            session = self._furtherSession()
            if isUTF8:
                session.ok(b"UTF8")
            session.logIn()
            # Send RETR before the sizes are known, and again afterwards.
            sent = [bodyOf(session.ok(b"RETR %d" % number)) for number in range(1, 6)]
            sizes = bodyOf(session.ok(b"LIST"))
            listed = b"".join(b"%d %d\r\n" % (at, len(each)) for at, each in enumerate(sent, 1))
            self.assertEqual(sizes, listed)
            for number, message in enumerate(sent, 1):
                self.assertEqual(bodyOf(session.ok(b"RETR %d" % number)), message)
                self.assertEqual(bodyOf(session.ok(b"TOP %d 99" % number)), message)
            self.assertEqual([b"\xc3\xa9" in each for each in sent[3:4]], [isUTF8])
            self.assertEqual(sent[1].isascii(), not isUTF8)
            session.quit()
