"""
The octets after the verb: Python values, or L{BadArguments}.

Each function takes what followed the verb and its one space, L{None} if
nothing did, and returns the arguments of the command's body.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pop3svc.errors import BadArguments

__all__ = [
    "MessageNumber",
    "Reference",
    "UniqueID",
    "message",
    "messageAndLines",
    "name",
    "nameAndPassword",
    "nothing",
    "optionalMessage",
    "password",
    "saslStart",
    "words",
]

# RFC 1939 sets no bound; ten digits count more messages than a mailbox holds
# and keep what int() is given short.
_NUMBER = re.compile(rb"[0-9]{1,10}")


class MessageNumber(NamedTuple):
    """
    A message named by its number in this session, 1 and up.
    """

    number: int


class UniqueID(NamedTuple):
    """
    A message named C{UID:...}; what stands there is not checked yet.
    """

    text: str


Reference = MessageNumber | UniqueID


def words(rest: bytes | None) -> list[bytes]:
    """
    Split at runs of spaces (0x20 only); spaces at the ends do not count.
    """
    return [word for word in (rest or b"").split(b" ") if word]


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _number(word: bytes) -> int:
    if not _NUMBER.fullmatch(word):
        raise BadArguments("Argument is not a number.")
    return int(word)


def _reference(word: bytes) -> Reference:
    if word[:4].upper() == b"UID:":
        return UniqueID(_text(word[4:]))
    number = _number(word)
    if number < 1:
        raise BadArguments("Messages are numbered from 1.")
    return MessageNumber(number)


def nothing(rest: bytes | None) -> tuple[()]:
    """
    No argument.
    """
    if words(rest):
        raise BadArguments("This command takes no argument.")
    return ()


def message(rest: bytes | None) -> tuple[Reference]:
    """
    One message.
    """
    given = words(rest)
    if len(given) != 1:
        raise BadArguments("This command takes one message.")
    return (_reference(given[0]),)


def optionalMessage(rest: bytes | None) -> tuple[Reference | None]:
    """
    One message, or nothing.
    """
    given = words(rest)
    if len(given) > 1:
        raise BadArguments("This command takes one message at most.")
    return (_reference(given[0]),) if given else (None,)


def messageAndLines(rest: bytes | None) -> tuple[Reference, int]:
    """
    One message and a count of lines, 0 and up.
    """
    given = words(rest)
    if len(given) != 2:
        raise BadArguments("This command takes a message and a number of lines.")
    return _reference(given[0]), _number(given[1])


def name(rest: bytes | None) -> tuple[str]:
    """
    A user name: UTF-8, other octets as surrogate escapes.
    """
    given = words(rest)
    if len(given) != 1:
        raise BadArguments("This command takes one user name.")
    return (_text(given[0]),)


def password(rest: bytes | None) -> tuple[str]:
    """
    A password: all that follows the one space, verbatim.
    """
    if not rest:
        raise BadArguments("This command takes a password.")
    return (_text(rest),)


def nameAndPassword(rest: bytes | None) -> tuple[str, str]:
    """
    A user name up to the first space, and a password: all behind it, verbatim.
    """
    given, _, behind = (rest or b"").lstrip(b" ").partition(b" ")
    if not given or not behind:
        raise BadArguments("This command takes a user name and a password.")
    return _text(given), _text(behind)


def saslStart(rest: bytes | None) -> tuple[str | None, bytes | None]:
    """
    A SASL mechanism and its initial response in base64 (RFC 5034 section 4),
    each of them optional.
    """
    given = words(rest)
    if len(given) > 2:
        raise BadArguments("This command takes a mechanism and an initial response.")
    if not given:
        return None, None
    return _text(given[0]).upper(), given[1] if len(given) == 2 else None
