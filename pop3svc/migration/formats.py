"""
Make unique-ids by the formats of Dovecot's setting C{pop3_uidl_format}.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import md5
from operator import attrgetter
from typing import NamedTuple

__all__ = ["DEFAULT", "MessageNames", "UIDLFormat"]

# The default of Dovecot 2.3.  The default of Dovecot 2.4 gives the same unique-ids.
DEFAULT = "%08Xu%08Xv"
# The most characters of a format, and the largest width in a format.  These limits keep unique-ids
# from taking much memory.  A legal unique-id has at most 70 octets.
_LONGEST, _WIDEST = 1000, 1000


class MessageNames(NamedTuple):
    """
    The values of a message that a format may use.  In the texts, each character stands for one
    octet.

    @ivar uid: the UID of the message in IMAP (RFC 3501 section 2.3.1.1).
    @ivar uidValidity: the mailbox's UIDVALIDITY.
    @ivar fileName: the base name of the message's file.
    @ivar guid: Dovecot's identifier of the message.
    """

    uid: int
    uidValidity: int
    fileName: str
    guid: str


# Messages of one mailbox whose values differ in each character.
_MESSAGES = [
    MessageNames(number * 0x11111111, 1, f"{number:x}" * _WIDEST, f"{number:x}" * _WIDEST)
    for number in range(1, 16)
]

_Filter = Callable[[str], str]
_Piece = Callable[[MessageNames], str]

_VALUES: dict[str, _Piece] = {
    "uid": lambda names: str(names.uid),
    "uidvalidity": lambda names: str(names.uidValidity),
    "filename": lambda names: names.fileName,
    "guid": lambda names: names.guid,
}
_NUMBERS: dict[str, Callable[[MessageNames], int]] = {
    "u": attrgetter("uid"),
    "v": attrgetter("uidValidity"),
}
_LETTERS = {"u": "uid", "v": "uidvalidity", "f": "filename", "g": "guid"}


def _md5(text: str) -> str:
    return md5(text.encode("latin-1"), usedforsecurity=False).hexdigest()


def _isDecimal(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _hexOf(text: str) -> str:
    # Dovecot writes 0 for a text that is not a number.
    return f"{int(text):x}" if _isDecimal(text) and int(text) < 1 << 64 else "0"


def _upper(text: str) -> str:
    return re.sub("[a-z]+", lambda found: found[0].upper(), text)


def _lower(text: str) -> str:
    return re.sub("[A-Z]+", lambda found: found[0].lower(), text)


def _escape(text: str) -> str:
    return re.sub(r"(['\"\\])", r"\\\1", text)


def _shortHash(text: str) -> int:
    # This is P. J. Weinberger's hash function with 32 bits.
    value = 0
    for octet in text.encode("latin-1"):
        value = ((value << 4) + octet) & 0xFFFFFFFF
        high = value & 0xF0000000
        if high:
            value ^= high >> 24
            value ^= high
    return value


def _newHash(text: str) -> int:
    digest = md5(text.encode("latin-1"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


_MODIFIERS: dict[str, _Filter] = {
    "X": _hexOf,
    "U": _upper,
    "L": _lower,
    "M": _md5,
    "R": lambda text: text[::-1],
    "E": _escape,
    "T": lambda text: text.rstrip(" \t\r\n"),
}
_HASHES = {"H": _shortHash, "N": _newHash}

_SHORT = re.compile(
    r"%(?:(?P<skip>-?[0-9]+)\.)?(?P<sign>-?)(?P<zero>0?)(?P<width>[0-9]*)"
    r"(?P<modifiers>[XULMRETHN]{0,10})(?P<letter>[a-zA-Z%])"
)
_LONG = re.compile(r"%\{([^{}]*)\}")
_FILTER = re.compile(r"([a-z0-9_]+)(?:\(\s*(-?[0-9]+)?\s*(?:,\s*(-?[0-9]+)\s*)?\))?")


@dataclass(frozen=True)
class _ShortPiece:
    """
    A variable such as C{%08Xu}.
    """

    value: _Piece
    modifiers: str
    skip: int
    width: int
    isPadded: bool

    def __call__(self, names: MessageNames) -> str:
        text, skip, width = self.value(names), self.skip, self.width
        for letter in self.modifiers:
            hashed = _HASHES.get(letter)
            if hashed is None:
                text = _MODIFIERS[letter](text)
            else:
                # A hash uses the width as its modulus, and the skip as its least number of digits.
                number = hashed(text)
                text = f"{(number % width if width > 0 else number) & 0xFFFFFFFF:x}"
                text = text.rjust(max(skip, 0), "0")
                skip = width = 0
        text = text[skip:] if skip >= 0 or -skip < len(text) else text
        if not width:
            return text
        if self.isPadded:
            return text.rjust(width, "0")
        return text[: max(len(text) + width, 0)] if width < 0 else text[:width]


class UIDLFormat:
    """
    A format of unique-ids.  Formats of Dovecot 2.3 have letters (C{%08Xu}), and formats of Dovecot
    2.4 have names (C{%{uid | hex(8)}}).

    @ivar text: the format.
    """

    def __init__(self, text: str) -> None:
        """
        @raise ValueError: the format is not known.  The text is a sentence for the operator.
        """
        self.text = text
        if len(text) > _LONGEST:
            raise ValueError("the format of unique-ids is too long")
        self._pieces: list[_Piece] = []
        position = 0
        while position < len(text):
            position = self._parse(position)
        if len({self.expand(each) for each in _MESSAGES}) == 1:
            raise ValueError(f"{text}: the format contains nothing that differs between messages")

    def _parse(self, position: int) -> int:
        text = self.text
        if text[position] != "%":
            end = text.find("%", position)
            literal = text[position:] if end < 0 else text[position:end]
            self._pieces.append(lambda names: literal)
            return position + len(literal)
        long = _LONG.match(text, position)
        if long is not None:
            self._pieces.append(_parseLong(long[1], text))
            return long.end()
        short = _SHORT.match(text, position)
        if short is None:
            raise ValueError(f"{text}: the format is not known from {text[position:]} on")
        if short["letter"] == "%":
            self._pieces.append(lambda names: "%")
        else:
            self._pieces.append(_parseShort(short, text))
        return short.end()

    def expand(self, names: MessageNames) -> str:
        """
        @return: the unique-id that Dovecot gives to a message.  RFC 1939 may not allow it.
        """
        return "".join([piece(names) for piece in self._pieces])


def _parseShort(found: re.Match[str], text: str) -> _Piece:
    letter = found["letter"]
    if letter == "m":
        raise ValueError(f"{text}: %m is only for mbox files, because a Maildir has no such value")
    if letter not in _LETTERS:
        raise ValueError(
            f"{text}: %{letter} is not known; known are %u, %v, %f, %g and %%, "
            "with the modifiers X, U, L, M, R, E, T, H and N"
        )
    width, skip = int(found["width"] or 0), int(found["skip"] or 0)
    if max(width, abs(skip)) > _WIDEST:
        raise ValueError(f"{text}: the width of %{letter} is too large")
    if found["sign"] and found["skip"] is not None:
        # Dovecot ignores the sign unless a number of characters to skip stands before it.
        width = -width
    value, isPadded = _VALUES[_LETTERS[letter]], bool(found["zero"])
    number = _NUMBERS.get(letter)
    if number is not None and isPadded and found["modifiers"] == "X" and not skip and width > 0:
        # Handle the usual case separately, because this is quicker.
        specification = f"0{width}x"
        return lambda names: format(number(names), specification)
    return _ShortPiece(value, found["modifiers"], skip, width, isPadded)


def _hexFilter(width: int, text: str) -> str:
    digits = _hexOf(text)
    if width < 0:
        return digits.ljust(-width, "0")[:-width]
    return digits.rjust(width, "0")[-width:] if width else digits


def _substring(offset: int, length: int | None, text: str) -> str:
    begin = max(len(text) + offset, 0) if offset < 0 else offset
    if length is None:
        return text[begin:]
    return text[begin : begin + length] if length >= 0 else text[begin:length]


def _parseFilter(filter: str, text: str) -> _Filter:
    found = _FILTER.fullmatch(filter)
    name, first, second = (None, None, None) if found is None else found.groups()
    numbers = [int(each) for each in (first, second) if each is not None]
    if any(abs(each) > _WIDEST for each in numbers):
        raise ValueError(f"{text}: the width of {name} is too large")
    if name == "hex" and second is None:
        return partial(_hexFilter, int(first or 0))
    if name == "substr" and first is not None:
        return partial(_substring, int(first), None if second is None else int(second))
    plain: dict[str | None, _Filter] = {"upper": _upper, "lower": _lower, "md5": _md5}
    if name in plain and not numbers:
        return plain[name]
    raise ValueError(
        f"{text}: the filter {filter} is not known; known are hex(width), upper, lower, md5 "
        "and substr(offset, length)"
    )


def _parseLong(inside: str, text: str) -> _Piece:
    name, *filters = (each.strip() for each in inside.split("|"))
    if name not in _VALUES:
        raise ValueError(
            f"{text}: %{{{name}}} is not known; known are %{{uid}}, %{{uidvalidity}}, "
            "%{filename} and %{guid}"
        )
    if "md5" in filters[:-1]:
        raise ValueError(f"{text}: md5 must be the last filter")
    value = _VALUES[name]
    functions = [_parseFilter(each, text) for each in filters]

    def expand(names: MessageNames) -> str:
        result = value(names)
        for function in functions:
            result = function(result)
        return result

    return expand
