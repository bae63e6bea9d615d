"""
Fuzzing: the parsers that read arbitrary octets, the rules that must hold, and a search for
inputs that reach new code.

C{python -m tests.fuzz --seconds 60} mutates the inputs in C{tests/corpus} at random.  It adds
each mutated input that reaches new code to the corpus, and reports each one that breaks a rule.
C{tests/test_fuzz.py} runs the whole corpus.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any
from zlib import crc32

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

import pop3svc
from pop3svc.accounts.passwordfile import readPasswordFile
from pop3svc.policy import Policy
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.service.proxy import parseHeader
from pop3svc.testing import Client, Inline
from tests.anybody import Anybody

CORPUS = Path(__file__).parent / "corpus"
SOURCE = Path(pop3svc.__file__).parent
# Maximum size of an input, octets.
LONGEST = 20_000

MESSAGES = [b"Subject: one\n\n.\n..two\n", b"", b"\r\n\r\nx"]
POLICY = Policy()
# A reply must not echo the client's input.  Each word of its first line must therefore come from
# this source code or from CODES, or be a number or a unique-id.
WORDS = {
    word
    for each in [*SOURCE.glob("protocol/*.py"), SOURCE / "providers" / "memory.py"]
    for word in re.findall(r"[^\s\"']+", each.read_text())
}
CODES = {"[AUTH]", "[SYS/TEMP]", "[SYS/PERM]", "[UID/NOT-FOUND]", "[ACTIVITY/NEW]"}
CODES |= {"[ACTIVITY/NONE]", "[READ-ONLY]", "[IN-USE]"}


class Broken(AssertionError):
    """
    A rule does not hold.
    """


def must(holds: object, *why: object) -> None:
    if not holds:
        raise Broken(*why)


@contextmanager
def nothingLogged() -> Iterator[None]:
    """
    Check that no failure is logged.
    """
    found: list[Any] = []

    def logged(event: Any) -> None:
        if "log_failure" in event:
            found.append(event["log_failure"].getTraceback())

    globalLogPublisher.addObserver(logged)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(logged)
    must(not found, *found)


# --- the targets ------------------------------------------------------------------


def replies(octets: bytes) -> list[bytes]:
    """
    Split the replies of a server, and check their form.  If a first line ends with the mark of
    MULTI-LINE-IND, a body must follow that ends with a dot.

    @return: the first lines of the replies.
    """
    found = []
    while octets:
        first, end, octets = octets.partition(b"\r\n")
        must(end, "no line end", first)
        must(b"\n" not in first and b"\r" not in first and first.isascii(), first)
        must(first.startswith((b"+OK", b"-ERR", b"+ ")), first)
        found.append(first)
        if first.endswith(b" _"):
            must(first.startswith(b"+OK"), first)
            body, end, octets = (b"\r\n" + octets).partition(b"\r\n.\r\n")
            must(end, "no dot", body)
    return found


def _isOurs(word: str) -> bool:
    isKnown = word in WORDS or word in CODES or word.strip(".,;:") in WORDS
    return (
        isKnown or re.fullmatch(r"[0-9]+,?|UID:message-[0-9]+|message-[0-9]+|_", word) is not None
    )


def talk(stream: bytes, isIn: bool, cuts: int) -> list[bytes]:
    """
    Send octets to a server, and check all replies.

    @param isIn: whether the client logs in first.
    @param cuts: the size of the pieces in which the octets are sent; 0 for a single piece.
    @return: the first lines of the replies.
    """
    provider = MemoryProvider({"alice": "secret"}, MESSAGES)
    client = Client(POP3Factory(provider, POLICY, clock=Clock()))
    if isIn:
        client.logIn()
        client.received()
    with nothingLogged():
        size = cuts or max(len(stream), 1)
        for begin in range(0, len(stream), size):
            if client.isOpen:
                client.send(stream[begin : begin + size])
        said = client.received()
        client.vanish()
    found = replies(said)
    isOpen = not client.transport.ended and not client.transport.aborted
    if isOpen:
        # Each line gets one reply.  A client that has not logged in also gets the greeting.  An
        # unfinished line gets no reply until it is too long.
        must(len(found) == stream.count(b"\n") + (not isIn), len(found), stream)
        must(len(stream) - stream.rfind(b"\n") <= POLICY.maxAuthLineLength + 1, "too long")
    for first in found:
        must(len(first) <= 510 or first.startswith(b"+ "), first)
        if not first.startswith(b"+ "):
            for word in first.decode().split(" ")[1:]:
                must(_isOurs(word), "echoed", word)
    kept = provider.store.maildrop("alice").messages
    if isIn and not re.search(rb"(?i)\b(dele|deli)\b", stream):
        must(len(kept) == len(MESSAGES), "deleted without being asked")
    return found


def connection(data: bytes) -> None:
    """
    A stream of octets.  The first octet selects whether the client logs in first, and the size of
    the segments.
    """
    if data:
        talk(data[1:], bool(data[0] & 1), data[0] >> 1 & 31)


def sasl(data: bytes) -> None:
    """
    Input of a client inside AUTH: raw if the first octet is odd, else encoded in base64.
    """
    if not data:
        return
    lines = data[1:].split(b"\n")[:4]
    if not data[0] & 1:
        lines = [base64.b64encode(line) for line in lines]
    if data[0] & 2:
        stream = b"AUTH PLAIN " + lines[0] + b"\r\n"
        lines = lines[1:]
    else:
        stream = b"AUTH LOGIN\r\n" if data[0] & 4 else b"AUTH PLAIN\r\n"
    found = talk(stream + b"".join(line + b"\r\n" for line in lines), False, 0)
    if any(b"Logged in" in line for line in found):
        must(b"secret" in data or b"c2VjcmV0" in data, "let in")


def proxy(data: bytes) -> None:
    """
    The header of a proxy, and the octets after it.
    """

    def parsed(octets: bytes) -> Any:
        try:
            return parseHeader(octets)
        except ValueError as error:
            must("\n" not in str(error))
            return "refused"

    whole = parsed(data)
    if whole is None:
        must(len(data) < 16 + 4096, "waits for ever")
    elif whole != "refused":
        client, rest = whole
        must(data.endswith(rest))
        if client is not None:
            ip_address(client[0])
            must(0 <= client[1] < 65536)
    # A part of the input needs more octets, or gives the result of the whole input.
    for end in range(1, min(len(data), 120)):
        begun = parsed(data[:end])
        if begun is None:
            continue
        if begun == "refused":
            must(whole == "refused", "refused too early", data[:end])
        else:
            must(whole != "refused" and begun[0] == whole[0], begun, whole)


class Place:
    """
    A directory with a Maildir, which all runs use.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="pop3svc-fuzz-")
        self.path = Path(self._directory.name)
        self.maildir = self.path / "mail" / "alice"
        for folder in ("new", "cur", "tmp"):
            (self.maildir / folder).mkdir(parents=True)
        for name in ("1600000001.M1P1.h", "1600000002.M2P1.h"):
            (self.maildir / "new" / name).write_bytes(b"a: b\n\nc\n")
        client = self.client()
        client.logIn()
        client.say(b"LIST")
        client.vanish()
        # Keep the line with the present version, because files of other versions are not parsed.
        kept = (self.maildir / "pop3svc-sizes").read_bytes()
        self.version = kept[: kept.index(b"\n") + 1]

    def client(self) -> Client:
        """
        @return: a client of a service that was just started.
        """
        store = MaildirStore(str(self.maildir.parent), runner=Inline(), clock=Clock())
        return Client(POP3Factory(Anybody(store), clock=Clock()))


