"""
A POP3 server with the protocol of twisted.mail.  The mailbox is a Maildir that does no more than
this protocol needs.

    python -m bench.twistedmail PORT TLSPORT MAIL USERS CERTIFICATE KEY

twisted.mail's own Maildir fails on Python 3 (RETR, DELE).  Like twisted.mail's Maildir, this
mailbox takes the size of a file for the size of a message.  The mailbox reads messages with LF as
line ends, because twisted.mail changes each LF to CRLF.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.mail.pop3 import POP3, IMailbox
from zope.interface import implementer


class LFReader:
    """
    Reads a file, and changes each CRLF to LF.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._held = b""

    def read(self, size: int) -> bytes:
        """
        @return: some octets; empty at the end of the file.
        """
        data = self._held + self._file.read(size)
        self._held = b""
        if data.endswith(b"\r") and len(data) > 1:
            data, self._held = data[:-1], b"\r"
        elif not data:
            self._file.close()
        return data.replace(b"\r\n", b"\n")


@implementer(IMailbox)
class MaildirMailbox:
    """
    The Maildir of one user.
    """

    def __init__(self, path: str) -> None:
        found = [
            (entry.name, entry.path)
            for folder in ("new", "cur")
            for entry in os.scandir(f"{path}/{folder}")
        ]
        found.sort()
        self._paths = [each for _, each in found]
        self._deleted: set[int] = set()

    def _size(self, index: int) -> int:
        return 0 if index in self._deleted else os.stat(self._paths[index]).st_size

    def listMessages(self, index: int | None = None) -> Any:
        """
        See L{IMailbox.listMessages}.
        """
        if index is None:
            return [self._size(each) for each in range(len(self._paths))]
        return self._size(index) if index < len(self._paths) else 0

    def getMessage(self, index: int) -> Any:
        """
        See L{IMailbox.getMessage}.
        """
        return LFReader(open(self._paths[index], "rb"))

    def getUidl(self, index: int) -> bytes:
        """
        See L{IMailbox.getUidl}.
        """
        return os.path.basename(self._paths[index]).partition(":")[0].encode()

    def deleteMessage(self, index: int) -> None:
        """
        See L{IMailbox.deleteMessage}.
        """
        self._deleted.add(index)

    def undeleteMessages(self) -> None:
        """
        See L{IMailbox.undeleteMessages}.
        """
        self._deleted.clear()

    def sync(self) -> None:
        """
        See L{IMailbox.sync}.
        """
        for index in self._deleted:
            os.unlink(self._paths[index])
        self._deleted.clear()


@implementer(IRealm)
class MaildirRealm:
    """
    Opens a Maildir for each user.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def requestAvatar(self, avatar: bytes, mind: object, *interfaces: object) -> Any:
        """
        See L{IRealm.requestAvatar}.
        """
        return IMailbox, MaildirMailbox(f"{self._path}/{avatar.decode()}"), lambda: None


class POP3Factory(Factory):
    """
    Makes connections with twisted.mail's protocol.
    """

    noisy = False

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def buildProtocol(self, address: object) -> POP3:
        """
        See L{Factory.buildProtocol}.
        """
        protocol = POP3()
        protocol.factory = self
        protocol.portal = self._portal
        return protocol


def main() -> None:
    """
    Serve until the process is killed.
    """
    port, tlsPort, mail, users, certificate, key = sys.argv[1:]
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    for line in Path(users).read_text().splitlines():
        name, _, password = line.partition(":{PLAIN}")
        checker.addUser(name.encode(), password.encode())
    factory = POP3Factory(Portal(MaildirRealm(mail), [checker]))
    for endpoint in (
        f"tcp:{port}:interface=127.0.0.1",
        f"ssl:{tlsPort}:interface=127.0.0.1:certKey={certificate}:privateKey={key}",
    ):
        serverFromString(reactor, endpoint).listen(factory)
    reactor.run()


if __name__ == "__main__":
    main()
