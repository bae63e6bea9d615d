"""
A small POP3 server with all features that C{pop3svc check} tests.  The mutants are subclasses of
L{ToyServer}.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver

__all__ = ["MESSAGES", "PASSWORD", "USER", "Refused", "ToyFactory", "ToyServer"]

USER, PASSWORD = b"alice", b"correct-horse"

_HEADER = b"From: a@example.test\r\nSubject: %s\r\n\r\n"
MESSAGES = [
    _HEADER % b"dots" + b".\r\n..\r\n.dot\r\nend\r\n",
    _HEADER % b"no body",
    b"Subject: nothing but a header\r\n",
    _HEADER % "grüße".encode() + b"UTF-8 in its header\r\n",
    *(_HEADER % b"%d" % number + b"line\r\n" * number for number in range(1, 9)),
]

_MESSAGE = rb"([0-9]+|(?i:UID:)[!-~]*)"
# The states in which each command is valid, and the pattern of its arguments.  The states are A
# (before login), T (with an open mailbox) and S (asleep).
_COMMANDS = {
    b"QUIT": ("ATS", rb""),
    b"CAPA": ("AT", rb""),
    b"USER": ("A", rb"([^ ]+)"),
    b"PASS": ("A", rb"(.+)"),
    b"AUTH": ("A", rb"([!-~]+)(?: ([!-~]+))?"),
    b"STLS": ("A", rb""),
    b"UTF8": ("A", rb""),
    b"LANG": ("AT", rb"([!-~]+)?"),
    b"XLOG": ("A", rb"([^ ]+) (.+)"),
    b"NOOP": ("TS", rb""),
    b"STAT": ("T", rb""),
    b"RSET": ("T", rb""),
    b"LIST": ("T", rb"(?:%s)?" % _MESSAGE),
    b"UIDL": ("T", rb"(?:%s)?" % _MESSAGE),
    b"RETR": ("T", _MESSAGE),
    b"DELE": ("T", _MESSAGE),
    b"DELI": ("T", _MESSAGE),
    b"TOP": ("T", rb"%s ([0-9]+)" % _MESSAGE),
    b"CORE": ("T", rb""),
    b"SLEE": ("T", rb""),
    b"WAKE": ("S", rb""),
    b"QAUT": ("T", rb""),
}


class Refused(Exception):
    """
    The server refuses the command.  The argument is the text of the C{-ERR} reply.
    """


def _single(text: bytes) -> bytes:
    return b"+OK " + text + b"\r\n"


def _multi(body: bytes) -> bytes:
    return b"+OK follows _\r\n" + re.sub(rb"(?m)^\.", b"..", body) + b".\r\n"


def _lines(lines: list[bytes]) -> bytes:
    return _multi(b"".join(line + b"\r\n" for line in lines))


class ToyServer(LineReceiver):
    """
    A connection.  Mutants override its methods.
    """

    MAX_LENGTH = 2000
    delimiter = b"\n"
    factory: Any
    transport: Any

    state = "A"
    isUTF8 = False
    isSecure = False
    language = b"en"
    name: bytes | None = None
    exchange: Callable[[bytes], bytes] | None = None

    def connectionMade(self) -> None:
        self.listed: list[bytes] = []
        self.marked: set[bytes] = set()
        self.write(self.greeting())

    def greeting(self) -> bytes:
        return _single(b"toy ready <%d@example.test>" % next(self.factory.serials))

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        self.write(b"-ERR too long\r\n")
        self.transport.loseConnection()

    def connectionLost(self, reason: object = None) -> None:
        self.letGo()

    def lineReceived(self, line: bytes) -> None:
        line = line.removesuffix(b"\r")
        if self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            self.write(self.answered(lambda: exchange(line), line))
            return
        self.write(self.respond(line))
        verb = line[:4].upper()
        if verb == b"QUIT" and self.state == "Q":
            self.clearLineBuffer()
            self.bye()
        elif verb == b"STLS" and self.state == "A" and self.startsTLS:
            self.startsTLS = False
            self.beginTLS()

    startsTLS = False

    def beginTLS(self) -> None:
        self.clearLineBuffer()
        self.name = None
        self.isSecure = True
        self.transport.startTLS(self.factory.options)

    def bye(self) -> None:
        self.transport.loseConnection()

    # --- dispatching ---------------------------------------------------------------

    def answered(self, body: Callable[[], bytes], line: bytes) -> bytes:
        try:
            return body()
        except Refused as error:
            return b"-ERR " + self.inLanguage(str(error)).encode() + b"\r\n"

    def inLanguage(self, text: str) -> str:
        return text if self.language == b"en" else text + " (auf Toitsch, schön)"

    def respond(self, line: bytes) -> bytes:
        return self.answered(lambda: self.run(line), line)

    def run(self, line: bytes) -> bytes:
        verb, space, rest = line.partition(b" ")
        verb = self.verb(verb)
        if verb not in _COMMANDS:
            raise Refused("unknown")
        states, pattern = _COMMANDS[verb]
        if self.state not in states + self.moreStates(verb):
            raise Refused("not now")
        match = re.fullmatch(self.pattern(verb, pattern), rest)
        if match is None:
            raise Refused("arguments")
        reply: bytes = getattr(self, "do" + verb.decode())(*match.groups())
        return reply

    def verb(self, verb: bytes) -> bytes:
        return verb.upper()

    def moreStates(self, verb: bytes) -> str:
        return ""

    def pattern(self, verb: bytes, pattern: bytes) -> bytes:
        return pattern

    # --- before login --------------------------------------------------------------

    def capabilities(self) -> list[bytes]:
        found = [b"TOP", b"UIDL", b"USER", b"SASL PLAIN LOGIN", b"RESP-CODES", b"AUTH-RESP-CODE"]
        found += [b"PIPELINING", b"UTF8 USER", b"LANG", b"EXPIRE NEVER", b"IMPLEMENTATION toy"]
        found += [b"UID-PARAM", b"DELI", b"CORE", b"SLEE-WAKE", b"QAUT", b"XLOG"]
        found += [b"MULTI-LINE-IND", b"X-TLS %s" % str(self.isSecure).encode()]
        return found + ([b"STLS"] if self.state == "A" and not self.isSecure else [])

    def doCAPA(self) -> bytes:
        return _lines(self.capabilities())

    def doUSER(self, name: bytes) -> bytes:
        self.name = name
        return _single(b"password?")

    def doPASS(self, password: bytes) -> bytes:
        name, self.name = self.name, None
        if name is None:
            raise Refused("USER first")
        return self.logIn(name, password)

    def doXLOG(self, name: bytes, password: bytes) -> bytes:
        return self.logIn(name, password)

    def isGood(self, name: bytes, password: bytes) -> bool:
        return (name, password) == (USER, PASSWORD)

    def logIn(self, name: bytes, password: bytes) -> bytes:
        if not self.isGood(name, password):
            raise Refused("[AUTH] wrong")
        self.take()
        self.state = "T"
        return _single(b"welcome")

    def take(self) -> None:
        if self.factory.holder not in (None, self):
            raise Refused("[IN-USE] another session")
        self.factory.holder = self
        self.listAgain()

    def listAgain(self) -> None:
        self.listed = list(self.factory.messages)
        self.marked = set()

    def letGo(self) -> None:
        if self.factory.holder is self:
            self.factory.holder = None

    def doAUTH(self, name: bytes, initial: bytes | None) -> bytes:
        if name.upper() == b"LOGIN":
            self.exchange = self.loginName
            return b"+ VXNlcm5hbWU6\r\n"
        if name.upper() != b"PLAIN":
            raise Refused("no such mechanism")
        if initial is not None:
            return self.plain(initial)
        self.exchange = self.plain
        return b"+ \r\n"

    def decoded(self, response: bytes) -> bytes:
        if response == b"*":
            raise Refused("cancelled")
        try:
            return b64decode(response, validate=True)
        except ValueError:
            raise Refused("no base64")

    def plain(self, response: bytes) -> bytes:
        _, name, password = self.decoded(response).split(b"\0")
        return self.logIn(name, password)

    def loginName(self, response: bytes) -> bytes:
        self.decoded(response)
        raise Refused("not in this toy")

    def doSTLS(self) -> bytes:
        if self.isSecure:
            raise Refused("TLS is on")
        self.startsTLS = True
        return _single(b"begin")

    def doUTF8(self) -> bytes:
        self.isUTF8 = True
        return _single(b"UTF-8 it is")

    def doLANG(self, tag: bytes | None) -> bytes:
        if tag is None:
            return _lines([b"en English", "de Toitsch, schön".encode()])
        if tag not in (b"*", b"en", b"de"):
            raise Refused("no such language")
        self.language = b"de" if tag == b"de" else b"en"
        return _single(self.language + b" spoken")

    # --- messages ------------------------------------------------------------------

    def find(self, argument: bytes) -> tuple[int, bytes]:
        if argument[:4].upper() == b"UID:":
            if argument[4:] not in self.listed:
                raise Refused("[UID/NOT-FOUND] none")
            number = self.listed.index(argument[4:]) + 1
        else:
            number = self.number(argument)
        if not 1 <= number <= len(self.listed) or self.isHidden(self.listed[number - 1]):
            raise Refused("no such message")
        return number, self.listed[number - 1]

    def number(self, digits: bytes) -> int:
        return int(digits)

    def isHidden(self, uniqueID: bytes) -> bool:
        return uniqueID in self.marked or uniqueID not in self.factory.messages

    def present(self) -> list[tuple[int, bytes]]:
        return [(n, each) for n, each in enumerate(self.listed, 1) if not self.isHidden(each)]

    def size(self, uniqueID: bytes) -> int:
        return len(self.factory.messages[uniqueID])

    def content(self, argument: bytes) -> bytes:
        content: bytes = self.factory.messages[self.find(argument)[1]]
        if not self.isUTF8 and not content.isascii():
            raise Refused("[UTF8] ask for it")
        return content

    def shown(self, uniqueID: bytes) -> bytes:
        return uniqueID

    def doSTAT(self) -> bytes:
        present = self.present()
        return _single(b"%d %d" % (len(present), sum(self.size(each) for _, each in present)))

    def doLIST(self, argument: bytes | None) -> bytes:
        if argument is not None:
            number, uniqueID = self.find(argument)
            return _single(b"%d %d" % (number, self.size(uniqueID)))
        return _lines([b"%d %d" % (number, self.size(each)) for number, each in self.present()])

    def doUIDL(self, argument: bytes | None) -> bytes:
        if argument is not None:
            number, uniqueID = self.find(argument)
            return _single(b"%d %s" % (number, self.shown(uniqueID)))
        return _lines([b"%d %s" % (number, self.shown(each)) for number, each in self.present()])

    def doRETR(self, argument: bytes) -> bytes:
        return _multi(self.content(argument))

    def doTOP(self, argument: bytes, lines: bytes) -> bytes:
        header, blank, body = self.content(argument).partition(b"\r\n\r\n")
        kept = body.split(b"\r\n")[: int(lines)]
        whole = b"".join(line + b"\r\n" for line in kept)
        return _multi(header + blank + (whole if len(whole) < len(body) else body))

    def doNOOP(self) -> bytes:
        return _single(b"done")

    def doRSET(self) -> bytes:
        self.marked = set()
        return _single(b"done")

    def doDELE(self, argument: bytes) -> bytes:
        self.marked.add(self.find(argument)[1])
        return _single(b"marked")

    # --- the end, and extensions -----------------------------------------------------

    def commit(self) -> None:
        for uniqueID in self.marked:
            self.factory.messages.pop(uniqueID, None)

    def doQUIT(self) -> bytes:
        if self.state == "T":
            self.commit()
            self.letGo()
        self.state = "Q"
        return _single(b"bye")

    def doDELI(self, argument: bytes) -> bytes:
        uniqueID = self.find(argument)[1]
        del self.factory.messages[uniqueID]
        return _single(b"Deleted message. UID:" + uniqueID)

    def doCORE(self) -> bytes:
        self.commit()
        self.listAgain()
        return _single(b"[ACTIVITY/NONE] listed")

    def doSLEE(self) -> bytes:
        self.commit()
        self.letGo()
        self.state = "S"
        return _single(b"asleep")

    def doWAKE(self) -> bytes:
        self.take()
        self.state = "T"
        return _single(b"[ACTIVITY/NONE] awake")

    def doQAUT(self) -> bytes:
        self.commit()
        self.letGo()
        self.state = "A"
        return _single(b"logged out")


class ToyFactory(Factory):
    """
    A toy server with one mailbox.
    """

    noisy = False

    def __init__(self, protocol: type[ToyServer], options: Any) -> None:
        self.toy = protocol
        self.options = options
        self.serials = count()
        self.holder: ToyServer | None = None
        self.messages = {b"id-%d" % number: each for number, each in enumerate(MESSAGES)}

    def buildProtocol(self, addr: object) -> ToyServer:
        toy = self.toy()
        toy.factory = self
        return toy
