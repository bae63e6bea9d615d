"""
Parse the addresses of senders and recipients, and make the lines that a delivery adds to a message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pop3svc.errors import DeliveryRefused

__all__ = ["BadPath", "Path", "Trace", "isPrintable", "namesFor", "parsePath", "traceLine"]

# The most octets of an address.  RFC 5321 section 4.5.3.1 allows 64 octets for the local part and
# 255 octets for the domain.  The limit is higher, because some systems use longer addresses.
_LONGEST = 512
# The form of a path.  Between its brackets, only quoted text may contain white space, backslashes
# and further brackets.
_PATH = re.compile(r'\s*<((?:[^<>"\\\s]|"(?:[^"\\]|\\.)*")*)>(?:\s+(\S.*))?\s*')
_ROUTE = re.compile(r"@[^:]*:")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')

# A message with more Received fields counts as looping, because the longest real routes have some
# thirty.
_MOST_HOPS = 100
# The most octets of a header that are searched.  The number is enough for more than 100 Received
# fields.
_SEARCHED = 262_144
_RECEIVED = re.compile(rb"^received[ \t]*:", re.I | re.M)
_DELIVERED = re.compile(rb"^delivered-to[ \t]*:[ \t]*([^\r\n]*)", re.I | re.M)
_HEADER_END = re.compile(rb"\r?\n\r?\n|\A\r?\n")


class BadPath(ValueError):
    """
    The argument of MAIL or RCPT does not match its grammar.
    """


class Path(NamedTuple):
    """
    An address of an envelope.

    @ivar text: the text between the brackets, without a source route.
    @ivar name: the address without quotation marks; empty for the empty path.
    @ivar parameters: the words after the path.
    """

    text: str
    name: str
    parameters: Sequence[str]


def isPrintable(text: str) -> bool:
    """
    @return: whether a text can stand in a line of a header.  Such a text is UTF-8 without control
        characters, and not too long.
    """
    return text.isprintable() and len(text.encode("utf-8", "surrogateescape")) <= _LONGEST


def parsePath(argument: str, keyword: str) -> Path:
    """
    Parse the argument of MAIL or RCPT (RFC 5321 section 4.1.2).

    @param keyword: C{"FROM"} or C{"TO"}.
    @raise BadPath: the argument is not valid.
    """
    found = None
    if argument[: len(keyword) + 1].upper() == f"{keyword}:":
        found = _PATH.fullmatch(argument[len(keyword) + 1 :])
    if found is None or not isPrintable(found[1]):
        raise BadPath(argument)
    text = _ROUTE.sub("", found[1], count=1) if found[1].startswith("@") else found[1]
    local, at, domain = text.rpartition("@")
    if not at:
        local, domain = domain, ""
    if (at and not domain) or (text and not local):
        raise BadPath(argument)
    quoted = _QUOTED.fullmatch(local)
    if quoted is not None:
        local = re.sub(r"\\(.)", r"\1", quoted[1])
    return Path(text, local + at + domain, (found[2] or "").split())


def namesFor(recipient: str, delimiter: str, localDomains: Sequence[str] = ()) -> list[str]:
    """
    @param recipient: an address, or the name of a user.
    @param delimiter: the characters that begin an extension of a name.  With C{+}, the user of
        C{alice+work} is alice.
    @param localDomains: the domains whose users have names without a domain, in lower case.
    @return: the names that a user with this address may have, from the likeliest to the
        unlikeliest.  The result is empty if C{recipient} is no address and no name, or contains
        C{%(}.
    """
    if not recipient or not isPrintable(recipient) or "%(" in recipient:
        return []
    local, at, domain = recipient.rpartition("@")
    if not at:
        local, domain = domain, ""
    if not local:
        return []
    locals = [local]
    places = [place for each in delimiter if (place := local.find(each)) > 0]
    if places:
        locals.append(local[: min(places)])
    names = []
    for each in locals:
        names += [each + at + domain, (each + at + domain).lower()]
        if domain.lower() in localDomains:
            names += [each, each.lower()]
    return list(dict.fromkeys(names))


def traceLine(name: str, value: str) -> bytes:
    """
    @param value: printable text.
    @return: a field of a header.
    """
    return f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")


class Trace:
    """
    Searches the beginning of a message for fields that show that the message loops.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._isOver = False

    def feed(self, data: bytes) -> None:
        """
        @param data: the next octets of the message.
        """
        if self._isOver:
            return
        looked = max(len(self._head) - 3, 0)
        self._head += data[: _SEARCHED - len(self._head)]
        end = _HEADER_END.search(self._head, looked)
        if end is not None:
            del self._head[end.end() :]
        self._isOver = end is not None or len(self._head) >= _SEARCHED

    def check(self, deliveredTo: str | None = None) -> None:
        """
        @param deliveredTo: the recipient that C{Delivered-To} will name; L{None} if the
            delivery adds no such field.
        @raise DeliveryRefused: the message loops.
        """
        if len(_RECEIVED.findall(self._head)) > _MOST_HOPS:
            raise DeliveryRefused("The message has passed too many servers.")
        if deliveredTo is None:
            return
        own = deliveredTo.encode("utf-8", "surrogateescape").lower()
        if any(each.strip().lower() == own for each in _DELIVERED.findall(self._head)):
            raise DeliveryRefused("The message was already delivered to this recipient.")