_place: list[Place] = []


def place() -> Place:
    if not _place:
        _place.append(Place())
    return _place[0]


def sizes(data: bytes) -> None:
    """
    The file of sizes of a Maildir.  If the first octet of the input is odd, the other octets are
    the contents of the blocks, separated by NULs.  Otherwise they are all octets after the version.
    """
    rest = data[1:]
    if data[:1] and data[0] & 1:
        blocks = rest.split(b"\0")
        rest = b"".join(b"%x %x\n" % (len(each), crc32(each)) + each for each in blocks)
    (place().maildir / "pop3svc-sizes").write_bytes(place().version + rest)
    client = place().client()
    with nothingLogged():
        client.logIn()
        listed = client.say(b"LIST")
        must(re.fullmatch(rb"\+OK 2 messages _\r\n1 [0-9]+\r\n2 [0-9]+\r\n\.\r\n", listed), listed)
        must(client.say(b"QUIT").startswith(b"+OK"))


def passwords(data: bytes) -> None:
    """
    The file of users and hashes.
    """
    path = place().path / "users"
    path.write_bytes(data)
    try:
        accounts = readPasswordFile(str(path))
    except ValueError as error:
        must(str(error).startswith(str(path)) and "\n" not in str(error), error)
        return
    for sentence in accounts.complaints():
        must(sentence.isprintable(), sentence)
    for name, stored in accounts.hashes.items():
        must(name.isprintable() and ":" not in name and stored, name)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (connection, sasl, proxy, sizes, passwords)
}

# --- the corpus, and more of it ------------------------------------------------------

