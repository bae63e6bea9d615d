"""
Make the mail that every server serves: the messages, the octets that RETR must send for them, and
Maildirs of the messages.
"""

from __future__ import annotations

import array
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GUESSED", "NOBODY", "SMALL", "Mail", "Sizes"]

# The owner of the mail if root runs the benchmark, because Dovecot and Courier serve no mail that
# belongs to root.
NOBODY = 65534
# The octets of each message except the big and the medium ones.
SMALL = 4096
LINE = 76
# The name of a user whose password is stored as a hash.
GUESSED = "guessed"
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@dataclass(frozen=True)
class Sizes:
    """
    The numbers of users and messages, and the sizes of messages.

    @ivar users: the number of the users C{user0} and so on, whose mailboxes short sessions open.
        There are as many users C{del0} and so on.
    @ivar messages: the messages in the mailbox of each user C{user0} and so on.
    @ivar fetched: the messages in each of the mailboxes C{del0} and so on.  Clients delete some of
        them.
    @ivar many: the messages in the mailbox C{many}.
    @ivar big: the octets of the only message in each of the mailboxes C{crlf}, C{lf} and C{dots}.
    @ivar huge: the messages in each of the mailboxes C{huge} and C{sized}.  In C{sized}, the names
        of the files contain the sizes of the messages.
    @ivar idle: the number of the users C{idle0} and so on.
    @ivar million: the messages in the mailbox C{million}.
    @ivar downloads: the number of the users C{down0} and so on, who have one message each.
    @ivar medium: the octets of each message of the users C{down0} and so on.
    """

    users: int = 64
    messages: int = 20
    fetched: int = 200
    many: int = 10_000
    big: int = 50_000_000
    huge: int = 100_000
    idle: int = 500
    million: int = 1_000_000
    downloads: int = 200
    medium: int = 5_000_000


def fileName(number: int) -> str:
    """
    @param number: the number of a message.  The first message has the number 1.
    @return: the name of the message's file in a Maildir, without flags.  All servers sort messages
        by the time in this name.
    """
    return f"{1_600_000_000 + number}.M{number}P1.bench"


def onWire(message: bytes) -> bytes:
    """
    @param message: a message with CRLF as line ends.
    @return: the message as RETR sends it, with the final dot (RFC 1939 section 3).
    """
    stuffed = message.replace(b"\r\n.", b"\r\n..")
    return (b"." if stuffed.startswith(b".") else b"") + stuffed + b".\r\n"


