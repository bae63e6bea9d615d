"""
Convert one header field to ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from pop3svc.downgrading.addresses import asciiAddresses
from pop3svc.downgrading.lexical import (
    Kind,
    asciiComment,
    encodedText,
    fold,
    phrase,
    scan,
    unstructured,
)
from pop3svc.downgrading.parameters import asciiParameters

__all__ = ["asciiField", "splitField"]

_NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
_FOLD = re.compile(r"\r\n(?=[ \t])")
_ID = re.compile(r"<[!-;=?-~]+>")
_NOT_IN_URL = re.compile(r"[^\x00-\x7f]")

_ADDRESSES = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "resent-")
    for name in ("from", "sender", "reply-to", "to", "cc", "bcc")
) | {
    "disposition-notification-to",
    "errors-to",
    "mail-followup-to",
    "mail-reply-to",
    "return-receipt-to",
}
_PARAMETERS = frozenset(["content-type", "content-disposition"])
_IDS = frozenset(["in-reply-to", "references"])
# The fields in which only the comments, and URLs in some fields, can be encoded, because other text
# would lose its meaning.
_STRUCTURED = frozenset(
    [
        *("archived-at", "authentication-results", "arc-authentication-results"),
        *("arc-message-signature", "arc-seal", "content-id", "content-location"),
        *("content-transfer-encoding", "date", "delivered-to", "dkim-signature", "list-archive"),
        *("list-help", "list-owner", "list-post", "list-subscribe", "list-unsubscribe"),
        *("message-id", "mime-version", "original-recipient", "received", "received-spf"),
        *("resent-date", "resent-message-id", "return-path", "supersedes", "x-original-to"),
    ]
)


def splitField(field: bytes) -> tuple[str, bytes] | None:
    """
    @param field: a header field with its line ends.
    @return: the name of the field, and its body with the folds; L{None} if the name is not valid.
    """
    found = _NAME.match(field)
    return None if found is None else (found[1].decode("ascii"), field[found.end() :])


def unfolded(text: str) -> str:
    """
    @param text: the body of a field with its line ends.
    @return: the body as one line without folds.
    """
    return _FOLD.sub("", text.removesuffix("\r\n"))


def asciiField(field: bytes) -> bytes:
    """
    Convert a header field to ASCII.

    A field that is not UTF-8 does not change, because its charset is unknown.  RFC 6532 allows only
    UTF-8.

    @param field: the field with its line ends, C{CRLF}.
    @return: the field in ASCII.  If the field cannot contain its whole text in ASCII, another field
        with the text follows it or takes its place.  The name of the other field is C{Downgraded-}
        and the name of the field (RFC 6857 section 3.1.10).
    """
    if field.isascii():
        return field
    try:
        text = field.decode("utf-8")
    except UnicodeDecodeError:
        return field
    found = splitField(field)
    if found is None:
        return fold("Downgraded-Line", " " + encodedText(unfolded(text)))
    name, rest = found
    body = unfolded(rest.decode("utf-8"))
    kept = _convert(name.lower(), body)
    written = b"" if kept is None else fold(name, kept)
    if kept is None or name.lower() in _IDS:
        written += fold(f"Downgraded-{name}", " " + encodedText(body.strip(" \t")))
    return written


def _convert(name: str, body: str) -> str | None:
    """
    @param name: the name of the field in lower case.
    @return: the body in ASCII; L{None} if the body cannot be written in ASCII.
    """
    special = _SPECIAL.get(name)
    return unstructured(body) if special is None else special(body)


def _ids(body: str) -> str | None:
    """
    Keep the message-ids that are ASCII, because clients use them to find the thread of a message.
    """
    kept = _ID.findall(body)
    return " " + " ".join(kept) if kept else None


def _structured(body: str) -> str | None:
    written = [
        asciiComment(each.raw) if each.kind is Kind.COMMENT else each.raw for each in scan(body)
    ]
    text = "".join(written)
    return text if text.isascii() else None


def _list(body: str) -> str | None:
    """
    Encode the characters of URLs that are not ASCII (RFC 3987 section 3.1).
    """
    return _structured(
        "".join(
            _NOT_IN_URL.sub(lambda found: quote(found[0]), each.raw)
            if each.kind is Kind.ANGLE
            else each.raw
            for each in scan(body)
        )
    )


def _listID(body: str) -> str | None:
    tokens = list(scan(body))
    if any(each.kind is Kind.ANGLE and not each.raw.isascii() for each in tokens):
        return None
    return phrase(tokens)


_SPECIAL: dict[str, Callable[[str], str | None]] = {
    **dict.fromkeys(_ADDRESSES, asciiAddresses),
    **dict.fromkeys(_PARAMETERS, asciiParameters),
    **dict.fromkeys(_IDS, _ids),
    **dict.fromkeys(_STRUCTURED, _structured),
    **{name: _list for name in _STRUCTURED if name.startswith("list-") or name == "archived-at"},
    "list-id": _listID,
}