TOKENS = {
    "connection": [
        *b"USER alice|PASS secret|QUIT|STAT|LIST|UIDL|RETR 1|TOP 1 0|DELE 1|DELI 2|RSET|NOOP".split(
            b"|"
        ),
        *b"CAPA|AUTH|AUTH PLAIN|STLS|XLOG alice secret|SLEE|WAKE|CORE|REFR|QAUT|*|GET / HTTP/1.1".split(
            b"|"
        ),
        *(b"\r\n", b"\n", b"\r", b" ", b"\0", b"UID:message-1", b"UID:", b"\x16\x03", b"\xff"),
        *(b"99999999999", b"AGFsaWNlAHNlY3JldA==", b"=", b"x" * 300),
    ],
    "sasl": [b"\0alice\0secret", b"alice", b"secret", b"\n", b"*", b"=", b"\0", b"AGFsaWNl"],
    "proxy": [
        *(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 110\r\n", b"PROXY UNKNOWN\r\n", b"TCP6", b"::1"),
        *(b"\r\n\r\n\0\r\nQUIT\n", b"\x21\x11\0\x0c", b"\x20", b"\x21\x21\0\x24", b" ", b"\r\n"),
    ],
    "sizes": [
        b"\0",
        b"1600000001.M1P1.h 9 1 8 1 . 5\n",
        b"1600000002.M2P1.h 7 1 7 1 = 0\n",
        b"1600000002.M2P1.h -1 1 7 1 g 0\n",
        b"0 0\n",
        b" ",
        b"-1",
        b"\xff",
    ],
    "passwords": [
        *(b"alice:", b"{PLAIN}secret", b"\n", b"\r\n", b"#", b":", b"$2b$12$", b"$6$", b"\xff"),
        *(b"$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5", b"\0", b"\xe2\x80\xa8"),
        b"$scrypt$ln=14,r=8,p=1$c2FsdA$a2V5a2V5a2V5a2V5a2V5a2V5",
    ],
}


def entries(target: str) -> list[Path]:
    return sorted((CORPUS / target).iterdir())


def changed(data: bytes, target: str, corpus: list[bytes], chance: random.Random) -> bytes:
    """
    @return: C{data} after one or more random mutations.
    """
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([0, 1, 2, 8, 40]))
        kind = chance.randrange(6)
        if kind == 0:
            new = bytes([chance.randrange(256)])
        elif kind == 1:
            new = chance.choice(TOKENS[target])
        elif kind == 2:
            new = b""
        elif kind == 3:
            new = data[at:end] * chance.choice([2, 3, 50])
        elif kind == 4:
            other = chance.choice(corpus)
            new = other[chance.randrange(len(other) + 1) :]
        else:
            new = bytes(each ^ 1 << chance.randrange(8) for each in data[at:end])
        data = data[:at] + new + data[end:]
    return data[:LONGEST]


class Reached:
    """
    The transitions from line to line of our code that any input has reached.
    """

    def __init__(self) -> None:
        self.steps: set[tuple[str, int, int]] = set()
        self._isOurs: dict[str, bool] = {}

    def by(self, run: Callable[[bytes], None], data: bytes) -> bool:
        """
        @return: whether the input reached a new transition.
        """
        before = len(self.steps)
        sys.settrace(self._call)
        try:
            run(data)
        finally:
            sys.settrace(None)
        return len(self.steps) > before

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in self._isOurs:
            self._isOurs[file] = file.startswith(str(SOURCE))
        if not self._isOurs[file]:
            return None
        before = frame.f_lineno

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            self.steps.add((file, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line


def search(target: str, seconds: float, chance: random.Random) -> tuple[int, int, list[str]]:
    """
    @return: the number of inputs tried, the number kept, and the failures.
    """
    run = TARGETS[target]
    corpus = [each.read_bytes() for each in entries(target)]
    reached = Reached()
    for data in corpus:
        reached.by(run, data)
    tried, kept, broken = 0, 0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = changed(chance.choice(corpus), target, corpus, chance)
        tried += 1
        try:
            isNew, prefix = reached.by(run, data), ""
        except Exception as error:
            broken.append(f"{data!r}: {error!r}")
            isNew, prefix = True, "broken-"
        if isNew:
            kept += 1
            corpus.append(data)
            name = prefix + hashlib.sha256(data).hexdigest()[:16]
            (CORPUS / target / name).write_bytes(data)
    return tried, kept, broken


def main() -> int:
    """
    Search for inputs that reach new code or break a rule, and print how many were found.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    isBroken = False
    for target in options.target or TARGETS:
        tried, kept, broken = search(target, options.seconds, random.Random(options.seed))
        print(f"{target}: {tried} tried, {kept} kept, {len(entries(target))} in the corpus")
        for each in broken:
            print(f"  broken: {each[:300]}")
        isBroken = isBroken or bool(broken)
    return int(isBroken)


if __name__ == "__main__":
    sys.exit(main())
