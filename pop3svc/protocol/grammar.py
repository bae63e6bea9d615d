"""
Parse the arguments of commands.  The results are Python values.  If the arguments are wrong, the
functions raise L{BadArguments}.

Each parser takes the octets after the verb and one space, or L{None} if the line ends with the
verb.  It returns the arguments for the function that runs the command.
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
    "nameAndDigest",
    "nameAndPassword",
    "nothing",
    "optionalLanguage",
    "optionalMessage",
    "password",
    "saslStart",
    "words",
]

# A number has at most ten digits.  RFC 1939 sets no limit.  Ten digits are enough for any mailbox,
# and the limit bounds the time that int() takes.
_NUMBER = re.compile(rb"[0-9]{1,10}")
_DIGEST = re.compile(rb"[0-9a-f]{32}")


class MessageNumber(NamedTuple):
    """
    The reference of a client to a message by its number in this session.  The first number is 1.
    """

    number: int


class UniqueID(NamedTuple):
    """
    The reference of a client to a message by C{UID:} and a unique-id.  The form of the unique-id
    has not been checked yet.
    """

    text: str


Reference = MessageNumber | UniqueID


def words(rest: bytes | None) -> list[bytes]:
    """
    Split octets at spaces, and at no other white space.  Several spaces count as one.  Spaces at
    the beginning and at the end are ignored.
    """
    if not rest:
        return []
    # Handle one word separately, because most arguments are one word.
    return [word for word in rest.split(b" ") if word] if b" " in rest else [rest]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


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
    Check that there is no argument.
    """
    if rest and words(rest):
        raise BadArguments("This command takes no argument.")
    return ()


def message(rest: bytes | None) -> tuple[Reference]:
    """
    Parse a reference to a message.
    """
    given = words(rest)
    if len(given) != 1:
        raise BadArguments("This command takes one message.")
    return (_reference(given[0]),)


def optionalMessage(rest: bytes | None) -> tuple[Reference | None]:
    """
    Parse a reference to a message, which may be missing.
    """
    given = words(rest)
    if len(given) > 1:
        raise BadArguments("This command takes one message at most.")
    return (_reference(given[0]),) if given else (None,)


def optionalLanguage(rest: bytes | None) -> tuple[str | None]:
    """
    Parse a language range, which may be missing.
    """
    given = words(rest)
    if len(given) > 1:
        raise BadArguments("This command takes one language at most.")
    return (_text(given[0]),) if given else (None,)


def messageAndLines(rest: bytes | None) -> tuple[Reference, int]:
    """
    Parse a reference to a message and a number of lines.  The number may be 0.
    """
    given = words(rest)
    if len(given) != 2:
        raise BadArguments("This command takes a message and a number of lines.")
    return _reference(given[0]), _number(given[1])


def name(rest: bytes | None) -> tuple[str]:
    """
    Parse the name of a user in UTF-8.  Octets that are not UTF-8 become surrogates (the error
    handler C{surrogateescape}).
    """
    given = words(rest)
    if len(given) != 1:
        raise BadArguments("This command takes one user name.")
    return (_text(given[0]),)


def nameAndDigest(rest: bytes | None) -> tuple[str, str]:
    """
    Parse the name of a user and an MD5 digest in lower-case hexadecimal digits (RFC 1939 section 7,
    APOP).
    """
    given = words(rest)
    if len(given) != 2 or _DIGEST.fullmatch(given[1]) is None:
        raise BadArguments("This command takes a user name and a digest.")
    return _text(given[0]), given[1].decode("ascii")


def password(rest: bytes | None) -> tuple[str]:
    """
    Parse a password.  It consists of all octets after the verb and one space, and it is not
    changed.
    """
    if not rest:
        raise BadArguments("This command takes a password.")
    return (_text(rest),)


def nameAndPassword(rest: bytes | None) -> tuple[str, str]:
    """
    Parse the name of a user and a password.  The name ends at the first space.  The password
    consists of all octets after this space, and it is not changed.
    """
    given, _, secret = (rest or b"").lstrip(b" ").partition(b" ")
    if not given or not secret:
        raise BadArguments("This command takes a user name and a password.")
    return _text(given), _text(secret)


def saslStart(rest: bytes | None) -> tuple[str | None, bytes | None]:
    """
    Parse the name of a SASL mechanism and its initial response in base64 (RFC 5034 section 4).
    Both may be missing.
    """
    given = words(rest)
    if len(given) > 2:
        raise BadArguments("This command takes a mechanism and an initial response.")
    if not given:
        return None, None
    return _text(given[0]).upper(), given[1] if len(given) == 2 else None
