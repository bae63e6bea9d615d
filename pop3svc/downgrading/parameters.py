"""
Convert the parameters of MIME fields to ASCII (RFC 2231), and find the boundary of a multipart.
"""

from __future__ import annotations

import re
from hashlib import sha256
from urllib.parse import quote

from pop3svc.downgrading.lexical import Kind, Token, asciiComment, scan, splitAt, unquoted

__all__ = ["asciiBoundary", "asciiParameters", "boundaryOf"]

_PARAMETER = re.compile(r"[ \t]*([!#$%&'*+\-.0-9A-Z^_`a-z{|}~]+)[ \t]*=[ \t]*")
_NUMBERED = re.compile(r"(.*)\*([0-9]+)")
# A pattern for a piece of an encoded value.  A piece does not cut a percent-encoded octet, and is
# short enough for a line.
_SEGMENT = re.compile(r"(?:%[0-9A-F]{2}|[^%]){1,16}")
# The most characters of a parameter that is written in one piece.
_LINE = 72
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def asciiBoundary(boundary: str) -> str:
    """
    @return: the boundary to use instead of one that is not ASCII, which RFC 2046 section 5.1.1
        does not allow.
    """
    return f"=_{sha256(boundary.encode('utf-8', 'surrogateescape')).hexdigest()[:40]}"


def boundaryOf(text: str) -> str | None:
    """
    @param text: the unfolded body of Content-Type.
    @return: the boundary; L{None} if the type is not multipart or has no boundary.
    """
    parts = [tokens for tokens, _ in splitAt(";", text)]
    type_ = "".join(each.raw for each in parts[0] if each.kind is not Kind.COMMENT)
    if not type_.strip(" \t").lower().startswith("multipart/"):
        return None
    for tokens in parts[1:]:
        name, value = _parsed(tokens)
        if name.lower() == "boundary" and value:
            return value
    return None


def _parsed(tokens: list[Token]) -> tuple[str, str]:
    """
    @return: the name and the value of a parameter.  The name is empty if the parameter is
        malformed.
    """
    raw = "".join(asciiComment(each.raw) if _isComment(each) else each.raw for each in tokens)
    found = _PARAMETER.match(raw)
    if found is None:
        return "", ""
    value = "".join(unquoted(each) for each in scan(raw[found.end() :]) if not _isComment(each))
    return found[1], value.strip(" \t")


def _isComment(token: Token) -> bool:
    return token.kind is Kind.COMMENT


def asciiParameters(text: str) -> str | None:
    """
    @param text: the unfolded body of Content-Type or Content-Disposition.
    @return: the body in ASCII; L{None} if another part of the body than values and comments is not
        ASCII.
    """
    written: list[str] = []
    for index, (tokens, _) in enumerate(splitAt(";", text)):
        ascii_ = "".join(
            asciiComment(each.raw) if _isComment(each) else each.raw for each in tokens
        )
        if not ascii_.isascii():
            name, value = _parsed(tokens)
            if not index or not name:
                return None
            ascii_ = " " + "; ".join(_encoded(name, value))
        written.append(ascii_)
    return ";".join(written)


def _encoded(name: str, value: str) -> list[str]:
    """
    @return: the parameter in ASCII, in several parts if it is long.
    """
    if name.lower() == "boundary":
        return [f'{name}="{asciiBoundary(value)}"']
    if name.endswith("*"):
        # The value is already encoded, except for the characters that are not ASCII.
        return [f"{name}={_NOT_ASCII.sub(lambda found: quote(found[0]), value)}"]
    encoded = quote(value, safe="")
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        return [f"{name}*={_charset(int(numbered[2][:9]))}{encoded}"]
    if len(name) + len(encoded) <= _LINE:
        return [f"{name}*={_charset(0)}{encoded}"]
    return [
        f"{name}*{number}*={_charset(number)}{segment}"
        for number, segment in enumerate(_SEGMENT.findall(encoded))
    ]


def _charset(number: int) -> str:
    return "" if number else "utf-8''"