class Mail:
    """
    The messages, and the Maildirs from which the servers serve them.
    """

    def __init__(self, path: Path, sizes: Sizes) -> None:
        """
        @param path: an empty directory.
        """
        self.path = path
        self.sizes = sizes
        self._random = random.Random(1939)
        self._text = bytes(self._random.choices(LETTERS, k=1 << 20))
        (path / "small").mkdir(parents=True)
        count = max(sizes.huge, sizes.many, sizes.fetched, sizes.messages)
        pack = bytearray()
        offsets = array.array("Q", [0])
        for number in range(1, count + 1):
            message = self._message(number, SMALL)
            self._write(path / "small" / str(number), message)
            if number <= sizes.many:
                pack += onWire(message)
                offsets.append(len(pack))
        self._writePack("small", bytes(pack), offsets)
        plain = self._message(1, sizes.big)
        for name, message in (("crlf", plain), ("dots", self._withDots(plain))):
            self._write(path / name, message)
            wire = onWire(message)
            self._writePack(name, wire, array.array("Q", [0, len(wire)]))
        medium = self._message(1, sizes.medium)
        self._write(path / "medium", medium)
        self._writePack("medium", onWire(medium), array.array("Q", [0, len(onWire(medium))]))
        self._write(path / "lf", plain.replace(b"\r\n", b"\n"))

    def pack(self, name: str) -> Path:
        """
        @param name: C{small}, C{medium}, C{crlf} or C{dots}.
        @return: the file with the octets that RETR must send; see C{wire.h}.
        """
        return self.path / f"{name}.wire"

    def _write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        _giveAway(path)

    def _writePack(self, name: str, wire: bytes, offsets: array.array[int]) -> None:
        self.pack(name).write_bytes(wire)
        Path(f"{self.pack(name)}.at").write_bytes(offsets.tobytes())

    def _message(self, number: int, size: int) -> bytes:
        """
        Make a message of C{size} octets.  The line ends are CRLF, and no line begins with a dot.
        """
        header = (
            f"Return-Path: <sender@example.org>\r\nFrom: Sender <sender@example.org>\r\n"
            f"To: Receiver <receiver@example.org>\r\nSubject: message {number}\r\n"
            f"Message-ID: <{number}.{size}@example.org>\r\n"
            f"Date: Mon, 14 Sep 2020 12:26:40 +0000\r\n\r\n"
        ).encode()
        left = size - len(header)
        lines, rest = divmod(left, LINE + 2)
        if rest in (1, 2):
            # The rest has no room for a line with a letter and a line end, so make one line fewer.
            lines, rest = lines - 1, rest + LINE + 2
        need = lines * LINE + rest
        source = self._text * (need // len(self._text) + 1)
        start = self._random.randrange(len(source) - need)
        text = source[start : start + need]
        body = b"".join(
            text[place * LINE : place * LINE + LINE] + b"\r\n" for place in range(lines)
        )
        if rest:
            body += text[-rest:-2] + b"\r\n"
        message = header + body
        assert len(message) == size
        return message

    @staticmethod
    def _withDots(message: bytes) -> bytes:
        """
        @return: the same message, but every 20th line of its text begins with a dot.
        """
        header, _, body = message.partition(b"\r\n\r\n")
        lines = body.split(b"\r\n")
        lines[:-1:20] = [b"." + line[1:] for line in lines[:-1:20]]
        return header + b"\r\n\r\n" + b"\r\n".join(lines)

    def users(self) -> list[str]:
        """
        @return: the names of all users except C{million}.  Each user has the password C{secret}.
        """
        sizes = self.sizes
        names = [f"user{number}" for number in range(sizes.users)]
        names += [f"del{number}" for number in range(sizes.users)]
        names += [f"idle{number}" for number in range(sizes.idle)]
        names += [f"down{number}" for number in range(sizes.downloads)]
        return [*names, "many", "crlf", "lf", "dots", "huge", "sized", "probe", GUESSED]

    def makeMaildirs(self, root: Path) -> None:
        """
        @param root: an empty directory, which gets a Maildir for each user.
        """
        sizes = self.sizes
        _giveAway(root)
        for name in self.users():
            maildir = root / name
            if name.startswith("del"):
                continue
            if name.startswith("user"):
                self._fill(maildir, sizes.messages)
            elif name.startswith("idle"):
                self._fill(maildir, 1)
            elif name in ("probe", GUESSED):
                self._fill(maildir, 0)
            elif name.startswith("down"):
                self._fill(maildir, 0)
                os.link(self.path / "medium", maildir / "cur" / f"{fileName(1)}:2,S")
            elif name == "many":
                self._fill(maildir, sizes.many)
            elif name in ("huge", "sized"):
                self._fill(maildir, sizes.huge, f",S={SMALL},W={SMALL}" * (name == "sized"))
            else:
                self._fill(maildir, 0)
                os.link(self.path / name, maildir / "cur" / f"{fileName(1)}:2,S")
        self.remakeFetched(root)

    def lend(self, root: Path) -> None:
        """
        Move the Maildir C{million} to a server's mail.  The servers share this Maildir, because a
        million links take half a minute.

        @param root: the Maildirs of the server.
        """
        shared = self.path / "million"
        if not shared.exists():
            self._fill(shared, self.sizes.million)
        shared.rename(root / "million")

    def takeBack(self, root: Path) -> None:
        """
        Move the Maildir C{million} back from a server's mail.
        """
        self.forget(root, "million")
        (root / "million").rename(self.path / "million")

    def remakeFetched(self, root: Path) -> None:
        """
        Make the Maildirs C{del0} and so on again, because clients delete messages from them.  These
        Maildirs have copies of the files and no links, because the removal of a link would change
        the times of files of other mailboxes.  The last messages are in C{new}.
        """
        for number in range(self.sizes.users):
            shutil.rmtree(root / f"del{number}", ignore_errors=True)
            self._fill(
                root / f"del{number}", self.sizes.fetched, new=self.sizes.messages, put=_copy
            )

    def forget(self, root: Path, name: str) -> None:
        """
        Remove the files that a server has written into a Maildir in addition to the mail.
        """
        for entry in (root / name).iterdir():
            if entry.name not in ("cur", "new", "tmp"):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    def _fill(
        self,
        maildir: Path,
        count: int,
        more: str = "",
        new: int = 0,
        put: Callable[[str, str], None] = os.link,
    ) -> None:
        maildir.mkdir(mode=0o700)
        _giveAway(maildir)
        for folder in ("cur", "new", "tmp"):
            (maildir / folder).mkdir(mode=0o700)
            _giveAway(maildir / folder)
        small, cur = str(self.path / "small"), str(maildir / "cur")
        files = len(os.listdir(small))
        for number in range(1, count - new + 1):
            put(f"{small}/{(number - 1) % files + 1}", f"{cur}/{fileName(number)}{more}:2,S")
        for number in range(count - new + 1, count + 1):
            put(f"{small}/{number}", f"{maildir}/new/{fileName(number)}")


def _copy(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())
    _giveAway(Path(target))


def _giveAway(path: Path) -> None:
    if os.getuid() == 0:
        os.chown(path, NOBODY, NOBODY)
